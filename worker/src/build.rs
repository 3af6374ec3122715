//! One build, from a commit to an outcome: checkout → container → log → outcome.
//!
//! Until the hook has started, what breaks is an [`Obstacle`] and may be tried again. From then
//! on every end is an [`Outcome`], and the hook is never started a second time: the container's
//! name is the mutex, and a container that is there already is adopted.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use futures_util::Stream;
use shared::build::{BuildId, BuildRequest, CommitSha};
use shared::config::HookConfig;
use shared::github::Github;
use tokio::sync::SetOnce;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::checkout::checkout;
use crate::claim::Claim;
use crate::container::{self, BUILD_LABEL, Plan, TARBALL_DIR};
use crate::disk::{self, DiskFull};
use crate::engine::{ContainerInfo, Engine, EngineError, Output, Phase};
use crate::housekeeping::Housekeeper;
use crate::log::{self, Recorder};
use crate::mask::Secrets;
use crate::outcome::{Ending, Obstacle, Outcome};
use crate::record::{Build, Records};
use crate::registry;

/// What a hook gets between TERM and KILL, as from `docker stop`.
const STOP_GRACE: Duration = Duration::from_secs(10);
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

/// Everything that is the same for all builds.
#[derive(Debug, Clone)]
pub struct Builder {
    /// The engine to build on.
    pub engine: Engine,
    /// Who knows whether there is room.
    pub housekeeper: Housekeeper,
    /// Where the commits come from.
    pub github: Github,
    /// What to run, and its limits.
    pub hook: HookConfig,
    /// The image to run in.
    pub image: String,
    /// The engine's socket on the engine's host.
    pub socket: PathBuf,
    /// Where the logs are kept.
    pub data_dir: PathBuf,
    /// What the logs must not show.
    pub secrets: Secrets,
    /// Where it is noted which hooks were started.
    pub records: Records,
}

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

/// Whether the hook of a build was ever started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begun {
    Yes,
    No,
    /// The engine, which knows, does not answer.
    Unknown,
}

/// A container that was made for a build.
struct Made {
    id: String,
    /// The checkout's path on the engine's host.
    checkout: PathBuf,
}

/// A container whose hook has started, and may have ended.
struct Started {
    /// The container's id: another one may have its name by now.
    id: String,
    at: SystemTime,
    /// The checkout's path on the engine's host.
    checkout: PathBuf,
    output: Pin<Box<dyn Stream<Item = Result<bytes::Bytes, EngineError>> + Send>>,
    /// The output is the engine's log of it, not what it writes.
    from_log: bool,
    /// This worker has started it; else another one on this engine has, and may be at work on it.
    is_ours: bool,
}

impl Builder {
    /// Builds a commit, or goes on with a build that an earlier worker began, until a newer commit
    /// makes that pointless: then the hook is not started, or is stopped. With a claim it is not
    /// started before that is staked.
    ///
    /// # Errors
    /// Infrastructure broke before the hook started, or the build is another worker's.
    pub async fn build(
        &self,
        request: &BuildRequest,
        commit: &CommitSha,
        build_url: Option<&str>,
        superseded_by: &SetOnce<CommitSha>,
        claim: Option<&Claim<'_>>,
    ) -> Result<Outcome, Obstacle> {
        let start = async || {
            let started = self.start(request, commit, build_url, superseded_by, claim);
            started.await
        };
        let mut started = start().await;
        if let Err(Obstacle::DiskFull(reason)) = started {
            tracing::warn!(build = %request.id, reason, "no room for a build; trying to make some");
            self.housekeeper.make_room().await;
            started = start().await;
        }
        let result = match started {
            Ok(started) => {
                let followed = self.follow(request, started, superseded_by).await;
                followed.map_err(Obstacle::Transient)
            }
            Err(Obstacle::Permanent(reason) | Obstacle::DiskFull(reason)) => {
                Ok(Outcome::error(reason))
            }
            Err(obstacle) => Err(obstacle),
        };
        // A hook that is stopped may end in any way.
        match superseded_by.get() {
            Some(by) => Ok(Outcome::Superseded { by: by.clone() }),
            None => result,
        }
    }

