//! Receipts and read markers (spec: Receipts; Fully read markers).

use ruma::api::client::read_marker::set_read_marker;
use ruma::api::client::receipt::create_receipt;
use ruma::api::client::receipt::create_receipt::v3::ReceiptType;
use ruma::events::receipt::ReceiptThread;

use crate::error::{Error, Result};
use crate::http::{Ctx, Routes};
use crate::sync::presence;
use crate::sync::receipts::{Mark, Marks, mark};

pub fn routes() -> Routes {
    Routes::default().ruma(receipt).guests().ruma(read_markers).guests()
}

async fn receipt(ctx: Ctx<create_receipt::v3::Request>) -> Result<create_receipt::v3::Response> {
    let request = ctx.request;
    let thread = match &request.thread {
        ReceiptThread::Unthreaded => String::new(),
        thread => thread.as_str().unwrap_or_default().to_owned(),
    };
    if request.thread != ReceiptThread::Unthreaded && !(thread == "main" || thread.starts_with('$')) {
        return Err(Error::invalid_param("`thread_id` is neither an event ID nor `main`"));
    }
    let mut marks = Marks::default();
    match request.receipt_type {
        ReceiptType::Read => marks.read = Some(Mark { event_id: request.event_id, thread }),
        ReceiptType::ReadPrivate => marks.private = Some(Mark { event_id: request.event_id, thread }),
        ReceiptType::FullyRead if thread.is_empty() => marks.fully_read = Some(request.event_id),
        ReceiptType::FullyRead => return Err(Error::invalid_param("`m.fully_read` is of the whole room")),
        _ => return Err(Error::invalid_param("There are no receipts of this type")),
    }
    mark(&ctx.app, &request.room_id, &ctx.requester.user_id, &marks).await?;
    presence::active(&ctx.app, &ctx.requester.user_id);
    Ok(create_receipt::v3::Response::new())
}

async fn read_markers(ctx: Ctx<set_read_marker::v3::Request>) -> Result<set_read_marker::v3::Response> {
    let request = ctx.request;
    let unthreaded = |event_id| Mark { event_id, thread: String::new() };
    let marks = Marks {
        fully_read: request.fully_read,
        read: request.read_receipt.map(unthreaded),
        private: request.private_read_receipt.map(unthreaded),
    };
    mark(&ctx.app, &request.room_id, &ctx.requester.user_id, &marks).await?;
    presence::active(&ctx.app, &ctx.requester.user_id);
    Ok(set_read_marker::v3::Response::new())
}
