//! Pushes that the webhook has missed: found at GitHub, decided on as the webhook would have, and
//! queued, once. The worker's records know which.

use std::convert::Infallible;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, ensure};
use handler::missed::MissedDeliveries;
use shared::build::{BuildId, BuildRequest};
use shared::config::{Env, LogConfig, QueueConfig, ReconcileConfig};
use shared::forge::github::{
    FailureStreak, HookOwner, LookupError, MissedPush, MissedPushes, REMEMBERED,
};
use shared::message::Message;
use shared::process::telemetry;
use shared::queue::Queue;
use tokio::time::sleep;
use worker::Worker;
use worker::record::Records;

use crate::queue;

/// How often a service looks for missed pushes, less up to a quarter.
const INTERVAL: Duration = Duration::from_secs(10 * 60);

/// Knows where to look for missed pushes, what they lead to, and where to queue them.
pub(crate) struct Reconciler {
    missed: MissedPushes,
    webhook: MissedDeliveries,
    records: Records,
    queue: Queue,
}

/// What one look at GitHub came to.
#[derive(Debug, Default)]
struct Findings {
    queued: Vec<BuildRequest>,
    problems: Vec<anyhow::Error>,
}

/// Looks once, queues what was missed, and tells it on standard output.
///
/// # Errors
/// A setting cannot be used, or not all could be looked at or queued.
pub(crate) async fn once(env: &Env) -> anyhow::Result<()> {
    let log = LogConfig::load(env)?;
    let config = ReconcileConfig::load(env)?;
    let queue = QueueConfig::load(env)?;
    telemetry::init(&log);
    let queue = queue::open(&queue).await?;
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("DATA_DIR: {}", config.data_dir.display()))?;
    let records = Records::open(&config.data_dir)?;
    let reconciler = Reconciler::new(&config, records, queue)?;
    reconciler.look().await.tell()
}

/// Looks for missed pushes for as long as this service runs, if that is wanted.
pub(crate) async fn beside<T>(
    service: impl Future<Output = T>,
    reconciler: Option<Reconciler>,
) -> T {
    let Some(reconciler) = reconciler else {
        return service.await;
    };
    tokio::select! {
        result = service => result,
        never = reconciler.run() => match never {},
    }
}

impl Reconciler {
    /// One that works beside this worker, if it is wanted.
    ///
    /// # Errors
    /// A setting cannot be used; the message names it.
    pub(crate) fn for_worker(
        config: Option<ReconcileConfig>,
        worker: &Worker,
        queue: &Queue,
    ) -> anyhow::Result<Option<Self>> {
        let new = |config| Self::new(&config, worker.records(), queue.clone());
        config.map(new).transpose()
    }

    fn new(config: &ReconcileConfig, records: Records, queue: Queue) -> anyhow::Result<Self> {
        Ok(Self {
            missed: MissedPushes::new(&config.lookup)?,
            webhook: MissedDeliveries::new(&config.webhook),
            records,
            queue,
        })
    }

    /// Looks now and from time to time. A problem is told once, until there is another or none.
    async fn run(self) -> Infallible {
        let mut told = String::new();
        loop {
            let findings = self.look().await;
            let problems = findings.problems();
            if !problems.is_empty() && problems != told {
                tracing::warn!(error = problems, "cannot look for missed pushes");
            }
            tracing::debug!(queued = findings.queued.len(), "looked for missed pushes");
            told = problems;
            sleep(findings.next_look()).await;
        }
    }

    async fn look(&self) -> Findings {
        let mut findings = Findings::default();
        let forgotten = SystemTime::now() - REMEMBERED;
        if let Err(error) = self.records.forget_dealt_with(forgotten).await {
            findings.problems.push(error.into());
        }
        for owner in self.missed.owners() {
            if let Err(problem) = self.look_at(owner, &mut findings).await {
                findings.problems.push(problem);
            }
        }
        findings
    }

    async fn look_at(&self, owner: &HookOwner, findings: &mut Findings) -> anyhow::Result<()> {
        let mut streak = FailureStreak::default();
        for push in self.missed.find(owner).await? {
            if self.records.is_dealt_with(self.build(&push)).await? {
                continue;
            }
            let payload = match self.missed.payload(&push).await {
                Ok(payload) => payload,
                Err(error) if streak.failed(&error) => return Err(error.into()),
                Err(error) => {
                    findings.problems.push(error.into());
                    continue;
                }
            };
            streak.succeeded();
            match self.webhook.decide(&push.guid, &payload) {
                Ok(request) => findings.queued.push(self.enqueue(request).await?),
                Err(why) => tracing::info!(delivery = push.guid, %why, "ignored a missed push"),
            }
            self.records.deal_with(self.build(&push)).await?;
        }
        Ok(())
    }

    fn build(&self, push: &MissedPush) -> BuildId {
        self.webhook.build_id(&push.guid)
    }

    async fn enqueue(&self, request: BuildRequest) -> anyhow::Result<BuildRequest> {
        let message = Message::V2(request);
        self.queue.send(&message).await?;
        let request = message.into_request();
        let BuildRequest {
            id, repo, revision, ..
        } = &request;
        tracing::info!(build = %id, %repo, %revision, "queued a missed push");
        Ok(request)
    }
}

impl Findings {
    fn problems(&self) -> String {
        let lines = self.problems.iter().map(|problem| format!("{problem:#}"));
        lines.collect::<Vec<_>>().join("; ")
    }

    /// How long to wait: GitHub may ask for more than the usual time.
    fn next_look(&self) -> Duration {
        let lookups = self
            .problems
            .iter()
            .filter_map(|problem| problem.downcast_ref());
        let asked_for = lookups.filter_map(LookupError::retry_after).max();
        let usual = BuildId::random().jittered(INTERVAL);
        usual.max(asked_for.unwrap_or_default())
    }

    #[expect(clippy::print_stdout, reason = "who calls the command reads it there")]
    fn tell(&self) -> anyhow::Result<()> {
        print!("{}", self.render());
        ensure!(self.problems.is_empty(), anyhow!(self.problems()));
        Ok(())
    }

    /// A line for each push that was queued, and one that counts them.
    fn render(&self) -> String {
        let mut text = String::new();
        for request in &self.queued {
            let BuildRequest {
                id, repo, revision, ..
            } = request;
            let name = request.ref_name().unwrap_or("-");
            let _ = writeln!(text, "queued {id} {repo} {name} {revision}");
        }
        let _ = match self.queued.len() {
            0 => writeln!(text, "no missed push to queue"),
            1 => writeln!(text, "1 missed push queued"),
            count => writeln!(text, "{count} missed pushes queued"),
        };
        text
    }
}

#[cfg(test)]
mod tests {
    use shared::forge::ForgeError;

    use super::*;

    fn limited(seconds: u64) -> anyhow::Error {
        let error = ForgeError::Unavailable {
            what: "the webhooks".to_owned(),
            reason: "it answered 403".to_owned(),
            retry_after: Some(Duration::from_secs(seconds)),
            ambiguous: false,
        };
        LookupError::from(error).into()
    }

    #[test]
    fn the_next_look_is_when_github_wants_it_or_later() {
        let after = |problems| {
            let queued = vec![];
            Findings { queued, problems }.next_look()
        };
        let hour = Duration::from_secs(3600);
        assert_eq!(after(vec![limited(3600), anyhow!("no queue")]), hour);
        for usual in [after(vec![]), after(vec![limited(1)])] {
            assert!(usual > INTERVAL / 2 && usual <= INTERVAL, "{usual:?}");
        }
    }
}
