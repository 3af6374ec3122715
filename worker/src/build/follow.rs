//! A build from the start of its hook to an outcome: log → end.

use std::io;
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use shared::build::{BuildId, BuildRequest, CommitSha};
use tokio::sync::SetOnce;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::{Builder, STOP_GRACE, Started};
use crate::container;
use crate::disk::{self, DiskFull};
use crate::engine::{ContainerInfo, EngineError, Output, Phase};
use crate::log::{self, Recorder};
use crate::mask::Masker;
use crate::outcome::{Ending, Outcome};

/// A container's output may end a moment before the container does.
const EXIT_DELAY: Duration = Duration::from_secs(2);
/// How long an engine that went away during a build may take to come back after the build's time is
/// over: until then nobody but the engine can tell how the build goes.
const ENGINE_PATIENCE: Duration = Duration::from_secs(60);
const ENGINE_RETRY: Duration = Duration::from_secs(1);
/// How often it is looked whether a container still runs whose output is listened to: a connection
/// may die without a sign.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// How long the engine may take to hand over a log that is complete.
const LOG_PATIENCE: Duration = Duration::from_secs(5 * 60);

/// The engine's answer that a container has ended.
type Exit = AbortOnDropHandle<Result<(), EngineError>>;

/// How it ended that a hook was listened to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Heard {
    /// The output has ended.
    All,
    /// The container has ended, and its output did not say so.
    Cut,
    /// The hook was stopped at its deadline.
    TimedOut,
    /// The hook was stopped because a disk is full, or there was no room for its log.
    DiskFull(DiskFull),
    /// The hook was stopped because a newer commit makes it pointless.
    Superseded,
}

/// What ends a hook that does not end by itself.
#[derive(Clone, Copy)]
struct Limits<'a> {
    deadline: Instant,
    /// Where there must be room, on the engine's host.
    checkout: &'a Path,
    superseded_by: &'a SetOnce<CommitSha>,
}

impl Builder {
    /// Follows the hook to its end.
    pub(super) async fn follow(
        &self,
        request: &BuildRequest,
        started: Started,
        superseded_by: &SetOnce<CommitSha>,
    ) -> Result<Outcome, String> {
        let path = log::path(&self.data_dir, request.id);
        let outcome = self.follow_to_end(&path, started, superseded_by).await;
        self.keep_longer_log(&path, false);
        match superseded_by.get() {
            // A hook that is stopped may end in any way, but does not come to its own end.
            Some(by) if !outcome.as_ref().is_ok_and(Outcome::is_the_hooks_own) => {
                Ok(Outcome::Superseded { by: by.clone() })
            }
            _ => outcome,
        }
    }

    async fn follow_to_end(
        &self,
        path: &Path,
        started: Started,
        superseded_by: &SetOnce<CommitSha>,
    ) -> Result<Outcome, String> {
        let deadline = self.deadline(started.at);
        let limits = Limits {
            deadline,
            checkout: &started.checkout,
            superseded_by,
        };
        let mut output = started.output;
        let mut from_log = started.from_log;
        loop {
            if from_log {
                self.set_log_aside(path);
            }
            let exit = self.wait_beside(&started.id);
            let recorded = self.record(&started.id, path, &mut output, limits);
            let heard = match recorded.await {
                Ok(heard) => heard,
                Err(error) => return Ok(self.without_log(&started.id, &error).await),
            };
            let cut = heard == Heard::Cut || broke(exit).await;
            let timed_out = heard == Heard::TimedOut;
            match self.ending(&started.id, timed_out, deadline).await {
                Ok(Some(_)) if let Heard::DiskFull(full) = heard => {
                    return Ok(Outcome::error(full.to_string()));
                }
                Ok(Some(ending)) => {
                    if from_log || cut {
                        self.complete_log(&started.id, path).await;
                    } else if !self.has_end_of_log(&started.id, path).await {
                        // On a full disk the engine has less than was heard.
                        self.complete_log(&started.id, path).await;
                        self.keep_longer_log(path, true);
                    }
                    return Ok(self.outcome(ending, &started.checkout).await);
                }
                // The connection to the engine broke, the container did not. The engine's own log
                // has all of it.
                Ok(None) => {
                    output = Box::pin(self.engine.followed_log(&started.id));
                    from_log = true;
                }
                Err(EngineError::NotFound(_)) if !started.is_ours => {
                    return Err("another worker was at work on it as well".to_owned());
                }
                Err(EngineError::NotFound(_)) => {
                    let reason = "the build container was removed by somebody else";
                    return Ok(Outcome::error(reason));
                }
                Err(error) => {
                    tracing::warn!(build = started.id, %error, "lost the engine during a build");
                    let reason = "the Docker engine went away during the build";
                    return Ok(Outcome::error(reason));
                }
            }
        }
    }