    /// Whether the hook of a build was ever started. Where its container is gone, the record tells.
    pub(crate) async fn has_begun(&self, build: &Build) -> Begun {
        let noted = build.hook_started && !self.hook.rerun_interrupted;
        match self.engine.inspect(&build.request.id.to_string()).await {
            Ok(container) if container.phase == Phase::Created => Begun::No,
            Ok(_) => Begun::Yes,
            Err(EngineError::NotFound(_)) if noted => Begun::Yes,
            Err(EngineError::NotFound(_)) => Begun::No,
            Err(_) => Begun::Unknown,
        }
    }

    /// Whether there is a container on this engine in which the hook of a build was started.
    ///
    /// # Errors
    /// The engine does not tell.
    pub(crate) async fn is_begun_here(&self, build: BuildId) -> Result<bool, EngineError> {
        match self.engine.inspect(&build.to_string()).await {
            Ok(container) => Ok(container.phase != Phase::Created),
            Err(EngineError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Stops the hook of a build, if it runs.
    pub(crate) async fn stop(&self, build: BuildId) {
        match self.engine.stop(&build.to_string(), STOP_GRACE).await {
            Ok(()) | Err(EngineError::NotFound(_)) => {}
            Err(error) => tracing::error!(%build, %error, "a build cannot be stopped"),
        }
    }

    async fn start(
        &self,
        request: &BuildRequest,
        commit: &CommitSha,
        build_url: Option<&str>,
        superseded_by: &SetOnce<CommitSha>,
        claim: Option<&Claim<'_>>,
    ) -> Result<Started, Obstacle> {
        let name = request.id.to_string();
        self.check_not_interrupted(request.id).await?;
        let made = match self.make(&name, request, commit, build_url).await? {
            Some(made) => made,
            None => match self.adopt(&name, request.id).await? {
                Some(started) => return Ok(started),
                None => self.make_again(&name, request, commit, build_url).await?,
            },
        };
        let Made { id, checkout: dir } = made;
        self.housekeeper.check_room(&dir).await?;
        // Both wait for a GitHub that is away.
        let prepared = async {
            checkout(&self.engine, &self.github, &request.repo, commit, &id).await?;
            match claim {
                Some(claim) => claim.stake().await,
                None => Ok(()),
            }
        };
        tokio::select! {
            prepared = prepared => prepared?,
            by = superseded_by.wait() => return Err(superseded(by)),
        }
        // Attached before the start, so that not a byte is missing.
        let output = Box::pin(self.engine.attach(&id).await?);
        if let Some(by) = superseded_by.get() {
            return Err(superseded(by));
        }
        // That of a hook that ran before, with RERUN_INTERRUPTED=1.
        log::remove(&self.data_dir, request.id).map_err(|error| {
            Obstacle::Transient(format!(
                "the log of an earlier run cannot be removed: {error}"
            ))
        })?;
        self.records.hook_starts(request.id).await?;
        self.start_hook(request.id, &id).await?;
        Ok(Started {
            id,
            at: SystemTime::now(),
            checkout: dir,
            output,
            from_log: false,
            is_ours: true,
        })
    }

    /// Starts a container. Where the engine answers that it cannot, nothing of the hook has run.
    async fn start_hook(&self, build: BuildId, container: &str) -> Result<(), Obstacle> {
        let started = self.engine.start(container).await;
        if !matches!(started, Ok(()) | Err(EngineError::Gone(_))) {
            self.records.hook_did_not_start(build).await?;
        }
        Ok(started?)
    }

    /// Refuses to run a hook for a second time: it was started, and its container, which would tell
    /// how it ended, is gone.
    async fn check_not_interrupted(&self, build: BuildId) -> Result<(), Obstacle> {
        let known = self.records.find(build).await?;
        if self.hook.rerun_interrupted || !known.is_some_and(|build| build.hook_started) {
            return Ok(());
        }
        match self.engine.inspect(&build.to_string()).await {
            Err(EngineError::NotFound(_)) => Err(Obstacle::Permanent(
                "interrupted: the hook was started, and its container is gone".into(),
            )),
            found => Ok(found.map(drop)?),
        }
    }

    /// Makes the volume and the container; nothing if a container of this name is there already.
    async fn make(
        &self,
        name: &str,
        request: &BuildRequest,
        commit: &CommitSha,
        build_url: Option<&str>,
    ) -> Result<Option<Made>, Obstacle> {
        let labels = container::labels(request.id, !self.hook.garbage_collect);
        let volume = container::volume_name(request.id);
        let checkout = self.engine.create_volume(&volume, labels).await?;
        let plan = Plan {
            request,
            commit,
            image: &self.image,
            checkout: &checkout,
            socket: &self.socket,
            build_url,
        };
        let body = container::create_body(&plan, &self.hook);
        let mut created = self.engine.create_container(name, body.clone()).await;
        if let Err(EngineError::NotFound(_)) = created {
            self.pull().await?;
            created = self.engine.create_container(name, body).await;
        }
        match created {
            Ok(id) => {
                self.records.image_used(&self.image).await?;
                Ok(Some(Made { id, checkout }))
            }
            Err(EngineError::Conflict(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes what was just removed.
    async fn make_again(
        &self,
        name: &str,
        request: &BuildRequest,
        commit: &CommitSha,
        build_url: Option<&str>,
    ) -> Result<Made, Obstacle> {
        let made = self.make(name, request, commit, build_url).await?;
        made.ok_or_else(|| Obstacle::Transient("another worker builds it as well".to_owned()))
    }

    /// Fetches the build image, which is not there, and notes that it is this worker's.
    async fn pull(&self) -> Result<(), Obstacle> {
        let image = &self.image;
        let login = registry::login_for(image, self.hook.registry.as_ref());
        let pulled = self.engine.pull(image, login).await;
        pulled.map_err(|error| match error {
            EngineError::Gone(_) | EngineError::NoSpace(_) => error.into(),
            _ => {
                tracing::warn!(image, error = %error, "the build image cannot be pulled");
                Obstacle::Permanent(format!(
                    "the build image {image} is not there and cannot be pulled"
                ))
            }
        })?;
        if let Some(id) = self.engine.image_id(image).await? {
            self.records.image_pulled(image, id).await?;
        }
        Ok(())
    }

    /// Takes over the container that an earlier worker started under this name; nothing if it
    /// never started, in which case it is removed.
    async fn adopt(&self, name: &str, build: BuildId) -> Result<Option<Started>, Obstacle> {
        let known = self.records.find(build).await?;
        let found = self.engine.inspect(name).await?;
        if found.labels.get(BUILD_LABEL).map(String::as_str) != Some(name) {
            return Err(Obstacle::Permanent(format!(
                "another container is named {name}"
            )));
        }
        if found.phase == Phase::Created {
            self.records.hook_did_not_start(build).await?;
            // By id and only while it does not run: another worker may start it in this moment.
            self.engine.remove_idle_container(&found.id).await?;
            return Ok(None);
        }
        tracing::info!(build = name, "going on with a build that was left running");
        Ok(Some(Started {
            output: Box::pin(self.engine.followed_log(&found.id)),
            id: found.id,
            at: found.started_at.unwrap_or_else(SystemTime::now),
            checkout: found
                .mounts
                .get(Path::new(TARBALL_DIR))
                .cloned()
                .unwrap_or_default(),
            from_log: true,
            is_ours: known.is_some_and(|build| build.hook_started),
        }))
    }

    /// Follows the hook to its end.
    async fn follow(
        &self,
        request: &BuildRequest,
        started: Started,
        superseded_by: &SetOnce<CommitSha>,
    ) -> Result<Outcome, String> {
        let path = log::path(&self.data_dir, request.id);
        let outcome = self.follow_to_end(&path, started, superseded_by).await;
        if let Err(error) = log::keep_longer(&path, self.hook.log_limit_bytes) {
            tracing::warn!(build = %request.id, %error, "the log may lack its end");
        }
        outcome
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
            timed_out: timed_out || over_time,
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

/// Why a hook is not started that a newer commit makes pointless.
fn superseded(by: &CommitSha) -> Obstacle {
    Obstacle::Permanent(format!("superseded by {}", by.short()))
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
