//! A build until it has a container: made for it, or left by an earlier run.

use std::time::SystemTime;

use shared::build::BuildError;
use uuid::Uuid;

use crate::container::{self, Spec};
use crate::engine::{Engine, EngineError, Input, Output, Phase};
use crate::log::Log;
use crate::obstacle::Obstacle;
use crate::stop::Stop;

/// How often a container is made that somebody removes before it runs.
const TRIES: u32 = 5;

/// The container of a build.
pub(crate) enum Container {
    /// Made for it, and empty.
    Waiting(Waiting),
    /// Left by an earlier run.
    Begun(Begun),
}

/// A container that runs and waits for its go.
pub(crate) struct Waiting {
    /// The container's id: another one may have its name by now.
    pub(crate) id: String,
    /// Takes the go. Without it the container ends.
    pub(crate) input: Input,
    /// The output from its first byte.
    pub(crate) output: Output,
    /// See [`container::end_proof`].
    pub(crate) end_proof: Option<String>,
}

/// A container whose hook has begun, and may have ended.
pub(crate) struct Begun {
    /// The container's id: another one may have its name by now.
    pub(crate) id: String,
    /// When the hook began.
    pub(crate) at: SystemTime,
    /// The output from its first byte; nothing if this run did not start the hook.
    pub(crate) output: Option<Output>,
    /// See [`container::end_proof`].
    pub(crate) end_proof: Option<String>,
}

/// Makes the volume and the container and starts it, or finds the container that an earlier run has left.
/// One whose hook has not begun is replaced, and so is one that somebody removes.
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
    for _ in 0..TRIES {
        match make(engine, spec).await {
            Ok(waiting) => return Ok(Container::Waiting(waiting)),
            Err(Unmade::Removed) => {}
            Err(Unmade::NameTaken) => {
                if let Some(begun) = adopt(engine, spec).await? {
                    return Ok(Container::Begun(begun));
                }
            }
            Err(Unmade::Obstacle(obstacle)) => return Err(obstacle),
        }
    }
    Err(Obstacle::Transient(
        "somebody else makes or removes containers of this build as well".to_owned(),
    ))
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

/// Why there is no new container.
enum Unmade {
    /// One of this name is there.
    NameTaken,
    /// Somebody removed it before it ran, as a prune does.
    Removed,
    /// The engine does not do it.
    Obstacle(Obstacle),
}

/// Makes the volume and the container, and starts it. Attached before the start, so that not a byte is
/// missing.
async fn make(engine: &Engine, spec: &Spec) -> Result<Waiting, Unmade> {
    let no = |error: EngineError| Unmade::Obstacle(error.into());
    let removed = |error: EngineError| match error {
        EngineError::NotFound(_) => Unmade::Removed,
        error => no(error),
    };
    let volume = container::volume_name(spec.request.id);
    let checkout = engine.create_volume(&volume, spec.labels());
    let checkout = checkout.await.map_err(no)?;
    let nonce = Uuid::new_v4();
    let body = container::create_body(spec, &checkout, nonce);
    let created = engine.create_container(&spec.container_name(), body).await;
    let id = created.map_err(|error| match error {
        EngineError::Conflict(_) => Unmade::NameTaken,
        EngineError::NotFound(_) => Unmade::Obstacle(Obstacle::NoImage),
        error => no(error),
    })?;
    let (input, output) = engine.attach(&id).await.map_err(removed)?;
    engine.start(&id).await.map_err(removed)?;
    Ok(Waiting {
        id,
        input,
        output,
        end_proof: Some(container::end_proof(nonce)),
    })
}

/// Takes over the container that an earlier run started under this name; nothing if its hook has not
/// begun: then it is removed.
async fn adopt(engine: &Engine, spec: &Spec) -> Result<Option<Begun>, Obstacle> {
    let name = spec.container_name();
    let found = match engine.inspect(&name).await {
        Err(EngineError::NotFound(_)) => return Ok(None),
        found => found?,
    };
    if !container::is_of(spec.request.id, &found.labels) {
        return Err(Obstacle::Final(BuildError::NameTaken { name }));
    }
    let Some(at) = container::began_at(engine, &found).await? else {
        if spec.may_have_begun && !spec.hook.rerun_interrupted {
            return Err(Obstacle::NotBegun);
        }
        // By id: another worker may have made one anew in this moment.
        engine.remove_idle_container(&found.id).await?;
        return Ok(None);
    };
    if found.phase == Phase::Created {
        // An engine that was killed while it started a container takes it for one that never was.
        if !spec.hook.rerun_interrupted {
            return Err(Obstacle::Final(BuildError::EngineKilled));
        }
        engine.remove_idle_container(&found.id).await?;
        return Ok(None);
    }
    tracing::info!(build = name, "going on with a build that was left running");
    Ok(Some(Begun {
        at,
        output: None,
        end_proof: container::nonce(&found).map(container::end_proof),
        id: found.id,
    }))
}