    /// What the end of a hook means. A full disk may keep the wrapper from leaving the end mark.
    async fn outcome(&self, ending: Ending, checkout: &Path) -> Outcome {
        if !ending.marked
            && !ending.timed_out
            && let Err(full) = self.housekeeper.check_room(checkout).await
        {
            return Outcome::error(full.to_string());
        }
        Outcome::of(ending, self.hook.timeout, self.hook.memory_bytes)
    }

    /// Waits for the container's end while its output is recorded. An output that breaks off looks
    /// like one that ends; an answer that breaks off does not.
    fn wait_beside(&self, name: &str) -> Exit {
        let (engine, name) = (self.engine.clone(), name.to_owned());
        AbortOnDropHandle::new(tokio::spawn(async move { engine.wait(&name).await }))
    }

    /// Records what the hook writes until it ends, and stops it at its limits. A build whose log did
    /// not fit is not told as if nothing was missing.
    ///
    /// # Errors
    /// The log cannot be written.
    async fn record(
        &self,
        name: &str,
        path: &Path,
        output: &mut impl Output,
        limits: Limits<'_>,
    ) -> io::Result<Heard> {
        let mut recorder = self.recorder(path)?;
        let disk_full = recorder.disk_full();
        let heard = self.drain(name, &mut recorder, output, limits).await;
        finish(recorder, name).await;
        Ok(match heard {
            Heard::All | Heard::Cut if disk_full.is_cancelled() => {
                Heard::DiskFull(DiskFull::of_data_dir())
            }
            heard => heard,
        })
    }

    /// Whether what was recorded ends as what the engine has: a connection that breaks off may look like
    /// an output that ends.
    async fn has_end_of_log(&self, name: &str, path: &Path) -> bool {
        let mut masker = Masker::new(self.secrets.clone());
        let mut end = Vec::new();
        let mut output = pin!(self.engine.end_of_log(name));
        let reading = async {
            while let Some(chunk) = output.next().await {
                masker.push(&chunk?, |bytes| end.extend_from_slice(bytes));
            }
            Ok::<(), EngineError>(())
        };
        let read = timeout(LOG_PATIENCE, reading).await;
        masker.finish(|bytes| end.extend_from_slice(bytes));
        matches!(read, Ok(Ok(()))) && log::ends_with(path, &end).unwrap_or(false)
    }

    /// Records once more the log that was followed while the container ran, now that the engine
    /// has all of it.
    async fn complete_log(&self, name: &str, path: &Path) {
        self.set_log_aside(path);
        let mut recorder = match self.recorder(path) {
            Ok(recorder) => recorder,
            Err(error) => return tracing::warn!(build = name, %error, "the log may lack its end"),
        };
        let mut log = self.engine.whole_log(name);
        match timeout(LOG_PATIENCE, recorder.take(&mut log)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(build = name, %error, "the log is incomplete"),
            Err(_elapsed) => {
                tracing::warn!(build = name, "the log is incomplete: it took too long")
            }
        }
        finish(recorder, name).await;
    }

    fn keep_longer_log(&self, path: &Path, end_was_seen: bool) {
        let limit_bytes = self.hook.log_limit_bytes;
        if let Err(error) = log::keep_longer(path, limit_bytes, end_was_seen) {
            tracing::warn!(?path, %error, "the log may lack its end");
        }
    }

    /// Puts together what an earlier process has stored of a log of which nothing more can be had.
    pub(super) fn close_log(&self, build: BuildId) {
        let path = log::path(&self.data_dir, build);
        self.set_log_aside(&path);
        self.keep_longer_log(&path, false);
    }

    fn set_log_aside(&self, path: &Path) {
        if let Err(error) = log::set_aside(path, self.hook.log_limit_bytes) {
            tracing::warn!(?path, %error, "the log may lose what the engine has lost");
        }
    }

    fn recorder(&self, path: &Path) -> io::Result<Recorder> {
        Recorder::create(path, self.hook.log_limit_bytes, self.secrets.clone())
    }

