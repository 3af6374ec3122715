//! A build from the start of its hook to an outcome: log → end.

mod ending;

use std::future;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use shared::build::{BuildError, StopReason};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use self::ending::End;
use crate::container::Spec;
use crate::create::Begun;
use crate::engine::{Engine, EngineError, Output, Phase};
use crate::log::{Log, LogError, Recorder};
use crate::obstacle::{Ended, Obstacle};
use crate::stop::Stop;

/// The time that a hook gets between TERM and KILL, as from `docker stop`.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// A container's output may end a moment before the container does.
const EXIT_DELAY: Duration = Duration::from_secs(2);
/// The time after the build's own in which an engine that went away during the build may come back:
/// until then only the engine can tell how the build goes.
const ENGINE_PATIENCE: Duration = Duration::from_secs(60);
const ENGINE_RETRY: Duration = Duration::from_secs(1);
/// The interval of looks at a container whose output is listened to: a connection may die without a
/// sign.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// The time that the engine may take to hand over a log that is complete.
const LOG_PATIENCE: Duration = Duration::from_secs(5 * 60);

/// The engine's answer that a container has ended.
type Exit = AbortOnDropHandle<Result<(), EngineError>>;

/// Follows the hook to its end, or stops it. A build that is not this worker's any more is left.
///
/// # Errors
/// The build is left, or an adopted container is gone that another worker may have removed.
pub(crate) async fn follow(
    engine: &Engine,
    spec: &Spec,
    log: &Log<'_>,
    stop: &Stop,
    begun: Begun,
) -> Result<Ended, Obstacle> {
    let follower = Follower {
        engine,
        spec,
        log,
        stop,
        container: &begun.id,
        end_proof: begun.end_proof.as_deref(),
        began_at: begun.at,
        listened_since: begun.output.is_some().then(Instant::now),
        deadline: deadline(begun.at, spec.hook.timeout),
        is_ours: begun.output.is_some() || spec.may_have_begun,
    };
    tokio::select! {
        biased;
        reason = left(stop) => {
            if reason == StopReason::LeaseLost {
                follower.stop_hook().await;
            }
            log.settle().await;
            Err(Obstacle::Stopped(reason))
        }
        outcome = follower.to_end(begun.output) => {
            log.keep_longer(false);
            outcome
        }
    }
}

/// Waits until the build is not this worker's any more.
async fn left(stop: &Stop) -> StopReason {
    match stop.requested().await {
        reason @ (StopReason::LeaseLost | StopReason::Shutdown) => reason.clone(),
        _ => future::pending().await,
    }
}

fn deadline(began_at: SystemTime, timeout: Duration) -> Instant {
    let ran_for = began_at.elapsed().unwrap_or_default();
    Instant::now() + timeout.saturating_sub(ran_for)
}

/// One container whose hook has begun.
struct Follower<'a> {
    engine: &'a Engine,
    spec: &'a Spec,
    log: &'a Log<'a>,
    stop: &'a Stop,
    /// Its id.
    container: &'a str,
    /// What the log ends with if the hook came to its end by itself, see [`crate::container::end_proof`].
    end_proof: Option<&'a str>,
    /// When the hook began.
    began_at: SystemTime,
    /// The same by this worker's clock, if it was there.
    listened_since: Option<Instant>,
    deadline: Instant,
    /// True if this worker has started the hook; else another one on this engine has, and may be at
    /// work on it.
    is_ours: bool,
}

