//! Bodies, coming and going: empty, in memory, straight from a connection, or a stream somebody makes.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::error::{Error, Result};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Default)]
pub struct Body(Kind);

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    Incoming(Incoming),
    Stream {
        frames: Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>,
        left: Option<u64>,
    },
}

impl Body {
    pub fn empty() -> Self {
        Self(Kind::Empty)
    }

    /// A body made while it is sent. With `length` the answer has a Content-Length, and must keep to it.
    pub fn stream(frames: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static, length: Option<u64>) -> Self {
        Self(Kind::Stream { frames: Box::pin(frames), left: length })
    }

    /// The next piece, or `None` at the end. A sender that stays silent for `idle` has given up.
    pub async fn chunk(&mut self, idle: Duration) -> Result<Option<Bytes>> {
        loop {
            let frame = match &self.0 {
                Kind::Empty => return Ok(None),
                Kind::Full(_) => self.frame().await,
                _ => tokio::time::timeout(idle, self.frame()).await.map_err(|_| Error::request_timeout())?,
            };
            match frame {
                None => return Ok(None),
                Some(Err(_)) => return Err(Error::unknown("The request body broke off")),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The whole body, if it is no longer than `limit` and arrives within `within`.
    pub async fn collect(mut self, limit: usize, within: Duration) -> Result<Bytes> {
        let too_large = || Error::too_large(format!("The request body is larger than {limit} bytes"));
        match self.0 {
            Kind::Empty => return Ok(Bytes::new()),
            Kind::Full(bytes) if bytes.len() <= limit => return Ok(bytes),
            _ => {}
        }
        if http_body::Body::size_hint(&self).lower() > limit as u64 {
            return Err(too_large());
        }
        let read = async {
            // Most bodies come in one piece, which then needs no copy.
            let Some(first) = self.chunk(within).await? else { return Ok(Bytes::new()) };
            let mut whole: Option<BytesMut> = None;
            while let Some(next) = self.chunk(within).await? {
                let whole = whole.get_or_insert_with(|| BytesMut::from(&first[..]));
                if whole.len() + next.len() > limit {
                    return Err(too_large());
                }
                whole.extend_from_slice(&next);
            }
            let bytes = whole.map_or(first, BytesMut::freeze);
            if bytes.len() > limit { Err(too_large()) } else { Ok(bytes) }
        };
        tokio::time::timeout(within, read).await.map_err(|_| Error::request_timeout())?
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Self {
        use http_body::Body as _;
        if incoming.is_end_stream() { Self::empty() } else { Self(Kind::Incoming(incoming)) }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::empty() } else { Self(Kind::Full(bytes)) }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Incoming(incoming) => Pin::new(incoming).poll_frame(cx).map_err(Into::into),
            Kind::Stream { frames, left } => frames.poll_next_unpin(cx).map(|next| {
                let next = next?;
                if let (Some(left), Ok(bytes)) = (left, &next) {
                    *left = left.saturating_sub(bytes.len() as u64);
                }
                Some(next.map(Frame::data))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Incoming(incoming) => incoming.is_end_stream(),
            Kind::Full(_) => false,
            Kind::Stream { left, .. } => *left == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Incoming(incoming) => incoming.size_hint(),
            Kind::Stream { left: Some(left), .. } => SizeHint::with_exact(*left),
            Kind::Stream { left: None, .. } => SizeHint::default(),
        }
    }
}
