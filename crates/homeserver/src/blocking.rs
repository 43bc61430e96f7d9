//! Work that takes a processor for long, kept away from the threads that answer requests.

use tokio::runtime::{Handle, RuntimeFlavor};

use crate::error::{Error, Result};

/// Runs `work` on a thread for such work. A runtime that has a single thread runs it right here: so that a simulation
/// does the same thing in the same order every time.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)
}

#[cfg(test)]
mod tests {
    use std::thread::current;

    use super::*;

    #[tokio::test]
    async fn one_thread_does_everything_itself() {
        assert_eq!(run(|| current().id()).await.unwrap(), current().id());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn many_threads_are_kept_free() {
        let here = current().id();
        assert_ne!(run(|| current().id()).await.unwrap(), here);
        let failed = run(|| -> u8 { panic!("as planned") }).await.unwrap_err();
        assert_eq!(failed.status(), 500);
    }
}
