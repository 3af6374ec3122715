//! Holding on to a delivery: its lease is kept alive for as long as it is worked on, and one
//! delivery of a build is worked on at a time.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use shared::build::BuildId;
use shared::queue::{QueueError, VISIBILITY_TIMEOUT};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep_until, timeout_at};

/// A lease is extended well before it ends, so that one lost attempt does not lose it.
const HEARTBEAT: Duration = Duration::from_secs(VISIBILITY_TIMEOUT.as_secs() / 3);
/// By so much at most a build's heartbeat is faster, so that those of many do not coincide.
const HEARTBEAT_SPREAD: Duration = Duration::from_secs(5);
/// After a failed heartbeat the next one does not wait for its turn.
const HEARTBEAT_RETRY: Duration = Duration::from_secs(5);
/// The queue counts from the moment at which it sent its answer; it may also be first to notice
/// that the time is over.
const LEASE_MARGIN: Duration = Duration::from_secs(5);
const LEASE_HELD: Duration = VISIBILITY_TIMEOUT.saturating_sub(LEASE_MARGIN);

/// Extends a lease until it is lost: refused, or not extended in time because the queue cannot be
/// reached. From then on somebody else may hold it.
pub(crate) async fn keep_alive<F>(build: BuildId, extend: impl Fn() -> F)
where
    F: Future<Output = Result<(), QueueError>>,
{
    let mut now = Instant::now();
    let mut lost_at = now + LEASE_HELD;
    let mut wait = heartbeat(build);
    while now < lost_at {
        sleep_until(lost_at.min(now + wait)).await;
        now = Instant::now();
        match timeout_at(lost_at, extend()).await {
            Ok(Ok(())) => {
                lost_at = now + LEASE_HELD;
                wait = heartbeat(build);
            }
            Ok(Err(QueueError::LeaseExpired)) | Err(_) => return,
            Ok(Err(error)) => {
                tracing::warn!(%build, %error, "cannot extend a lease");
                wait = HEARTBEAT_RETRY;
            }
        }
    }
}

fn heartbeat(build: BuildId) -> Duration {
    let mut hasher = DefaultHasher::new();
    build.hash(&mut hasher);
    let place = hasher.finish() as f64 / u64::MAX as f64;
    HEARTBEAT - HEARTBEAT_SPREAD.mul_f64(place)
}

/// Who may work on which build. A standard queue of SQS may deliver a message twice, and keeps
/// nobody from asking for a build again that is under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns(Arc<Mutex<HashMap<BuildId, Weak<Turn>>>>);

type Turn = tokio::sync::Mutex<()>;

impl Turns {
    /// Waits until no other delivery of this build is worked on here.
    pub(crate) async fn wait_for(&self, build: BuildId) -> OwnedMutexGuard<()> {
        self.turn(build).lock_owned().await
    }

    fn turn(&self, build: BuildId) -> Arc<Turn> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        let known = turns.get(&build).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let turn = Arc::default();
            turns.insert(build, Arc::downgrade(&turn));
            turn
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;

    use tokio::task::yield_now;

    use super::*;

    fn unreachable() -> QueueError {
        QueueError::Unreachable("cut off".into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_extended_three_times_before_it_would_end() {
        let begun = Instant::now();
        let beats = Cell::new(0);
        keep_alive(BuildId::random(), async || {
            beats.set(beats.get() + 1);
            assert!(begun.elapsed() <= HEARTBEAT * beats.get());
            match beats.get() {
                30 => Err(QueueError::LeaseExpired),
                _ => Ok(()),
            }
        })
        .await;
        assert!(begun.elapsed() >= (HEARTBEAT - HEARTBEAT_SPREAD) * 30);
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_is_cut_off_gives_up_before_the_lease_ends() {
        let begun = Instant::now();
        let attempts = Cell::new(0);
        keep_alive(BuildId::random(), async || {
            attempts.set(attempts.get() + 1);
            Err(unreachable())
        })
        .await;
        assert_eq!(begun.elapsed(), LEASE_HELD);
        assert!(attempts.get() > 5, "{attempts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_without_an_answer_counts_as_none() {
        let begun = Instant::now();
        keep_alive(BuildId::random(), pending).await;
        assert_eq!(begun.elapsed(), LEASE_HELD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_refused_is_lost_at_once() {
        let begun = Instant::now();
        keep_alive(BuildId::random(), async || Err(QueueError::LeaseExpired)).await;
        assert!(begun.elapsed() <= HEARTBEAT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_made_good_by_the_next_heartbeat() {
        let begun = Instant::now();
        let attempts = Cell::new(0);
        keep_alive(BuildId::random(), async || {
            attempts.set(attempts.get() + 1);
            match attempts.get() {
                1..=3 => Err(unreachable()),
                4 => Ok(()),
                _ => Err(QueueError::LeaseExpired),
            }
        })
        .await;
        assert_eq!(attempts.get(), 5);
        assert!(begun.elapsed() > HEARTBEAT + HEARTBEAT_RETRY * 3);
    }

    #[tokio::test]
    async fn a_second_delivery_of_a_build_waits_for_the_first_and_others_do_not() {
        let turns = Turns::default();
        let build = BuildId::random();
        let first = turns.wait_for(build).await;
        let second = tokio::spawn({
            let turns = turns.clone();
            async move { turns.wait_for(build).await }
        });
        yield_now().await;
        drop(turns.wait_for(BuildId::random()).await);
        assert!(!second.is_finished());
        drop(first);
        drop(second.await.expect("its turn"));
        drop(turns.wait_for(build).await);
        assert_eq!(turns.0.lock().expect("the turns").len(), 1);
    }
}
