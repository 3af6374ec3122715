//! One delivery: worked on while its lease is kept alive, then settled or given back.

use std::time::Duration;

use shared::build::{BuildId, BuildRequest};
use shared::queue::{Delivery, Lease, MAX_RECEIVES, Queue};

use crate::hold::{Lost, Turns, keep_alive, resume};
use crate::job::{Job, Receipt, Verdict};
use crate::record::RecordError;

/// How long to leave a message alone after the records failed.
const RECORDS_RETRY: Duration = Duration::from_secs(5);
/// A dead letter that cannot be read is told again after this time: the longest that SQS allows.
const UNREADABLE_DELAY: Duration = Duration::from_secs(12 * 60 * 60);

/// Takes deliveries. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct Deliveries {
    job: Job,
    turns: Turns,
}

/// Where a delivery comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Origin {
    Queue,
    DeadLetters,
}

/// What to do about a build.
#[derive(Debug, Clone, Copy)]
enum Task {
    Build,
    GiveUp,
}

impl Deliveries {
    pub(crate) fn new(job: Job) -> Self {
        Self {
            job,
            turns: Turns::default(),
        }
    }

    /// Works on one delivery, and settles it or gives it back.
    pub(crate) async fn take(&self, delivery: Delivery, origin: Origin) {
        let Delivery {
            message,
            receives,
            lease,
        } = delivery;
        let message = match message {
            Ok(message) => message,
            Err(error) => {
                tracing::error!(%error, ?origin, "cannot read a message; left for somebody to look at");
                return give_back(lease, origin.delay_of_unreadable()).await;
            }
        };
        let (task, receives) = match origin {
            Origin::Queue => (Task::Build, receives),
            Origin::DeadLetters => (Task::GiveUp, receives.max(MAX_RECEIVES)),
        };
        self.work(message.request(), lease, task, receives).await;
    }

    /// The builds that an earlier process of this worker held when it ended, and their leases.
    pub(crate) async fn held(&self, queue: &Queue) -> Vec<(BuildRequest, Lease)> {
        let held = self.job.records.held().await.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read which builds were held");
            Vec::new()
        });
        let resumed = |(request, token): (_, String)| Some((request, queue.resume(&token)?));
        held.into_iter().filter_map(resumed).collect()
    }

    /// Goes on with a build that an earlier process held, unless its lease has ended: then the
    /// message comes back by itself. One that it has not even claimed waits for its turn again.
    pub(crate) async fn go_on(&self, request: &BuildRequest, lease: Lease) {
        let build = request.id;
        match resume(build, |time| lease.extend(time)).await {
            Ok(()) if self.job.has_begun(build).await => {
                // What has begun is not given up: how often it was received does not matter.
                self.work(request, lease, Task::Build, 1).await;
            }
            Ok(()) => self.give_back(build, lease, Duration::ZERO).await,
            Err(error) => {
                tracing::warn!(%build, %error, "cannot go on with a build that was held");
                self.note(build, self.job.records.lose(build)).await;
            }
        }
    }

    async fn work(&self, request: &BuildRequest, lease: Lease, task: Task, receives: u32) {
        let build = request.id;
        let receipt = Receipt {
            receives,
            message_id: lease.message_id().map(str::to_owned),
        };
        let verdict = tokio::select! {
            verdict = self.verdict(request, lease.token(), task, &receipt) => verdict,
            lost = keep_alive(build, |time| lease.extend(time)) => return self.lose(build, lost).await,
        };
        let settled = match verdict {
            Ok(Verdict::Settle) => settle(lease).await,
            Ok(Verdict::Leave) => {
                settle(lease).await;
                return self.note(build, self.job.records.leave_lease(build)).await;
            }
            Ok(Verdict::GiveBack(delay)) => return self.give_back(build, lease, delay).await,
            Err(error) => {
                tracing::error!(%build, %error, "cannot keep records");
                return self.give_back(build, lease, RECORDS_RETRY).await;
            }
        };
        // What is not settled may come to another worker on this engine, which has to see how the
        // build ended; the sweep removes it later.
        if settled {
            self.note(build, self.job.records.let_go(build)).await;
            self.job.clean_up(build).await;
        }
    }

    async fn verdict(
        &self,
        request: &BuildRequest,
        token: Option<String>,
        task: Task,
        receipt: &Receipt,
    ) -> Result<Verdict, RecordError> {
        let _turn = self.turns.wait_for(request.id).await;
        if let Some(token) = token {
            self.job.records.hold(request.id, token).await?;
        }
        match task {
            Task::Build => self.job.work_on(request, receipt).await,
            Task::GiveUp => {
                let reason = "the worker was interrupted";
                self.job.give_up(request, reason, receipt).await
            }
        }
    }

    /// Leaves a build to whoever holds its lease next. While that is nobody, its hook is stopped,
    /// or it would soon run twice at once; later that would stop the new holder's.
    async fn lose(&self, build: BuildId, lost: Lost) {
        tracing::error!(%build, ?lost, "lost the lease of a build");
        if lost == Lost::Soon {
            self.job.stop(build).await;
        }
        self.note(build, self.job.records.lose(build)).await;
    }

    /// Noted first: at once the message may be received here again.
    async fn give_back(&self, build: BuildId, lease: Lease, delay: Duration) {
        if lease.token().is_some() {
            self.note(build, self.job.records.give_back(build)).await;
        }
        give_back(lease, delay).await;
    }

    async fn note(&self, build: BuildId, noting: impl Future<Output = Result<(), RecordError>>) {
        if let Err(error) = noting.await {
            tracing::error!(%build, %error, "cannot note what became of a lease");
        }
    }
}

impl Origin {
    /// A message that cannot be read becomes a dead letter soon, and is told seldom from then on.
    fn delay_of_unreadable(self) -> Duration {
        match self {
            Self::Queue => Duration::ZERO,
            Self::DeadLetters => UNREADABLE_DELAY,
        }
    }
}

async fn settle(lease: Lease) -> bool {
    let settled = lease.settle().await;
    if let Err(error) = &settled {
        tracing::error!(%error, "cannot settle a message; its result will be reported again");
    }
    settled.is_ok()
}

async fn give_back(lease: Lease, delay: Duration) {
    if let Err(error) = lease.give_back(delay).await {
        tracing::error!(%error, "cannot give a message back; it returns when its lease ends");
    }
}
