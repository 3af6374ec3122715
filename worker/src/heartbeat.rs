//! Holding on to a delivery and to a claim for as long as a build is worked on, and one delivery of a
//! build at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use shared::build::BuildId;
use shared::ledger::{CLAIM, Ledger, LedgerError};
use shared::queue::{Lease, QueueError, VISIBILITY_TIMEOUT};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep_until, timeout_at};

/// What a lease is extended to. A worker may be cut off from its queue, or be restarted, for nearly
/// that long without harm; and a build whose worker is lost with its host waits for as long.
const LEASE: Duration = CLAIM;
/// So many heartbeats fit into what is left of a lease.
const HEARTBEATS: u32 = 4;
/// The longest time between two heartbeats.
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);
/// After a failed heartbeat the next one does not wait for its turn.
const HEARTBEAT_RETRY: Duration = Duration::from_secs(5);
/// Safety margin: a build is stopped this long before the right to it ends, for its hook to end, and
/// because the other side counts from the moment at which it sent its answer.
const FENCE: Duration = Duration::from_secs(20);

/// Why a right to a build is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// It is about to end, and cannot be extended because the other side cannot be reached. No other
    /// worker has it yet.
    Soon,
    /// It has ended. Another worker may have it.
    Already,
}

/// Why a right was not extended.
enum Refusal {
    /// It has ended.
    Ended,
    /// The other side cannot be reached now.
    Unreachable(String),
}

/// Extends the lease of a build's message until it is lost.
pub(crate) async fn hold_lease(build: BuildId, lease: &Lease) -> Lost {
    let extend = async || {
        let extended = lease.extend(LEASE).await;
        extended.map_err(|error| match error {
            QueueError::LeaseExpired => Refusal::Ended,
            error => Refusal::Unreachable(error.to_string()),
        })
    };
    keep_alive(build, VISIBILITY_TIMEOUT, extend).await
}

/// Renews the claim of a build until it is lost.
pub(crate) async fn hold_claim(build: BuildId, ledger: &Ledger) -> Lost {
    let renew = async || {
        let renewed = ledger.renew(build).await;
        renewed.map_err(|error| match error {
            LedgerError::ClaimLost | LedgerError::Illegal(_) => Refusal::Ended,
            error => Refusal::Unreachable(error.to_string()),
        })
    };
    keep_alive(build, CLAIM, renew).await
}

/// Extends a right, which ends after `first`, until it is lost.
async fn keep_alive<F>(build: BuildId, first: Duration, extend: impl Fn() -> F) -> Lost
where
    F: Future<Output = Result<(), Refusal>>,
{
    let mut now = Instant::now();
    let mut ends = now + first;
    let mut wait = heartbeat(build, first);
    loop {
        let fence = ends - FENCE;
        sleep_until(fence.min(now + wait)).await;
        now = Instant::now();
        // As after a sleep of the whole machine.
        if now >= ends {
            return Lost::Already;
        }
        match timeout_at(fence, extend()).await {
            Ok(Ok(())) => {
                ends = now + LEASE;
                wait = heartbeat(build, LEASE);
            }
            Ok(Err(Refusal::Ended)) => return Lost::Already,
            Ok(Err(Refusal::Unreachable(error))) => {
                tracing::warn!(%build, error, "failed to extend the right to a build; trying again");
                wait = HEARTBEAT_RETRY;
            }
            Err(_elapsed) => return Lost::Soon,
        }
        if now >= fence {
            return Lost::Soon;
        }
    }
}

/// The time until a right is extended of which so much is left.
fn heartbeat(build: BuildId, left: Duration) -> Duration {
    build.jittered((left / HEARTBEATS).min(HEARTBEAT_MAX))
}

/// One delivery of a build at a time. A standard queue of SQS may deliver a message twice, and a build
/// that is under way can be asked for again.
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

    fn unreachable() -> Refusal {
        Refusal::Unreachable("cut off".into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_extended_well_before_it_ends() {
        let beats = Cell::new(0);
        let ends = Cell::new(Instant::now() + VISIBILITY_TIMEOUT);
        let lost = keep_alive(BuildId::random(), VISIBILITY_TIMEOUT, async || {
            beats.set(beats.get() + 1);
            assert!(Instant::now() + LEASE / 2 < ends.get() + LEASE);
            ends.set(Instant::now() + LEASE);
            match beats.get() {
                30 => Err(Refusal::Ended),
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
        let lost = keep_alive(BuildId::random(), VISIBILITY_TIMEOUT, async || {
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
        let lost = keep_alive(BuildId::random(), VISIBILITY_TIMEOUT, pending).await;
        assert_eq!(lost, Lost::Soon);
        assert_eq!(begun.elapsed(), VISIBILITY_TIMEOUT - FENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_is_cut_off_later_has_a_longer_lease() {
        let begun = Instant::now();
        let attempts = Cell::new(0);
        let lost = keep_alive(BuildId::random(), VISIBILITY_TIMEOUT, async || {
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
    async fn a_lease_that_is_refused_is_lost_at_once() {
        let begun = Instant::now();
        let lost = keep_alive(BuildId::random(), VISIBILITY_TIMEOUT, async || {
            Err(Refusal::Ended)
        });
        assert_eq!(lost.await, Lost::Already);
        assert!(begun.elapsed() < VISIBILITY_TIMEOUT / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_made_good_by_the_next_heartbeat() {
        let attempts = Cell::new(0);
        let lost = keep_alive(BuildId::random(), VISIBILITY_TIMEOUT, async || {
            attempts.set(attempts.get() + 1);
            match attempts.get() {
                1..=3 => Err(unreachable()),
                4 => Ok(()),
                _ => Err(Refusal::Ended),
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
