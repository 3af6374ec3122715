//! A build until its hook runs: checkout → container, or a container that is there already.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use shared::build::{BuildId, BuildRequest, CommitSha};
use tokio::sync::SetOnce;

use super::{Builder, Started};
use crate::checkout::checkout;
use crate::claim::Claim;
use crate::container::{self, Plan, TARBALL_DIR};
use crate::engine::{EngineError, Phase};
use crate::log;
use crate::outcome::Obstacle;
use crate::registry;

/// A container that was made for a build.
struct Made {
    id: String,
    /// The checkout's path on the engine's host.
    checkout: PathBuf,
}

impl Builder {
    /// Makes a container with the commit in it and starts its hook, or takes over one that is there.
    pub(super) async fn start(
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

    /// Starts a container. Whatever else the engine answers than that there is none, the hook may have
    /// begun: it may be killed at this moment.
    async fn start_hook(&self, build: BuildId, container: &str) -> Result<(), Obstacle> {
        let started = self.engine.start(container).await;
        if let Err(EngineError::NotFound(_)) = started {
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
            Err(EngineError::NotFound(_)) => {
                self.close_log(build);
                Err(interrupted(
                    "the hook was started, and its container is gone",
                ))
            }
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
        if !container::is_of(build, &found.labels) {
            return Err(Obstacle::Permanent(format!(
                "another container is named {name}"
            )));
        }
        if found.phase == Phase::Created {
            if self.ran(&found).await? && !self.hook.rerun_interrupted {
                return Err(interrupted("the Docker engine was killed as it began"));
            }
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
}

/// Why a hook is not started that a newer commit makes pointless.
fn superseded(by: &CommitSha) -> Obstacle {
    Obstacle::Permanent(format!("superseded by {}", by.short()))
}

/// Why a hook is not started that may have done a part of its work.
fn interrupted(why: &str) -> Obstacle {
    Obstacle::Permanent(format!("interrupted: {why}"))
}
