//! Images on the engine that are this CI's: those that the worker pulled, and those that hooks built
//! with compose and whose names newer ones have taken. They are removed when nobody needs them.
//!
//! Images that a hook pulled are not among them. The engine tells that an image was pulled, and not
//! by whom: it may have been a person.

use std::time::{Duration, SystemTime};

use runner::container::{COMPOSE_PROJECT_LABEL, is_named_by_compose};
use runner::engine::NamelessImage;
use runner::{Engine, EngineError};
use shared::build::BuildId;
use shared::ledger::{Ledger, PulledImage};

/// Removes the images that the worker pulled and that no build has used for this time; never
/// `current`, which the next build uses.
///
/// # Errors
/// The engine or the records cannot be read.
pub(super) async fn remove_unused(
    engine: &Engine,
    ledger: &Ledger,
    current: &str,
    kept_for: Duration,
) -> anyhow::Result<()> {
    // It may be known by another name as well.
    let current_id = engine.image_id(current).await?;
    for image in ledger.pulled_images().await? {
        let is_current = image.name == current || Some(&image.id) == current_id.as_ref();
        if is_current || !is_unused(&image, kept_for) {
            continue;
        }
        let name = &image.name;
        let removed = match engine.image_id(name).await? {
            Some(id) if id == image.id => engine.remove_image(name).await,
            // It is gone, or somebody has pulled another one by that name.
            _ => Ok(()),
        };
        match removed {
            Ok(()) => ledger.image_forgotten(name).await?,
            // A container of somebody else's was made from it.
            Err(EngineError::Conflict(_)) => continue,
            Err(error) => {
                tracing::warn!(image = name, %error, "failed to remove an image");
                continue;
            }
        }
        tracing::info!(image = name, "removed an image that no build used any more");
    }
    Ok(())
}

fn is_unused(image: &PulledImage, kept_for: Duration) -> bool {
    let unused_for = SystemTime::now().duration_since(image.used_at);
    unused_for.unwrap_or_default() >= kept_for
}

/// Removes the images that the compose projects of finished builds built, if they have no name, or the one
/// that compose made up and a container still used at the build's end. An image that was made from these
/// later has their label too, and is somebody else's.
///
/// # Errors
/// The engine or the records cannot be read.
pub(super) async fn remove_built(engine: &Engine, ledger: &Ledger) -> anyhow::Result<()> {
    for image in engine.nameless_images(COMPOSE_PROJECT_LABEL).await? {
        let Some(build) = built_by(&image) else {
            continue;
        };
        let made_before = ended(ledger, build)
            .await?
            .is_some_and(|at| image.created_at <= at);
        if !made_before {
            continue;
        }
        match engine.remove_only_image(&image.id).await {
            Ok(()) => tracing::info!(%build, image = image.id, "removed an image without a name"),
            // A container uses it, or a newer image is based on it.
            Err(EngineError::Conflict(_)) => {}
            Err(error) => {
                tracing::warn!(%build, %error, "failed to remove an image without a name")
            }
        }
    }
    for tag in engine.image_tags(COMPOSE_PROJECT_LABEL).await? {
        let Some(build) = named_by(&tag) else {
            continue;
        };
        if ended(ledger, build).await?.is_some()
            && let Err(error) = engine.remove_unused_image(&tag).await
        {
            tracing::warn!(%build, image = tag, %error, "failed to remove an image of a build");
        }
    }
    Ok(())
}

/// The time at which a build ended.
async fn ended(ledger: &Ledger, build: BuildId) -> anyhow::Result<Option<SystemTime>> {
    let known = ledger.find(build).await?;
    Ok(known.and_then(|build| build.ended_at))
}

/// The build for whose compose project compose made this name up.
fn named_by(tag: &str) -> Option<BuildId> {
    let (_, name) = tag.split_once('-')?;
    let build: BuildId = name.split(['-', '_']).next()?.parse().ok()?;
    is_named_by_compose(tag, &build.compose_project()).then_some(build)
}

/// The build whose compose project an image is of.
fn built_by(image: &NamelessImage) -> Option<BuildId> {
    BuildId::of_compose_project(image.labels.get(COMPOSE_PROJECT_LABEL)?)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn an_image_is_kept_while_builds_may_use_it() {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let image = PulledImage {
            name: "app:1".into(),
            id: "sha256:00".into(),
            used_at: SystemTime::now() - 5 * DAY,
        };
        for (kept_for, unused) in [(4 * DAY, true), (6 * DAY, false), (Duration::ZERO, true)] {
            assert_eq!(is_unused(&image, kept_for), unused, "{kept_for:?}");
        }
    }

    #[test]
    fn an_image_is_a_builds_only_by_the_label_of_its_project() {
        let build = BuildId::random();
        let of = |project: &str| {
            built_by(&NamelessImage {
                id: "sha256:00".into(),
                labels: HashMap::from([(COMPOSE_PROJECT_LABEL.into(), project.into())]),
                created_at: SystemTime::UNIX_EPOCH,
            })
        };
        assert_eq!(of(&build.compose_project()), Some(build));
        // Uuids with hyphens and somebody's project.
        for other in [&format!("ci-{build}"), "ci-web", "web"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn the_name_that_compose_made_up_tells_the_build() {
        let build = BuildId::random();
        let project = build.compose_project();
        let of = |name: &str| named_by(&format!("{project}{name}:latest"));
        assert_eq!((of("-web"), of("_web")), (Some(build), Some(build)));
        assert_eq!((of("c-web"), of("")), (None, None));
        assert_eq!(named_by("team/app:latest"), None);
    }
}
