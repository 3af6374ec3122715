//! The search for missed pushes as a function on AWS Lambda, which a schedule starts: for where no
//! service runs for ever.

use std::fmt;
use std::time::{Duration, SystemTime};

use anyhow::anyhow;
use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use serde::de::IgnoredAny;
use shared::build::BuildId;
use shared::config::{Env, LogConfig, QueueConfig, ReconcileConfig, StoreConfig};
use shared::ledger::Store;
use shared::process::telemetry;
use shared::queue::Queue;
use tokio::sync::Mutex;

use crate::reconcile::{Findings, Reconciler};

/// What is left of a function's time when a look ends, for its answer.
const MARGIN: Duration = Duration::from_secs(5);

/// Looks at every scheduled event on AWS Lambda where that is what started this process, and
/// otherwise once.
///
/// # Errors
/// A setting cannot be used, not all could be looked at or queued, or the connection to Lambda
/// breaks.
pub async fn run(env: &Env) -> anyhow::Result<()> {
    let log = LogConfig::load(env)?;
    let config = ReconcileConfig::load(env)?;
    let queue = QueueConfig::load_shared(env)?;
    telemetry::init(&log);
    let queue = Queue::open(&queue).await?;
    let store = match StoreConfig::load(env)? {
        Some(config) => Some(Store::open(&config).await?),
        None => None,
    };
    let mut reconciler = Reconciler::new(&config, queue)?;
    if env.is_of_lambda() {
        return serve(reconciler, store).await;
    }
    let findings = reconciler.look(known(store.as_ref())).await;
    result(&findings).map_err(|problems| anyhow!(problems))
}

/// Asks the store whether a build is known, so that its push need not be queued. Without a store only the
/// process itself remembers, which is soon gone: a push that is queued again is the same build.
fn known(store: Option<&Store>) -> impl AsyncFn(BuildId) -> anyhow::Result<bool> {
    async move |build| match store {
        Some(store) => Ok(store.is_known(build).await?),
        None => Ok(false),
    }
}

/// Answers events for as long as Lambda sends them.
async fn serve(reconciler: Reconciler, store: Option<Store>) -> anyhow::Result<()> {
    let function = Mutex::new(Function {
        reconciler,
        store,
        told: String::new(),
    });
    let answer = async |event| function.lock().await.answer(event).await;
    lambda_runtime::run(service_fn(answer))
        .await
        .map_err(|cause| anyhow!(cause))
}

/// A function between two events.
struct Function {
    reconciler: Reconciler,
    store: Option<Store>,
    /// What the last look has told.
    told: String,
}

/// Why a look has failed. Lambda's runtime logs the `Debug` text, which names the problems only once.
struct Failure {
    problems: String,
    is_told: bool,
}

impl Function {
    async fn answer(&mut self, event: LambdaEvent<IgnoredAny>) -> Result<(), Failure> {
        let time_left = event.context.deadline().duration_since(SystemTime::now());
        let time = time_left.unwrap_or_default().saturating_sub(MARGIN);
        let known = known(self.store.as_ref());
        let findings = self.reconciler.look_within(time, known).await;
        let problems = result(&findings).err().unwrap_or_default();
        let is_told = problems == self.told;
        self.told.clone_from(&problems);
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Failure { problems, is_told }),
        }
    }
}

/// Logs the figures; the problems, if there are any, are the error.
fn result(findings: &Findings) -> Result<(), String> {
    tracing::info!(queued = findings.queued.len(), "looked for missed pushes");
    match findings.problems.is_empty() {
        true => Ok(()),
        false => Err(findings.problems()),
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_told {
            true => f.write_str("as at the last look"),
            false => f.write_str(&self.problems),
        }
    }
}

impl From<Failure> for Diagnostic {
    fn from(failure: Failure) -> Self {
        Self {
            error_type: "LookupFailed".to_owned(),
            error_message: failure.problems,
        }
    }
}
