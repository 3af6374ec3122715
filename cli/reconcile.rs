//! Pushes that the webhook has missed are looked for once, or beside a service for as long as it runs.
//! The ledger knows which were built.

use std::convert::Infallible;
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use handler::reconcile::{Findings, Reconciler};
use shared::build::{BuildId, BuildRequest};
use shared::config::{Env, LogConfig, QueueConfig, ReconcileConfig, StoreConfig};
use shared::ledger::{Ledger, Store};
use shared::process::{directory, telemetry};
use shared::queue::Queue;
use tokio::time::sleep;
use worker::Worker;

/// How often a service looks for missed pushes, less up to a quarter.
const INTERVAL: Duration = Duration::from_secs(10 * 60);

/// Looks once, queues what was missed, and tells it on standard output.
///
/// # Errors
/// A setting cannot be used, or not all could be looked at or queued.
pub(crate) async fn once(env: &Env) -> anyhow::Result<()> {
    let log = LogConfig::load(env)?;
    let config = ReconcileConfig::load(env)?;
    let queue = QueueConfig::load(env)?;
    telemetry::init(&log);
    let queue = Queue::open(&queue).await?;
    directory::make_private(&config.data_dir)
        .with_context(|| format!("DATA_DIR: {}", config.data_dir.display()))?;
    let store = match StoreConfig::load(env)? {
        // Workers have tried it: nothing is written there.
        Some(config) => Some(Store::open(&config).await?),
        None => None,
    };
    let ledger = Ledger::with_store(&config.data_dir, store)?;
    let mut lookout = Lookout {
        reconciler: Reconciler::new(&config, queue)?,
        ledger,
    };
    tell(&lookout.look().await)
}

/// Looks for missed pushes for as long as this service runs, if that is wanted.
pub(crate) async fn beside<T>(service: impl Future<Output = T>, lookout: Option<Lookout>) -> T {
    let Some(lookout) = lookout else {
        return service.await;
    };
    tokio::select! {
        result = service => result,
        never = lookout.run() => match never {},
    }
}

/// Looks for missed pushes, and knows which builds were begun.
pub(crate) struct Lookout {
    reconciler: Reconciler,
    ledger: Ledger,
}

impl Lookout {
    /// Prepares one that works beside this worker, if it is wanted.
    ///
    /// # Errors
    /// A setting cannot be used; the message names it.
    pub(crate) fn for_worker(
        config: Option<ReconcileConfig>,
        worker: &Worker,
        queue: &Queue,
    ) -> anyhow::Result<Option<Self>> {
        let lookout = |config| {
            Ok(Self {
                reconciler: Reconciler::new(&config, queue.clone())?,
                ledger: worker.ledger(),
            })
        };
        config.map(lookout).transpose()
    }

    /// Looks now and from time to time. A problem is told once, until there is another or none.
    async fn run(mut self) -> Infallible {
        let mut told = String::new();
        loop {
            let findings = self.look().await;
            let problems = findings.problems();
            if !problems.is_empty() && problems != told {
                tracing::warn!(error = problems, "failed to look for missed pushes");
            }
            tracing::debug!(queued = findings.queued.len(), "looked for missed pushes");
            told = problems;
            sleep(next_look(&findings)).await;
        }
    }

    async fn look(&mut self) -> Findings {
        let known = async |build| Ok(self.ledger.is_known(build).await?);
        self.reconciler.look(known).await
    }
}

/// How long to wait: the forge may ask for more than the usual time.
fn next_look(findings: &Findings) -> Duration {
    let usual = BuildId::random().jittered(INTERVAL);
    usual.max(findings.retry_after().unwrap_or_default())
}

#[expect(clippy::print_stdout, reason = "who calls the command reads it there")]
fn tell(findings: &Findings) -> anyhow::Result<()> {
    print!("{}", render(&findings.queued));
    ensure!(findings.problems.is_empty(), anyhow!(findings.problems()));
    Ok(())
}

/// A line for each push that was queued, and one that counts them.
fn render(queued: &[BuildRequest]) -> String {
    let mut text = String::new();
    for request in queued {
        let BuildRequest {
            id, repo, revision, ..
        } = request;
        let name = request.ref_name().unwrap_or("-");
        let _ = writeln!(text, "queued {id} {repo} {name} {revision}");
    }
    let _ = match queued.len() {
        0 => writeln!(text, "no missed push to queue"),
        1 => writeln!(text, "1 missed push queued"),
        count => writeln!(text, "{count} missed pushes queued"),
    };
    text
}

#[cfg(test)]
mod tests {
    use shared::forge::{ForgeError, LookupError};

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
            let mut findings = Findings::default();
            findings.problems = problems;
            next_look(&findings)
        };
        let hour = Duration::from_secs(3600);
        assert_eq!(after(vec![limited(3600), anyhow!("no queue")]), hour);
        for usual in [after(vec![]), after(vec![limited(1)])] {
            assert!(usual > INTERVAL / 2 && usual <= INTERVAL, "{usual:?}");
        }
    }
}
