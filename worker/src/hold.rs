//! Holding on to a delivery: its lease is kept alive for as long as it is worked on, and one
//! delivery of a build is worked on at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use shared::build::BuildId;
use shared::queue::{QueueError, VISIBILITY_TIMEOUT};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// What a lease is extended to. A worker may be cut off from its queue, or be restarted, for nearly
/// that long without harm; and a build whose worker is lost with its host waits for twice as long.
pub(crate) const LEASE: Duration = Duration::from_secs(5 * 60);
/// So many heartbeats fit into what is left of a lease.
const HEARTBEATS: u32 = 4;
/// The longest time between two heartbeats.
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);
/// After a failed heartbeat the next one does not wait for its turn.
const HEARTBEAT_RETRY: Duration = Duration::from_secs(5);
/// By so much a build is stopped before its lease ends: for its hook to end, and because the queue
/// counts from the moment at which it sent its answer.
pub(crate) const FENCE: Duration = Duration::from_secs(20);

/// How a lease was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// It is about to end, and cannot be extended because the queue cannot be reached. Nobody else
    /// holds it yet.
    Soon,
    /// It has ended. Somebody else may hold it.
    Already,
}

/// Extends a lease until it is lost.
pub(crate) async fn keep_alive<F>(build: BuildId, extend: impl Fn(Duration) -> F) -> Lost
where
    F: Future<Output = Result<(), QueueError>>,
{
    let mut now = Instant::now();
    let mut ends = now + VISIBILITY_TIMEOUT;
    let mut wait = heartbeat(build, VISIBILITY_TIMEOUT);
    loop {
        let fence = ends - FENCE;
        sleep_until(fence.min(now + wait)).await;
        now = Instant::now();
        // After a sleep of the whole machine, for one.
        if now >= ends {
            return Lost::Already;
        }
        match timeout_at(fence, extend(LEASE)).await {
            Ok(Ok(())) => {
                ends = now + LEASE;
                wait = heartbeat(build, LEASE);
            }
            Ok(Err(QueueError::LeaseExpired)) => return Lost::Already,
            Ok(Err(error)) => {
                tracing::warn!(%build, %error, "cannot extend a lease");
                wait = HEARTBEAT_RETRY;
            }
            Err(_elapsed) => return Lost::Soon,
        }
        if now >= fence {
            return Lost::Soon;
        }
    }
}

/// Extends a lease that an earlier process held. A machine that has just started may not reach the
/// queue at once.
///
/// # Errors
/// The lease has ended, or must have by now.
pub(crate) async fn resume<F>(
    build: BuildId,
    extend: impl Fn(Duration) -> F,
) -> Result<(), QueueError>
where
    F: Future<Output = Result<(), QueueError>>,
{
    let ended = Instant::now() + LEASE;
    loop {
        match extend(LEASE).await {
            Err(QueueError::LeaseExpired) => return Err(QueueError::LeaseExpired),
            Err(error) if Instant::now() < ended => {
                tracing::warn!(%build, %error, "cannot extend a lease yet");
                sleep(HEARTBEAT_RETRY).await;
            }
            extended => return extended,
        }
    }
}

/// How long to wait before a lease is extended of which so much is left.
fn heartbeat(build: BuildId, left: Duration) -> Duration {
    build.jittered((left / HEARTBEATS).min(HEARTBEAT_MAX))
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
    async fn a_lease_is_extended_well_before_it_ends() {
        let beats = Cell::new(0);
        let ends = Cell::new(Instant::now() + VISIBILITY_TIMEOUT);
        let lost = keep_alive(BuildId::random(), async |lease| {
            beats.set(beats.get() + 1);
            assert!(Instant::now() + lease / 2 < ends.get() + lease);
            ends.set(Instant::now() + lease);
            match beats.get() {
                30 => Err(QueueError::LeaseExpired),
                _ => Ok(()),
            }
        });
        let begun = Instant::now();
        assert_eq!(lost.await, Lost::Already);
        assert!(begun.elapsed() < HEARTBEAT_MAX * 30);
        assert!(begun.elapsed() > HEARTBEAT_MAX * 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_is_cut_off_gives_up_while_there_is_time_to_stop_the_build() {
        let begun = Instant::now();
        let attempts = Cell::new(0);
        let lost = keep_alive(BuildId::random(), async |_lease| {
            attempts.set(attempts.get() + 1);
            Err(unreachable())
        });
        assert_eq!(lost.await, Lost::Soon);
        assert_eq!(begun.elapsed(), VISIBILITY_TIMEOUT - FENCE);
        assert!(attempts.get() > 3, "{attempts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_without_an_answer_counts_as_none() {
        let begun = Instant::now();
        let lost = keep_alive(BuildId::random(), |_lease| pending()).await;
        assert_eq!(lost, Lost::Soon);
        assert_eq!(begun.elapsed(), VISIBILITY_TIMEOUT - FENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_is_cut_off_later_has_a_longer_lease() {
        let begun = Instant::now();
        let attempts = Cell::new(0);
        let lost = keep_alive(BuildId::random(), async |_lease| {
            attempts.set(attempts.get() + 1);
            match attempts.get() {
                1 => Ok(()),
                _ => Err(unreachable()),
            }
        });
        assert_eq!(lost.await, Lost::Soon);
        assert!(begun.elapsed() > LEASE - FENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_resumed_as_soon_as_the_queue_can_be_reached_and_not_once_it_has_ended() {
        let attempts = Cell::new(0);
        let resumed = async |lasting: u32, then: fn() -> Result<(), QueueError>| {
            attempts.set(0);
            resume(BuildId::random(), async |_lease| {
                attempts.set(attempts.get() + 1);
                if attempts.get() > lasting {
                    then()
                } else {
                    Err(unreachable())
                }
            })
            .await
        };
        assert!(resumed(3, || Ok(())).await.is_ok());
        let ended = resumed(3, || Err(QueueError::LeaseExpired)).await;
        assert!(matches!(ended, Err(QueueError::LeaseExpired)), "{ended:?}");
        assert_eq!(attempts.get(), 4);
        let begun = Instant::now();
        assert!(resumed(u32::MAX, || Ok(())).await.is_err());
        assert!(begun.elapsed() >= LEASE && begun.elapsed() < LEASE * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_refused_is_lost_at_once() {
        let begun = Instant::now();
        let lost = keep_alive(BuildId::random(), async |_lease| {
            Err(QueueError::LeaseExpired)
        });
        assert_eq!(lost.await, Lost::Already);
        assert!(begun.elapsed() < VISIBILITY_TIMEOUT / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_made_good_by_the_next_heartbeat() {
        let attempts = Cell::new(0);
        let lost = keep_alive(BuildId::random(), async |_lease| {
            attempts.set(attempts.get() + 1);
            match attempts.get() {
                1..=3 => Err(unreachable()),
                4 => Ok(()),
                _ => Err(QueueError::LeaseExpired),
            }
        });
        assert_eq!(lost.await, Lost::Already);
        assert_eq!(attempts.get(), 5);
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
