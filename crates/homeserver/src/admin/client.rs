//! The other end of the administration socket: one request, one answer.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// Sends one request to a running server. An answer that is not a success is one, too.
pub async fn call(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&Value>,
    within: Duration,
) -> Result<(StatusCode, Value), String> {
    let answer = async {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|cause| format!("no server answers on {}: {cause}", socket.display()))?;
        exchange(stream, method, path, body).await
    };
    tokio::time::timeout(within, answer).await.map_err(|_| format!("no answer within {} s", within.as_secs()))?
}

async fn exchange(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<(StatusCode, Value), String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|cause| cause.to_string())?;
    let driver = tokio::spawn(connection);
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "admin")
        .body(Full::new(body.map_or(Bytes::new(), |body| Bytes::from(body.to_string()))))
        .map_err(|cause| cause.to_string())?;
    let response = sender.send_request(request).await.map_err(|cause| cause.to_string())?;
    let status = response.status();
    let bytes = response.into_body().collect().await.map_err(|cause| cause.to_string())?.to_bytes();
    driver.abort();
    Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
}
