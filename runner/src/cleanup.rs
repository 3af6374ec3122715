//! Removes the objects of a build from the engine: by label, in any state, as often as need be.

use futures_util::future::try_join_all;
use shared::build::BuildId;

use crate::container::{self, COMPOSE_CONTAINER_LABEL, COMPOSE_PROJECT_LABEL, KEEP_LABEL};
use crate::engine::{Engine, EngineError, Phase};

/// Removes the container, the compose project's containers, networks, volumes and images, and the
/// checkout. The checkout's volume goes last: while it is there, garbage collection finds the build. All
/// objects of a build with `GARBAGE_COLLECT=0` stay.
///
/// # Errors
/// The engine does not answer, or something is still in use; what could be removed is gone.
pub async fn remove(engine: &Engine, build: BuildId) -> Result<(), EngineError> {
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
    remove_compose_project(engine, &build.compose_project()).await?;
    engine.remove_volume(&container::volume_name(build)).await
}

/// Removes what was prepared for a build that has not begun. If another worker on this engine has begun
/// it, its hook is in no danger: what was started stays, and so does a checkout that a container mounts.
///
/// # Errors
/// The engine does not answer, or refuses because something is in use.
pub async fn remove_prepared(engine: &Engine, build: BuildId) -> Result<(), EngineError> {
    match engine.inspect(&build.to_string()).await {
        Ok(container) if !container::is_of(build, &container.labels) => {}
        Ok(container) if container.phase == Phase::Created => {
            engine.remove_idle_container(&container.id).await?;
        }
        Ok(_) => return Ok(()),
        Err(EngineError::NotFound(_)) => {}
        Err(error) => return Err(error),
    }
    engine.remove_volume(&container::volume_name(build)).await
}

async fn remove_compose_project(engine: &Engine, project: &str) -> Result<(), EngineError> {
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
            .map(|one| engine.remove_container(&one.name)),
    )
    .await?;
    let networks = try_join_all(networks.iter().map(|one| engine.remove_network(&one.name)));
    let volumes = try_join_all(volumes.iter().map(|one| engine.remove_volume(&one.name)));
    // An image that has a name of its own, such as one to be pushed, is the hook's to keep.
    let images = images
        .iter()
        .filter(|tag| container::is_named_by_compose(tag, project));
    let images = try_join_all(images.map(|tag| engine.remove_unused_image(tag)));
    tokio::try_join!(networks, volumes, images).map(drop)
}
