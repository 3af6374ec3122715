//! One build, from a commit to an outcome: create → checkout → before_start → begin → follow.
//!
//! The container runs from the moment when it is made, and its first process waits for a word on its
//! standard input: the hook begins with that.
//!
//! Until the hook has started, a failure is an [`Obstacle`] and may be tried again. From then on every
//! end is an [`Outcome`], and the hook is never started a second time: the container's name is the
//! lock, and a container that is there already is adopted.

use std::io;
use std::time::{Duration, SystemTime};

use shared::build::{BuildError, Outcome, StopReason};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::container::{self, Spec};
use crate::create::{Begun, Container, Waiting, create};
use crate::engine::Engine;
use crate::follow::follow;
use crate::log::{Log, Sink};
use crate::obstacle::{Ended, Obstacle};
use crate::source::{Source, checkout};
use crate::stop::Stop;

/// A word to a container takes no longer, or the engine hangs.
const GO_DEADLINE: Duration = Duration::from_secs(60);

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
) -> Result<Ended, Obstacle> {
    let log = Log::new(sink, spec.hook.log_limit_bytes, &spec.secrets, stop);
    let building = async {
        let begun = match create(engine, spec, &log, stop).await? {
            Container::Begun(begun) => begun,
            Container::Waiting(waiting) => {
                let prepared = async {
                    checkout(engine, source, &waiting.id).await?;
                    before_start().await
                };
                unless_stopped(stop, prepared).await?;
                begin(engine, &log, waiting).await?
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

/// Tells the hook to begin. Even if the engine answers with an error, it may have begun.
async fn begin(engine: &Engine, log: &Log<'_>, waiting: Waiting) -> Result<Begun, Obstacle> {
    // That of a hook that ran before, with RERUN_INTERRUPTED=1.
    log.remove().map_err(|error| {
        Obstacle::Transient(format!(
            "failed to remove the log of an earlier run: {error}"
        ))
    })?;
    let Waiting {
        id,
        mut input,
        output,
        end_proof,
    } = waiting;
    let told = async {
        input.write_all(b"go\n").await?;
        input.flush().await
    };
    let told = timeout(GO_DEADLINE, told).await.map_err(io::Error::from);
    let output = match told.flatten() {
        Ok(()) => Some(output),
        Err(error) if is_unbegun(engine, &id).await => {
            return Err(Obstacle::NotStarted(format!(
                "the Docker engine did not tell the hook to begin: {error}"
            )));
        }
        Err(_) => None,
    };
    Ok(Begun {
        id,
        at: SystemTime::now(),
        output,
        end_proof,
    })
}

/// Returns true if the hook of a container has not begun, and never will.
async fn is_unbegun(engine: &Engine, id: &str) -> bool {
    let looked = async { container::began_at(engine, &engine.inspect(id).await?).await };
    matches!(looked.await, Ok(None))
}

/// Decides the end of a build that may have been stopped: the hook's own end counts, and else the
/// reason.
fn conclude(built: Result<Ended, Obstacle>, spec: &Spec, stop: &Stop) -> Result<Ended, Obstacle> {
    match (built, stop.reason()) {
        (built, None) => built,
        (Ok(own), Some(_)) if own.outcome.is_the_hooks_own() => Ok(own),
        // The container's end has been judged by it.
        (Ok(ended), Some(StopReason::Deadline)) => Ok(ended),
        (_, Some(reason)) => match reason.clone() {
            StopReason::Deadline => Ok(Outcome::TimedOut {
                timeout_s: spec.hook.timeout.as_secs(),
            }
            .into()),
            StopReason::Superseded { by } => Ok(Outcome::Superseded { by }.into()),
            StopReason::Cancelled { by } => Ok(Outcome::Cancelled { by }.into()),
            StopReason::DiskFull { lack } => Ok(BuildError::DiskFull(lack).into()),
            reason @ (StopReason::LeaseLost | StopReason::Shutdown) => {
                Err(Obstacle::Stopped(reason))
            }
        },
    }
}