impl Follower<'_> {
    async fn to_end(&self, mut output: Option<Output>) -> Result<Ended, Obstacle> {
        loop {
            let from_log = output.is_none();
            let mut listened = output.take().unwrap_or_else(|| {
                // The engine's own log has all of it.
                self.log.set_aside();
                self.engine.followed_log(self.container)
            });
            let exit = self.wait_beside();
            let cut = match self.record(&mut listened).await {
                Ok(cut) => cut || broke(exit).await,
                Err(error) => return Ok(self.without_log(error).await),
            };
            match self.ending().await {
                Ok(End::Ended(ending)) => {
                    self.complete_log(from_log || cut).await;
                    return Ok(Ended {
                        outcome: ending.outcome(&self.spec.hook),
                        ran_for: ending.ran_for(),
                    });
                }
                Ok(End::Unbegun { exit_code }) => {
                    return Err(Obstacle::NotStarted(format!(
                        "the build container ended before the hook began (exit code {exit_code})"
                    )));
                }
                // The connection to the engine broke, the container did not.
                Ok(End::Running) => {}
                Err(EngineError::NotFound(_)) if !self.is_ours => {
                    return Err(Obstacle::Transient(
                        "another worker was at work on it as well".to_owned(),
                    ));
                }
                Err(EngineError::NotFound(_)) => return Ok(BuildError::ContainerRemoved.into()),
                Err(error) => {
                    tracing::warn!(build = %self.spec.request.id, %error, "lost the engine during a build");
                    return Ok(BuildError::EngineLost.into());
                }
            }
        }
    }

    /// Waits for the container's end while its output is recorded. An output that breaks off looks
    /// like one that ends; an answer that breaks off does not.
    fn wait_beside(&self) -> Exit {
        let (engine, container) = (self.engine.clone(), self.container.to_owned());
        AbortOnDropHandle::new(tokio::spawn(async move { engine.wait(&container).await }))
    }

    /// Records the hook's output until it ends, and stops the hook when it must. Returns true if the
    /// container has ended and its output did not say so.
    ///
    /// # Errors
    /// The log cannot be begun, or did not fit on its disk: the build is not reported as if nothing
    /// was missing.
    async fn record(&self, output: &mut Output) -> Result<bool, LogError> {
        let mut recorder = self.log.record(self.end_proof)?;
        let cut = self.drain(&mut recorder, output).await;
        match recorder.finish().await {
            Ok(()) => Ok(cut),
            Err(full @ LogError::DiskFull(_)) => Err(full),
            Err(error) => {
                tracing::warn!(build = %self.spec.request.id, %error, "the log is incomplete");
                Ok(cut)
            }
        }
    }

    async fn drain(&self, recorder: &mut Recorder, output: &mut Output) -> bool {
        let reason = tokio::select! {
            _ = recorder.take(output) => return false,
            () = self.ended_unheard() => return true,
            () = sleep_until(self.deadline) => StopReason::Deadline,
            reason = self.stop.requested() => reason.clone(),
        };
        if self.has_ended().await {
            return true;
        }
        self.stop.request(reason);
        let last_words = timeout(STOP_GRACE + EXIT_DELAY, recorder.take(output));
        let _ = tokio::join!(self.stop_hook(), last_words);
        false
    }

    async fn stop_hook(&self) {
        match self.engine.stop(self.container, STOP_GRACE).await {
            Ok(()) | Err(EngineError::NotFound(_)) => {}
            Err(error) => {
                tracing::error!(build = %self.spec.request.id, %error, "failed to stop a hook that must end")
            }
        }
    }

    /// Returns when the container had ended a while ago.
    async fn ended_unheard(&self) {
        let mut looks_ended = false;
        loop {
            sleep(LOOK_INTERVAL).await;
            let ended = self.has_ended().await;
            if ended && looks_ended {
                return tracing::warn!(
                    build = %self.spec.request.id,
                    "lost the output of a build that has ended"
                );
            }
            looks_ended = ended;
        }
    }

    async fn has_ended(&self) -> bool {
        let found = self.engine.inspect(self.container).await;
        found.is_ok_and(|container| container.phase == Phase::Exited)
    }

    /// Finds out how the container ended.
    async fn ending(&self) -> Result<End, EngineError> {
        let give_up = self.deadline.max(Instant::now()) + ENGINE_PATIENCE;
        loop {
            match End::of(self).await {
                Err(EngineError::Gone(_) | EngineError::Failed(_)) if Instant::now() < give_up => {
                    sleep(ENGINE_RETRY).await
                }
                end => return end,
            }
        }
    }

    /// Stops a build whose log cannot be kept: it is no build.
    async fn without_log(&self, error: LogError) -> Ended {
        tracing::error!(build = %self.spec.request.id, %error, "the log cannot be written");
        self.stop_hook().await;
        BuildError::from(error).into()
    }

    /// Records the engine's copy of the log, if the recording may lack its end: it has no proof of it. On a
    /// full disk nothing more is written.
    async fn complete_log(&self, may_lack_end: bool) {
        let is_full = matches!(self.stop.reason(), Some(StopReason::DiskFull { .. }));
        if is_full || self.log.end_code().is_some() {
            return;
        }
        if may_lack_end {
            self.record_whole_log().await;
        } else if !self.has_end_of_log().await {
            // On a full disk the engine has less than was heard.
            self.record_whole_log().await;
            self.log.keep_longer(true);
        }
    }

    /// Compares the end of the recording with the engine's copy: a connection that breaks off may look
    /// like an output that ends.
    async fn has_end_of_log(&self) -> bool {
        let mut masker = self.log.masker();
        let mut end = Vec::new();
        let mut output = self.engine.end_of_log(self.container);
        let reading = async {
            while let Some(chunk) = output.next().await {
                masker.push(&chunk?, |bytes| end.extend_from_slice(bytes));
            }
            Ok::<(), EngineError>(())
        };
        let read = timeout(LOG_PATIENCE, reading).await;
        masker.finish(|bytes| end.extend_from_slice(bytes));
        matches!(read, Ok(Ok(()))) && self.log.ends_with(&end)
    }

    /// Records once more the log that was followed while the container ran, now that the engine
    /// has all of it.
    async fn record_whole_log(&self) {
        let incomplete = |cause: &dyn std::fmt::Display| {
            tracing::warn!(build = %self.spec.request.id, %cause, "the log is incomplete");
        };
        self.log.set_aside();
        let mut recorder = match self.log.record(self.end_proof) {
            Ok(recorder) => recorder,
            Err(error) => return incomplete(&error),
        };
        let mut log = self.engine.whole_log(self.container);
        match timeout(LOG_PATIENCE, recorder.take(&mut log)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => incomplete(&error),
            Err(_elapsed) => incomplete(&"the engine took too long"),
        }
        if let Err(error) = recorder.finish().await {
            incomplete(&error);
        }
    }
}

/// Answers whether the engine could not be listened to until the container ended.
async fn broke(exit: Exit) -> bool {
    let answer = timeout(EXIT_DELAY, exit).await;
    matches!(answer, Ok(Ok(Err(EngineError::Gone(_)))))
}
