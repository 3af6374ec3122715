//! Removes what a build made: by label, in any state, as often as need be.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::try_join_all;
use shared::build::BuildId;

use crate::container::{
    self, BUILD_LABEL, COMPOSE_CONTAINER_LABEL, COMPOSE_PROJECT_LABEL, KEEP_LABEL,
};
use crate::engine::{Engine, EngineError, Phase};
use crate::record::{LeaseState, Records};

/// After this time another worker has seen the end of a build whose message was not settled, if one
/// ever will: it is three times the longest lease.
const SEEN: Duration = Duration::from_secs(15 * 60);
/// After this time another worker has taken over a build whose lease was lost before its end was
/// known: its message may wait behind a build of the longest kind.
const TAKEN_OVER: Duration = Duration::from_secs(12 * 60 * 60);

/// Removes the container, the compose project's containers, networks, volumes and images, and the
/// checkout. The checkout's volume goes last: while it is there, a sweep finds the build. What a build
/// with `GARBAGE_COLLECT=0` made stays.
///
/// # Errors
/// The engine does not answer, or something is still in use; what could be removed is gone.
pub(crate) async fn remove(engine: &Engine, build: BuildId) -> Result<(), EngineError> {
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

/// Removes what was prepared for a build that is another worker's. If that worker uses this engine, its
/// hook is in no danger: what was started stays, and so does a checkout that a container has mounted.
///
/// # Errors
/// The engine does not answer, or refuses because something is in use.
pub(crate) async fn remove_unused(engine: &Engine, build: BuildId) -> Result<(), EngineError> {
    match engine.inspect(&build.to_string()).await {
        Ok(container) if !container::is_of(build, &container.labels) => {}
        Ok(container) if container.phase == Phase::Created => {
            engine.remove_idle_container(&container.id).await?;
        }
        // That worker uses this engine, and may be about to look how the hook ended.
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

/// Removes what is left of builds that this service has finished, or has lost to another worker.
/// What belongs to a build that it does not know may be another service's on the same engine.
///
/// # Errors
/// The engine or the records cannot be read; or something cannot be removed yet, as while the engine is
/// still at what a killed worker has asked it for.
pub(crate) async fn sweep(engine: &Engine, records: &Records) -> anyhow::Result<()> {
    let mut failed = 0;
    let (containers, volumes) = tokio::try_join!(
        engine.containers(&[BUILD_LABEL]),
        engine.volumes(BUILD_LABEL)
    )?;
    let candidates: BTreeSet<BuildId> = containers
        .iter()
        .chain(&volumes)
        .filter(|object| !object.labels.contains_key(KEEP_LABEL))
        .filter_map(|object| object.labels.get(BUILD_LABEL)?.parse().ok())
        .collect();
    for build in candidates {
        if !is_left_over(engine, records, build).await? {
            continue;
        }
        match remove(engine, build).await {
            Ok(()) => {
                records.let_go(build).await?;
                tracing::info!(%build, "removed what was left of a build");
            }
            Err(error) => {
                tracing::warn!(%build, %error, "cannot remove what is left of a build");
                failed += 1;
            }
        }
    }
    anyhow::ensure!(failed == 0, "something is left of {failed} builds");
    Ok(())
}

/// Whether what there is of a build can be removed.
async fn is_left_over(engine: &Engine, records: &Records, build: BuildId) -> anyhow::Result<bool> {
    let Some(known) = records.find(build).await? else {
        return Ok(false);
    };
    let ended = known.finished.map(|end| end.at.elapsed());
    let ended = ended.map(Result::unwrap_or_default);
    let lease = records.lease(build).await?;
    Ok(nobody_needs(ended, lease, runs(engine, build).await?))
}

/// Decides it by how long ago the build ended, if it has, and by what became of its lease.
fn nobody_needs(ended: Option<Duration>, lease: LeaseState, runs: bool) -> bool {
    match (ended, lease) {
        (Some(_), LeaseState::None) => true,
        // Its message is not settled: another worker on this engine may have to see its end.
        (Some(ago), LeaseState::Held | LeaseState::Lost(_)) => ago > SEEN,
        // The worker that took over did so on another engine, or it would have removed this.
        (None, LeaseState::Lost(ago)) => ago > TAKEN_OVER && !runs,
        (None, LeaseState::None | LeaseState::Held) => false,
    }
}

async fn runs(engine: &Engine, build: BuildId) -> Result<bool, EngineError> {
    match engine.inspect(&build.to_string()).await {
        Ok(container) => Ok(container.phase == Phase::Running),
        Err(EngineError::NotFound(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_worker_may_still_look_at_is_kept() {
        const RECENTLY: Duration = Duration::from_secs(60);
        const LONG_AGO: Duration = Duration::from_secs(60 * 60);
        const TODAY: Duration = Duration::from_secs(13 * 60 * 60);
        for (ended, lease, runs, removed) in [
            (Some(RECENTLY), LeaseState::None, false, true),
            (Some(RECENTLY), LeaseState::Held, false, false),
            (Some(LONG_AGO), LeaseState::Held, false, true),
            (None, LeaseState::None, false, false),
            (None, LeaseState::Held, true, false),
            (None, LeaseState::Lost(RECENTLY), false, false),
            (None, LeaseState::Lost(LONG_AGO), false, false),
            (None, LeaseState::Lost(TODAY), true, false),
            (None, LeaseState::Lost(TODAY), false, true),
        ] {
            let told = format!("{ended:?} {lease:?} {runs}");
            assert_eq!(nobody_needs(ended, lease, runs), removed, "{told}");
        }
    }
}
