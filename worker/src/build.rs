//! One build, from a commit to an outcome: checkout → container → log → outcome.
//!
//! Until the hook has started, what breaks is an [`Obstacle`] and may be tried again. From then
//! on every end is an [`Outcome`], and the hook is never started a second time: the container's
//! name is the mutex, and a container that is there already is adopted.

mod start;
mod follow;

use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use futures_util::Stream;
use shared::build::{BuildId, BuildRequest, CommitSha};
use shared::config::HookConfig;
use shared::forge::Forge;
use tokio::sync::SetOnce;

use crate::claim::Claim;
use crate::container;
use crate::engine::{ContainerInfo, Engine, EngineError, Phase};
use crate::housekeeping::Housekeeper;
use crate::mask::Secrets;
use crate::outcome::{Obstacle, Outcome};
use crate::record::{Build, Records};

/// What a hook gets between TERM and KILL, as from `docker stop`.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Everything that is the same for all builds.
#[derive(Debug, Clone)]
pub struct Builder {
    /// The engine to build on.
    pub engine: Engine,
    /// Who knows whether there is room.
    pub housekeeper: Housekeeper,
    /// Where the commits come from.
    pub github: Forge,
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

/// Whether the hook of a build was ever started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begun {
    Yes,
    No,
    /// The engine, which knows, does not answer.
    Unknown,
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
        match (started, superseded_by.get()) {
            (Ok(started), _) => {
                let followed = self.follow(request, started, superseded_by).await;
                followed.map_err(Obstacle::Transient)
            }
            (Err(_), Some(by)) => Ok(Outcome::Superseded { by: by.clone() }),
            (Err(Obstacle::Permanent(reason) | Obstacle::DiskFull(reason)), None) => {
                Ok(Outcome::error(reason))
            }
            (Err(obstacle), None) => Err(obstacle),
        }
    }

    /// Whether the hook of a build was ever started. Where its container is gone, the record tells.
    pub(crate) async fn has_begun(&self, build: &Build) -> Begun {
        let noted = build.hook_started && !self.hook.rerun_interrupted;
        match self.begun_in_container(build.request.id).await {
            Ok(Some(true)) => Begun::Yes,
            Ok(Some(false)) => Begun::No,
            Ok(None) if noted => Begun::Yes,
            Ok(None) => Begun::No,
            Err(_) => Begun::Unknown,
        }
    }

    /// Whether there is a container on this engine in which the hook of a build was started.
    ///
    /// # Errors
    /// The engine does not tell.
    pub(crate) async fn is_begun_here(&self, build: BuildId) -> Result<bool, EngineError> {
        Ok(self.begun_in_container(build).await? == Some(true))
    }

    /// Nothing if the build has no container on this engine.
    async fn begun_in_container(&self, build: BuildId) -> Result<Option<bool>, EngineError> {
        match self.engine.inspect(&build.to_string()).await {
            Ok(container) => self.ran(&container).await.map(Some),
            Err(EngineError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the hook in a container has begun. An engine that was killed while it started a
    /// container takes it for one that never was; the hook's mark tells.
    async fn ran(&self, container: &ContainerInfo) -> Result<bool, EngineError> {
        match container.phase {
            Phase::Created => {
                let mark = container::begin_mark();
                self.engine.exists(&container.id, &mark).await
            }
            Phase::Running | Phase::Exited => Ok(true),
        }
    }

    /// Stops the hook of a build, if it runs.
    pub(crate) async fn stop(&self, build: BuildId) {
        match self.engine.stop(&build.to_string(), STOP_GRACE).await {
            Ok(()) | Err(EngineError::NotFound(_)) => {}
            Err(error) => tracing::error!(%build, %error, "a build cannot be stopped"),
        }
    }
}
