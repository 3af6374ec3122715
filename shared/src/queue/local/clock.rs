//! The time by which leases, delays and waits are measured.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::process::millis;

/// A clock in milliseconds of Unix time, so that a delay outlives a restart.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    /// The wall is read once, then monotonic time is added: a lease lasts as long as it says,
    /// also when somebody sets the machine's clock.
    System {
        started_at_ms: i64,
        started: Instant,
    },
    Manual(watch::Receiver<i64>),
}

/// The hands of a [`Clock`] that stands still until it is told to move.
#[derive(Debug)]
pub struct ManualClock(watch::Sender<i64>);

impl Clock {
    /// The machine's time.
    pub fn system() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        Self(Source::System {
            // Before 1970 the clock is unset, and 1970 is as good.
            started_at_ms: millis(since_epoch.unwrap_or_default()),
            started: Instant::now(),
        })
    }

    pub(super) fn now_ms(&self) -> i64 {
        match self.0 {
            Source::System {
                started_at_ms,
                started,
            } => started_at_ms.saturating_add(millis(started.elapsed())),
            Source::Manual(ref hands) => *hands.borrow(),
        }
    }

    /// Returns once it is `due_ms`; without a time, never.
    pub(super) async fn until(&self, due_ms: Option<i64>) {
        let Some(due_ms) = due_ms else {
            return std::future::pending().await;
        };
        match self.0 {
            Source::System { .. } => {
                let left_ms = u64::try_from(due_ms.saturating_sub(self.now_ms())).unwrap_or(0);
                tokio::time::sleep(Duration::from_millis(left_ms)).await;
            }
            Source::Manual(ref hands) => {
                let mut hands = hands.clone();
                if hands.wait_for(|now_ms| *now_ms >= due_ms).await.is_err() {
                    // Nobody is left who could move the hands.
                    std::future::pending().await
                }
            }
        }
    }
}

impl ManualClock {
    /// A clock that stands at `at`, counted from 1970.
    pub fn new(at: Duration) -> Self {
        Self(watch::Sender::new(millis(at)))
    }

    /// Moves the hands, and wakes whoever waits for that time.
    pub fn advance(&self, by: Duration) {
        self.0
            .send_modify(|now_ms| *now_ms = now_ms.saturating_add(millis(by)));
    }

    /// A clock with these hands.
    pub fn clock(&self) -> Clock {
        Clock(Source::Manual(self.0.subscribe()))
    }
}
