//! A web site for tests: answers by path, counts who asks, and listens on an address of the machine itself.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

pub(crate) struct Site {
    port: u16,
    pages: Arc<Mutex<Pages>>,
    serving: AbortHandle,
}

#[derive(Default)]
struct Pages {
    answers: HashMap<String, Vec<u8>>,
    asked: HashMap<String, usize>,
}

impl Site {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let pages: Arc<Mutex<Pages>> = Arc::default();
        let served = pages.clone();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, served.clone()));
            }
        });
        Site { port, pages, serving: serving.abort_handle() }
    }

    /// The only place that it is at, as settings name it.
    pub(crate) fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base())
    }

    /// What is answered to those who ask for a path. Everything else is 404.
    pub(crate) fn put(&self, path: &str, status: &str, header: &str, body: &[u8]) {
        let head = format!("HTTP/1.1 {status}\r\n{header}\r\ncontent-length: {}\r\n\r\n", body.len());
        self.pages.lock().answers.insert(path.to_owned(), [head.as_bytes(), body].concat());
    }

    /// How often a path was asked for.
    pub(crate) fn count(&self, path: &str) -> usize {
        self.pages.lock().asked.get(path).copied().unwrap_or_default()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(mut stream: TcpStream, pages: Arc<Mutex<Pages>>) {
    let (mut request, mut buffer) = (Vec::new(), [0; 4_096]);
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => request.extend_from_slice(&buffer[..read]),
            _ => return,
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let answer = {
        let mut pages = pages.lock();
        *pages.asked.entry(path.clone()).or_default() += 1;
        pages.answers.get(&path).cloned()
    };
    let answer = answer.unwrap_or_else(|| b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec());
    let _ = stream.write_all(&answer).await;
}
