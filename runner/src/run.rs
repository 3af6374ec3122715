//! One build, from a commit to an outcome: create → checkout → before_start → start → follow.
//!
//! Until the hook has started, a failure is an [`Obstacle`] and may be tried again. From then on every
//! end is an [`Outcome`], and the hook is never started a second time: the container's name is the
//! lock, and a container that is there already is adopted.

use std::time::SystemTime;

use shared::build::{BuildError, Outcome, StopReason};

use crate::container::{Spec, begin_mark};
use crate::create::{Begun, Container, create};
use crate::engine::{Engine, EngineError, Output, Phase};
use crate::follow::follow;
use crate::log::{Log, Sink};
use crate::obstacle::Obstacle;
use crate::source::{Source, checkout};
use crate::stop::Stop;

/// Builds a commit, or goes on with a build that an earlier run began, until the hook's end or a
/// request to stop. `before_start` runs after the checkout and before the hook: its effect is durable
/// before the hook has any. It does not run for a build that is adopted.
///
/// # Errors
/// The hook was not started, or its end is not this worker's to tell: see [`Obstacle`].
pub async fn run(
    engine: &Engine,
    spec: &Spec,
    source: Source<'_>,
    sink: &Sink,
    stop: &Stop,
    before_start: impl AsyncFnOnce() -> Result<(), Obstacle>,
) -> Result<Outcome, Obstacle> {
    let log = Log::new(sink, spec.hook.log_limit_bytes, &spec.secrets, stop);
    let building = async {
        let begun = match create(engine, spec, &log, stop).await? {
            Container::Begun(begun) => begun,
            Container::New { id } => {
                let prepared = async {
                    checkout(engine, source, &id).await?;
                    before_start().await?;
                    // Attached before the start, so that not a byte is missing.
                    Ok(engine.attach(&id).await?)
                };
                let output = unless_stopped(stop, prepared).await?;
                start(engine, &log, id, output).await?
            }
        };
        follow(engine, spec, &log, stop, begun).await
    };
    // On the heap: a caller that awaits it among others stays small.
    conclude(Box::pin(building).await, spec, stop)
}

/// Drops the work at a request to stop.
async fn unless_stopped<T>(
    stop: &Stop,
    work: impl Future<Output = Result<T, Obstacle>>,
) -> Result<T, Obstacle> {
    tokio::select! {
        biased;
        reason = stop.requested() => Err(Obstacle::Stopped(reason.clone())),
        worked = work => worked,
    }
}

/// Starts the hook. Even if the engine answers with an error, the hook may have begun.
async fn start(
    engine: &Engine,
    log: &Log<'_>,
    id: String,
    output: Output,
) -> Result<Begun, Obstacle> {
    // That of a hook that ran before, with RERUN_INTERRUPTED=1.
    log.remove().map_err(|error| {
        Obstacle::Transient(format!(
            "failed to remove the log of an earlier run: {error}"
        ))
    })?;
    if let Err(error) = engine.start(&id).await {
        let is_gone = matches!(error, EngineError::NotFound(_));
        let not_begun = is_gone || removed_unbegun(engine, &id).await;
        return Err(match error.into() {
            Obstacle::Transient(why) if not_begun => Obstacle::NotStarted(why),
            obstacle => obstacle,
        });
    }
    Ok(Begun {
        id,
        at: SystemTime::now(),
        output: Some(output),
    })
}

/// Removes a container whose hook has not begun. True if that worked: a start that comes late finds nothing.
async fn removed_unbegun(engine: &Engine, id: &str) -> bool {
    let Ok(found) = engine.inspect(id).await else {
        return false;
    };
    let unmarked = engine.exists(id, &begin_mark(&found)).await;
    let is_created = found.phase == Phase::Created;
    is_created && matches!(unmarked, Ok(false)) && engine.remove_idle_container(id).await.is_ok()
}

/// Decides the end of a build that may have been stopped: the hook's own end counts, and else the
/// reason.
fn conclude(
    built: Result<Outcome, Obstacle>,
    spec: &Spec,
    stop: &Stop,
) -> Result<Outcome, Obstacle> {
    match (built, stop.reason()) {
        (built, None) => built,
        (Ok(own), Some(_)) if own.is_the_hooks_own() => Ok(own),
        // The container's end has been judged by it.
        (Ok(outcome), Some(StopReason::Deadline)) => Ok(outcome),
        (_, Some(reason)) => match reason.clone() {
            StopReason::Deadline => Ok(Outcome::TimedOut {
                timeout_s: spec.hook.timeout.as_secs(),
            }),
            StopReason::Superseded { by } => Ok(Outcome::Superseded { by }),
            StopReason::Cancelled { by } => Ok(Outcome::Cancelled { by }),
            StopReason::DiskFull { lack } => Ok(BuildError::DiskFull(lack).into()),
            reason @ (StopReason::LeaseLost | StopReason::Shutdown) => {
                Err(Obstacle::Stopped(reason))
            }
        },
    }
}
