//! One delivery: worked on while its lease is kept alive, then acknowledged or returned.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use runner::Stop;
use shared::build::{BuildId, BuildRequest, StopReason};
use shared::ledger::{LedgerError, STATUS};
use shared::queue::{Delivery, Lease};
use tokio::time::{sleep, timeout};

use crate::heartbeat::{Lost, Turns, hold_lease};
use crate::job::{Attempt, Job, Origin, Verdict};
use crate::slots::Slot;

/// How long to leave a message alone after the ledger failed.
const LEDGER_RETRY: Duration = Duration::from_secs(5);
/// How often a worker that stops looks for builds that wait.
const LEAVE_INTERVAL: Duration = Duration::from_secs(1);
/// A dead letter that cannot be read is logged again after this time: the longest that SQS allows.
const UNREADABLE_DELAY: Duration = Duration::from_secs(12 * 60 * 60);
/// How long a message is kept for a status that is not accepted. If this host is lost by then, another
/// worker receives the message and reports the end.
const REPORT_PATIENCE: Duration = Duration::from_secs(5 * 60);

/// Takes deliveries. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct Deliveries {
    job: Job,
    turns: Turns,
    running: Arc<Mutex<HashMap<BuildId, Attempt>>>,
}

impl Deliveries {
    pub(crate) fn new(job: Job) -> Self {
        Self {
            job,
            turns: Turns::default(),
            running: Arc::default(),
        }
    }

    /// Works on one delivery, and acknowledges or returns it.
    pub(crate) async fn take(&self, delivery: Delivery, origin: Origin, slot: Slot) {
        let Delivery {
            message,
            receives,
            lease,
        } = delivery;
        let message = match message {
            Ok(message) => message,
            Err(error) => {
                tracing::error!(%error, ?origin, "failed to read a message; it stays for a person to look at");
                // It becomes a dead letter soon, and is logged seldom from then on.
                let delay = match origin {
                    Origin::DeadLetters => UNREADABLE_DELAY,
                    Origin::Queue | Origin::EarlierProcess => Duration::ZERO,
                };
                return give_back(lease, delay).await;
            }
        };
        let request = message.request();
        let build = request.id;
        let stop = Stop::default();
        let attempt = Attempt {
            origin,
            receives,
            slot: slot.clone(),
            stop: stop.clone(),
        };
        let mut working = pin!(self.work(request, attempt));
        let verdict = tokio::select! {
            verdict = &mut working => verdict,
            lost = hold_lease(build, &lease) => {
                tracing::error!(%build, ?lost, "lost the lease of a build");
                match lost {
                    // The worker that has it now, here or on another engine, goes on with the container.
                    Lost::Already if !self.job.ledger.has_store() => return,
                    // Nothing but the lease keeps another worker from starting the hook.
                    Lost::Soon if self.job.housekeeper.lease_is_lock => {
                        stop.request(StopReason::LeaseLost);
                    }
                    // The ledger does.
                    _ => {}
                }
                working.await
            }
        };
        slot.give_up();
        self.settle(build, verdict, lease).await;
    }

    /// Goes on with a build of an earlier process, whose message comes back by itself and finds its
    /// end.
    pub(crate) async fn go_on(&self, request: &BuildRequest, slot: Slot) {
        let attempt = Attempt {
            origin: Origin::EarlierProcess,
            receives: 0,
            slot,
            stop: Stop::default(),
        };
        match self.work(request, attempt).await {
            // Without a store, another worker on this engine may have to see the container.
            Ok(Verdict::Acknowledge) if self.job.ledger.has_store() => {
                self.job.housekeeper.remove(request.id).await;
            }
            Ok(_) => {}
            Err(error) => tracing::error!(build = %request.id, %error, "failed to record a build"),
        }
    }

    /// Asks every build that is worked on to stop, because this worker does: their hooks go on.
    pub(crate) fn leave_all(&self) {
        self.leave(|_| true);
    }

    /// Asks the builds that wait for somebody else to stop, because this worker does; also those that
    /// begin to wait later.
    pub(crate) async fn leave_waiting(&self) -> Infallible {
        loop {
            self.leave(|attempt| !attempt.slot.is_taken());
            sleep(LEAVE_INTERVAL).await;
        }
    }

    fn leave(&self, leaves: impl Fn(&Attempt) -> bool) {
        for attempt in self.running().values().filter(|attempt| leaves(attempt)) {
            attempt.stop.request(StopReason::Shutdown);
        }
    }

    /// Works on a build in its turn. While the ledger cannot be read or written, the build waits: that is no
    /// attempt.
    async fn work(&self, request: &BuildRequest, attempt: Attempt) -> Result<Verdict, LedgerError> {
        let build = request.id;
        let turn = self.turns.wait_for(build);
        let _turn = attempt.slot.lend_while(turn).await;
        self.running().insert(build, attempt.clone());
        let _running = Running(self, build);
        loop {
            match Box::pin(self.job.work_on(request, &attempt)).await {
                Err(error) if attempt.stop.reason().is_none() => {
                    tracing::error!(%build, %error, "failed to write the build record; trying again");
                    attempt.slot.give_up();
                    tokio::select! {
                        () = sleep(LEDGER_RETRY) => {}
                        _ = attempt.stop.requested() => {}
                    }
                }
                verdict => return verdict,
            }
        }
    }

    async fn settle(&self, build: BuildId, verdict: Result<Verdict, LedgerError>, lease: Lease) {
        match verdict {
            Ok(Verdict::Acknowledge) if self.job.ledger.has_store() => {
                self.job.housekeeper.remove(build).await;
                self.wait_until_reported(build, &lease).await;
                acknowledge(lease).await;
            }
            // Before it is acknowledged, another worker on this engine may have to see the container.
            Ok(Verdict::Acknowledge) => {
                if acknowledge(lease).await {
                    self.job.housekeeper.remove(build).await;
                }
            }
            Ok(Verdict::Return(delay)) => give_back(lease, delay).await,
            Ok(Verdict::Keep) => {}
            Err(error) => {
                tracing::error!(%build, %error, "failed to write the build record; the message was returned to the queue");
                give_back(lease, LEDGER_RETRY).await;
            }
        }
    }

    /// Returns when the status of a build was accepted, or was not for a while.
    async fn wait_until_reported(&self, build: BuildId, lease: &Lease) {
        let reported = self.job.notifiers.until_sent(build, STATUS);
        tokio::select! {
            _ = timeout(REPORT_PATIENCE, reported) => {}
            _ = hold_lease(build, lease) => {}
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<BuildId, Attempt>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A build that is worked on, for as long as this lives.
struct Running<'a>(&'a Deliveries, BuildId);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running().remove(&self.1);
    }
}

async fn acknowledge(lease: Lease) -> bool {
    let settled = lease.settle().await;
    if let Err(error) = &settled {
        tracing::error!(%error, "failed to acknowledge a message; its result will be reported again");
    }
    settled.is_ok()
}

async fn give_back(lease: Lease, delay: Duration) {
    if let Err(error) = lease.give_back(delay).await {
        tracing::error!(%error, "failed to return a message; it returns when its lease ends");
    }
}