    /// Takes what the hook writes, as [`Builder::record`] says.
    async fn drain(
        &self,
        name: &str,
        recorder: &mut Recorder,
        output: &mut impl Output,
        limits: Limits<'_>,
    ) -> Heard {
        let log_full = recorder.disk_full();
        let stopped_for = tokio::select! {
            taken = timeout_at(limits.deadline, recorder.take(output)) => match taken {
                Ok(_) => return Heard::All,
                Err(_elapsed) => Heard::TimedOut,
            },
            () = self.ended_unheard(name) => return Heard::Cut,
            full = self.housekeeper.room_ends(limits.checkout) => Heard::DiskFull(full),
            () = log_full.cancelled() => Heard::DiskFull(DiskFull::of_data_dir()),
            _newer = limits.superseded_by.wait() => Heard::Superseded,
        };
        if self.has_ended(name).await {
            return Heard::Cut;
        }
        let last_words = timeout(STOP_GRACE + EXIT_DELAY, recorder.take(output));
        let (stopped, _) = tokio::join!(self.engine.stop(name, STOP_GRACE), last_words);
        if let Err(error) = stopped {
            tracing::warn!(build = name, %error, "a build that has to end cannot be stopped");
        }
        stopped_for
    }

    /// Returns when the container had ended a while ago.
    async fn ended_unheard(&self, name: &str) {
        let mut looks_ended = false;
        loop {
            sleep(LOOK_INTERVAL).await;
            let ended = self.has_ended(name).await;
            if ended && looks_ended {
                return tracing::warn!(build = name, "lost the output of a build that has ended");
            }
            looks_ended = ended;
        }
    }

    async fn has_ended(&self, name: &str) -> bool {
        let found = self.engine.inspect(name).await;
        found.is_ok_and(|container| container.phase == Phase::Exited)
    }

    /// How the container ended; nothing if it still runs.
    async fn ending(
        &self,
        name: &str,
        timed_out: bool,
        deadline: Instant,
    ) -> Result<Option<Ending>, EngineError> {
        let give_up = deadline.max(Instant::now()) + ENGINE_PATIENCE;
        loop {
            match self.inspect_ending(name, timed_out).await {
                Err(EngineError::Gone(_) | EngineError::Failed(_)) if Instant::now() < give_up => {
                    sleep(ENGINE_RETRY).await
                }
                ending => return ending,
            }
        }
    }

    async fn inspect_ending(
        &self,
        name: &str,
        timed_out: bool,
    ) -> Result<Option<Ending>, EngineError> {
        let found = self.engine.inspect(name).await?;
        if found.phase == Phase::Running {
            return Ok(None);
        }
        let mark = container::end_mark(found.exit_code);
        let marked = self.engine.exists(name, &mark).await?;
        // Whoever stopped it may have been killed meanwhile.
        let over_time = !marked && ran_for(&found).is_some_and(|time| time >= self.hook.timeout);
        Ok(Some(Ending {
            marked,
            exit_code: found.exit_code,
            oom_killed: found.oom_killed,
            // A hook that was stopped leaves no mark: this one ended while nobody could see it.
            timed_out: !marked && (timed_out || over_time),
        }))
    }

    /// A build whose log cannot be kept is no build: stops it.
    async fn without_log(&self, name: &str, error: &io::Error) -> Outcome {
        tracing::error!(build = name, %error, "the log cannot be written");
        if let Err(error) = self.engine.stop(name, STOP_GRACE).await {
            tracing::warn!(build = name, %error, "a build without a log cannot be stopped");
        }
        match disk::is_full(error) {
            true => Outcome::error(DiskFull::of_data_dir().to_string()),
            false => Outcome::error("the log of the build cannot be written"),
        }
    }

    fn deadline(&self, started_at: SystemTime) -> Instant {
        let ran_for = started_at.elapsed().unwrap_or_default();
        Instant::now() + self.hook.timeout.saturating_sub(ran_for)
    }
}

/// By the engine's clock.
fn ran_for(ended: &ContainerInfo) -> Option<Duration> {
    ended.finished_at?.duration_since(ended.started_at?).ok()
}

/// Whether the engine could not be listened to until the container ended.
async fn broke(exit: Exit) -> bool {
    let answer = timeout(EXIT_DELAY, exit).await;
    matches!(answer, Ok(Ok(Err(EngineError::Gone(_)))))
}

async fn finish(recorder: Recorder, name: &str) {
    if let Err(error) = recorder.finish().await {
        tracing::warn!(build = name, %error, "the log is incomplete");
    }
}
