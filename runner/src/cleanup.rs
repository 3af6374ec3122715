//! Removes the objects of a build from the engine: by label, in any state, as often as need be.

use std::collections::{BTreeSet, HashSet};

use futures_util::future::{join_all, try_join_all};
use shared::build::BuildId;

use crate::container::{
    self, COMPOSE_CONTAINER_LABEL, COMPOSE_PROJECT_LABEL, KEEP_LABEL, is_named_by_compose,
};
use crate::engine::{Engine, EngineError, Labelled};

/// The knowledge about a build's objects that no label of theirs tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// The nameless volumes that containers of the build's compose project used.
    pub nameless_volumes: Vec<String>,
    /// The objects that others used when the build ended. They are not the build's any more.
    pub left: HashSet<String>,
}

/// The objects of a build that containers outside of it use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InUse {
    /// Objects with names of their own: the build has no right to them from now on.
    pub theirs: BTreeSet<String>,
    /// Objects with names that only this build's project has: they go when nobody uses them.
    pub until_unused: BTreeSet<String>,
}

/// Removes the container and the compose project's containers, networks, volumes and images, unless others
/// use them: these are added to `in_use`. The checkout stays: while it is there, garbage collection finds the
/// build. All objects of a build with `GARBAGE_COLLECT=0` stay.
///
/// # Errors
/// The engine does not answer, or refuses; everything that it could remove is gone.
pub async fn remove(
    engine: &Engine,
    build: BuildId,
    known: &Known,
    in_use: &mut InUse,
) -> Result<(), EngineError> {
    match engine.inspect(&build.to_string()).await {
        Ok(container) if container.labels.contains_key(KEEP_LABEL) => return Ok(()),
        // The hook first, or it would go on making things.
        Ok(container) if container::is_of(build, &container.labels) => {
            engine.remove_container(&container.id).await?;
        }
        // Somebody else's has this name.
        Ok(_) | Err(EngineError::NotFound(_)) => {}
        Err(error) => return Err(error),
    }
    remove_compose_project(engine, &build.compose_project(), known, in_use).await
}

/// Removes the checkout, after everything else.
///
/// # Errors
/// The engine does not answer, or a container uses the volume.
pub async fn remove_checkout(engine: &Engine, build: BuildId) -> Result<(), EngineError> {
    match engine.inspect(&build.to_string()).await {
        Ok(container) if container.labels.contains_key(KEEP_LABEL) => Ok(()),
        Ok(_) | Err(EngineError::NotFound(_)) => {
            engine.remove_volume(&container::volume_name(build)).await
        }
        Err(error) => Err(error),
    }
}

/// Removes what was prepared for a build that has not begun. If another worker on this engine has begun
/// it, its hook is in no danger: what was started stays, and so does a checkout that a container mounts.
///
/// # Errors
/// The engine does not answer, or refuses because something is in use.
pub async fn remove_prepared(engine: &Engine, build: BuildId) -> Result<(), EngineError> {
    match engine.inspect(&build.to_string()).await {
        Ok(container) if !container::is_of(build, &container.labels) => {}
        Ok(container) => match container::began_at(engine, &container).await {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => engine.remove_idle_container(&container.id).await?,
            Err(EngineError::NotFound(_)) => {}
            Err(error) => return Err(error),
        },
        Err(EngineError::NotFound(_)) => {}
        Err(error) => return Err(error),
    }
    engine.remove_volume(&container::volume_name(build)).await
}

async fn remove_compose_project(
    engine: &Engine,
    project: &str,
    known: &Known,
    in_use: &mut InUse,
) -> Result<(), EngineError> {
    let label = format!("{COMPOSE_PROJECT_LABEL}={project}");
    // A container has the labels of its image as well, and compose labels images with the project: one
    // that somebody else runs from such an image is theirs.
    let by_compose = [label.as_str(), COMPOSE_CONTAINER_LABEL];
    let (containers, networks, volumes, images) = tokio::try_join!(
        engine.containers(&by_compose),
        engine.networks(&label),
        engine.volumes(&label),
        engine.image_tags(&label),
    )?;
    try_join_all(
        containers
            .iter()
            .map(|one| engine.remove_container(&one.id)),
    )
    .await?;
    let is_ours = |one: &&Labelled| !known.left.contains(&one.name);
    let networks = join_all(
        networks
            .iter()
            .filter(is_ours)
            .map(async |one| (one.name.as_str(), engine.remove_network(&one.id).await)),
    );
    let named = volumes.iter().map(|one| &one.name);
    let volumes: HashSet<&String> = named
        .chain(&known.nameless_volumes)
        .filter(|name| !known.left.contains(*name))
        .collect();
    let volumes = join_all(
        volumes
            .into_iter()
            .map(async |name| (name.as_str(), engine.remove_volume(name).await)),
    );
    // An image that has a name of its own, such as one to be pushed, is the hook's to keep.
    let images = images
        .iter()
        .filter(|tag| is_named_by_compose(tag, project));
    let images = try_join_all(images.map(|tag| engine.remove_unused_image(tag)));
    let (networks, volumes, images) = tokio::join!(networks, volumes, images);

    let mut failed = Ok(());
    for (name, removed) in networks.into_iter().chain(volumes) {
        match removed {
            Ok(()) => {}
            Err(EngineError::Conflict(_)) if is_named_by_compose(name, project) => {
                in_use.until_unused.insert(name.to_owned());
            }
            Err(EngineError::Conflict(_)) => {
                in_use.theirs.insert(name.to_owned());
            }
            Err(error) => failed = Err(error),
        }
    }
    images?;
    failed
}
