//! Tasks that run as long as the server does. One that panics is reported, counted, and begun again after a pause: what
//! it was about to do is still in the store.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use futures_util::FutureExt as _;

use crate::App;

const PAUSE: Duration = Duration::from_secs(5);

/// Runs a task until it ends by itself, which it does when the server stops.
pub fn spawn<F>(app: &App, name: &'static str, task: impl Fn(App) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    app.tasks.spawn(supervise(app.clone(), name, task));
}

async fn supervise<F: Future<Output = ()>>(app: App, name: &'static str, task: impl Fn(App) -> F) {
    // A release on trial does nothing by itself.
    tokio::select! {
        () = app.shutdown.cancelled() => return,
        () = app.maintenance.ended() => {}
    }
    loop {
        // Nothing of the task outlives its panic but what it shares with everybody, as requests that panic do.
        if AssertUnwindSafe(task(app.clone())).catch_unwind().await.is_ok() {
            return;
        }
        app.metrics.panicked(name);
        tracing::error!(task = name, "a background task panicked; it is begun again");
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = app.clock.sleep(PAUSE) => {}
        }
    }
}

/// A piece of work whose panic shall end nothing else. `None`: it panicked, which is counted under this name.
pub fn guard<T>(app: &App, name: &'static str, work: impl FnOnce() -> T) -> Option<T> {
    let done = catch_unwind(AssertUnwindSafe(work)).ok();
    if done.is_none() {
        app.metrics.panicked(name);
    }
    done
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::testing::config;

    #[test]
    fn a_piece_of_work_that_panics_ends_nothing_else() {
        let app = App::in_memory(config());
        assert_eq!(guard(&app, "piece", || 1), Some(1));
        assert_eq!(guard(&app, "piece", || panic!("as planned")), None::<()>);
        let figures = app.metrics.encode();
        assert!(figures.contains("skerry_task_panics_total{task=\"piece\"} 1"), "{figures}");
    }

    #[tokio::test]
    async fn a_task_that_panics_is_counted_and_begun_again() {
        let app = App::in_memory(config());
        let began = Arc::new(AtomicUsize::new(0));
        let counts = began.clone();
        spawn(&app, "test", move |_| {
            let nr = counts.fetch_add(1, Ordering::SeqCst);
            async move { assert!(nr >= 2, "as planned") }
        });
        app.tasks.close();
        let done = async {
            while !app.tasks.is_empty() {
                app.clock.advance(PAUSE);
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), done).await.expect("it is not begun again");
        assert_eq!(began.load(Ordering::SeqCst), 3);
        let figures = app.metrics.encode();
        assert!(figures.contains("skerry_task_panics_total{task=\"test\"} 2"), "{figures}");
    }
}
