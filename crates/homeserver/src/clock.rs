//! The one way to the time: a `Clock` that a test can hold still.
//!
//! Wall time is milliseconds since the epoch, as Matrix counts it. Durations are measured on the monotonic side.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ruma::MilliSecondsSinceUnixEpoch;
use tokio::sync::Notify;

#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System { started: Instant },
    Manual(Arc<Manual>),
}

#[derive(Debug)]
struct Manual {
    now_ms: AtomicU64,
    /// Wakes sleepers in the order they lay down, so that a simulation repeats.
    moved: Notify,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn system() -> Self {
        Self(Source::System { started: Instant::now() })
    }

    /// A clock that stands at `now_ms` until somebody moves it with `advance`.
    pub fn manual(now_ms: u64) -> Self {
        Self(Source::Manual(Arc::new(Manual { now_ms: AtomicU64::new(now_ms), moved: Notify::new() })))
    }

    /// Wall time in milliseconds since the epoch.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn now_ms(&self) -> u64 {
        match &self.0 {
            Source::System { .. } => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            }
            Source::Manual(manual) => manual.now_ms.load(Ordering::SeqCst),
        }
    }

    /// Wall time as the events and receipts carry it.
    pub fn now(&self) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(ruma::UInt::new_saturating(self.now_ms()))
    }

    /// Time that never jumps, since some fixed point: only differences mean something.
    pub fn monotonic(&self) -> Duration {
        match &self.0 {
            Source::System { started } => started.elapsed(),
            Source::Manual(manual) => Duration::from_millis(manual.now_ms.load(Ordering::SeqCst)),
        }
    }

    /// Sleeps by this clock: a manual one wakes when it has been moved far enough.
    pub async fn sleep(&self, duration: Duration) {
        match &self.0 {
            Source::System { .. } => tokio::time::sleep(duration).await,
            Source::Manual(manual) => {
                let until = self.monotonic() + duration;
                loop {
                    let mut moved = std::pin::pin!(manual.moved.notified());
                    moved.as_mut().enable();
                    if self.monotonic() >= until {
                        return;
                    }
                    moved.await;
                }
            }
        }
    }

    /// Moves a manual clock forward. The system's clock cannot be moved: then this does nothing.
    pub fn advance(&self, duration: Duration) {
        if let Source::Manual(manual) = &self.0 {
            let step = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
            manual.now_ms.fetch_add(step, Ordering::SeqCst);
            manual.moved.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_manual_clock_moves_only_when_told() {
        let clock = Clock::manual(1_000);
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move {
                clock.sleep(Duration::from_millis(500)).await;
                clock.now_ms()
            }
        });
        tokio::task::yield_now().await;
        clock.advance(Duration::from_millis(499));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_millis(1));
        assert_eq!(sleeper.await.unwrap(), 1_500);
    }

    #[test]
    fn the_system_clock_runs() {
        let clock = Clock::system();
        let before = clock.monotonic();
        assert!(clock.now_ms() > 1_600_000_000_000);
        assert!(clock.monotonic() >= before);
    }
}
