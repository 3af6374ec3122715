//! A build until it has a container: made for it, or left by an earlier run.

use std::time::SystemTime;

use shared::build::BuildError;

use crate::container::{self, Spec};
use crate::engine::{Engine, EngineError, Output, Phase};
use crate::log::Log;
use crate::obstacle::Obstacle;
use crate::stop::Stop;

/// The container of a build.
pub(crate) enum Container {
    /// Made for it, and empty.
    New {
        /// The container's id: another one may have its name by now.
        id: String,
    },
    /// Left by an earlier run.
    Begun(Begun),
}

/// A container whose hook has begun, and may have ended.
pub(crate) struct Begun {
    /// The container's id: another one may have its name by now.
    pub(crate) id: String,
    /// When the hook was started.
    pub(crate) at: SystemTime,
    /// The output from its first byte; nothing if this run did not start the hook.
    pub(crate) output: Option<Output>,
}

/// Makes the volume and the container, or finds the container that an earlier run has left. One that
/// never started is replaced.
///
/// # Errors
/// The hook was started before, and may not be started again; or the engine does not do it.
pub(crate) async fn create(
    engine: &Engine,
    spec: &Spec,
    log: &Log<'_>,
    stop: &Stop,
) -> Result<Container, Obstacle> {
    check_not_over(engine, spec, log, stop).await?;
    if let Some(id) = make(engine, spec).await? {
        return Ok(Container::New { id });
    }
    if let Some(begun) = adopt(engine, spec).await? {
        return Ok(Container::Begun(begun));
    }
    match make(engine, spec).await? {
        Some(id) => Ok(Container::New { id }),
        None => Err(Obstacle::Transient(
            "another worker builds it as well".to_owned(),
        )),
    }
}

/// Refuses to make a container for a build that is over: its hook was started, and the container is
/// gone that would tell the hook's end; or it is to end anyway, and nothing of it runs.
async fn check_not_over(
    engine: &Engine,
    spec: &Spec,
    log: &Log<'_>,
    stop: &Stop,
) -> Result<(), Obstacle> {
    let must_be_there = spec.may_have_begun && !spec.hook.rerun_interrupted;
    if !must_be_there && stop.reason().is_none() {
        return Ok(());
    }
    match (engine.inspect(&spec.container_name()).await, stop.reason()) {
        (Err(EngineError::NotFound(_)), _) if must_be_there => {
            log.close();
            Err(Obstacle::Final(BuildError::ContainerGone))
        }
        (Err(EngineError::NotFound(_)), Some(reason)) => Err(Obstacle::Stopped(reason.clone())),
        (found, _) => Ok(found.map(drop)?),
    }
}

/// Makes the volume and the container, and returns its id; nothing if a container of this name is
/// there already.
async fn make(engine: &Engine, spec: &Spec) -> Result<Option<String>, Obstacle> {
    let volume = container::volume_name(spec.request.id);
    let checkout = engine.create_volume(&volume, spec.labels()).await?;
    let body = container::create_body(spec, &checkout);
    match engine.create_container(&spec.container_name(), body).await {
        Ok(id) => Ok(Some(id)),
        Err(EngineError::Conflict(_)) => Ok(None),
        Err(EngineError::NotFound(_)) => Err(Obstacle::NoImage),
        Err(error) => Err(error.into()),
    }
}

/// Takes over the container that an earlier run started under this name; nothing if it never started:
/// then it is removed.
async fn adopt(engine: &Engine, spec: &Spec) -> Result<Option<Begun>, Obstacle> {
    let name = spec.container_name();
    let found = engine.inspect(&name).await?;
    if !container::is_of(spec.request.id, &found.labels) {
        return Err(Obstacle::Final(BuildError::NameTaken { name }));
    }
    if found.phase == Phase::Created {
        // An engine that was killed while it started a container takes it for one that never was.
        let has_begun = engine
            .exists(&found.id, &container::begin_mark(&found))
            .await?;
        if has_begun && !spec.hook.rerun_interrupted {
            return Err(Obstacle::Final(BuildError::EngineKilled));
        }
        if spec.may_have_begun && !spec.hook.rerun_interrupted {
            return Err(Obstacle::NotBegun);
        }
        // By id and only while it does not run: another worker may start it in this moment.
        engine.remove_idle_container(&found.id).await?;
        return Ok(None);
    }
    tracing::info!(build = name, "going on with a build that was left running");
    Ok(Some(Begun {
        id: found.id,
        at: found.started_at.unwrap_or_else(SystemTime::now),
        output: None,
    }))
}
