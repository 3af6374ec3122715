//! What is left on the engine of builds that are over: found by label, removed as often as need be.

use std::collections::BTreeSet;
use std::time::Duration;

use runner::cleanup::{InUse, Known};
use runner::container::{BUILD_LABEL, COMPOSE_PROJECT_LABEL, KEEP_LABEL, is_named_by_compose};
use runner::engine::{Labelled, Phase};
use runner::{Engine, EngineError, cleanup};
use shared::build::{Build, BuildId, BuildState};
use shared::ledger::Ledger;

/// After this time another worker has seen the end of a build whose message was not acknowledged, if
/// one ever will: it is three times the longest lease.
const SEEN: Duration = Duration::from_secs(15 * 60);
/// After this time another worker has ended a build that this one has lost: its message may wait behind
/// a build of the longest kind.
const TAKEN_OVER: Duration = Duration::from_secs(12 * 60 * 60);

/// Removes what is left of builds that this worker has ended, or has left to another one. What belongs
/// to a build that it does not know may be another service's on the same engine.
///
/// # Errors
/// The engine or the ledger cannot be read; or something cannot be removed yet, as while the engine is
/// still at what a killed worker has asked it for.
pub(super) async fn sweep(
    engine: &Engine,
    ledger: &Ledger,
    keeps_ended: bool,
) -> anyhow::Result<()> {
    let mut failed = 0;
    for id in candidates(engine).await? {
        let Some(build) = ledger.find(id).await? else {
            continue;
        };
        let removed = match remains(&build, keeps_ended) {
            Remains::Needed => continue,
            Remains::Prepared => Ok(cleanup::remove_prepared(engine, id).await?),
            Remains::IdleOnly if runs(engine, id).await? => continue,
            Remains::IdleOnly | Remains::Unneeded => remove(engine, ledger, id).await,
        };
        match removed {
            Ok(()) => tracing::info!(build = %id, "removed what was left of a build"),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(build = %id, %error, "failed to remove what is left of a build");
                failed += 1;
            }
        }
    }
    anyhow::ensure!(failed == 0, "something is left of {failed} builds");
    Ok(())
}

/// Lists the builds that have left objects on the engine, but for those that a person wants to keep.
async fn candidates(engine: &Engine) -> Result<BTreeSet<BuildId>, EngineError> {
    let (containers, checkouts, networks, volumes) = tokio::try_join!(
        engine.containers(&[BUILD_LABEL]),
        engine.volumes(BUILD_LABEL),
        engine.networks(COMPOSE_PROJECT_LABEL),
        engine.volumes(COMPOSE_PROJECT_LABEL),
    )?;
    let builds_own = || containers.iter().chain(&checkouts);
    let is_kept = |object: &&Labelled| object.labels.contains_key(KEEP_LABEL);
    let kept: BTreeSet<_> = builds_own().filter(is_kept).filter_map(built).collect();
    let of_projects = networks.iter().chain(&volumes).filter_map(of_project);
    let mut found: BTreeSet<_> = builds_own().filter_map(built).chain(of_projects).collect();
    found.retain(|build| !kept.contains(build));
    Ok(found)
}

fn built(object: &Labelled) -> Option<BuildId> {
    object.labels.get(BUILD_LABEL)?.parse().ok()
}

/// The build whose compose project an object is of. One with a name of its own is others' to keep once the
/// build has ended.
fn of_project(object: &Labelled) -> Option<BuildId> {
    let project = object.labels.get(COMPOSE_PROJECT_LABEL)?;
    let build = BuildId::of_compose_project(project)?;
    is_named_by_compose(&object.name, project).then_some(build)
}

/// Removes the objects of a build, and the checkout last. Objects that others use are left to them.
///
/// # Errors
/// The engine or the ledger cannot be read; or an object cannot be removed yet.
pub(super) async fn remove(engine: &Engine, ledger: &Ledger, build: BuildId) -> anyhow::Result<()> {
    let mut known = Known::default();
    for object in ledger.objects(build).await? {
        match object.is_theirs {
            true => drop(known.left.insert(object.name)),
            false => known.nameless_volumes.push(object.name),
        }
    }
    let mut in_use = InUse::default();
    let removed = cleanup::remove(engine, build, &known, &mut in_use).await;
    for name in &in_use.theirs {
        tracing::info!(%build, name, "left a network or volume of a build to the containers that use it");
        ledger.object_left(build, name).await?;
    }
    removed?;
    cleanup::remove_checkout(engine, build).await?;
    let names: Vec<_> = in_use.until_unused.into_iter().collect();
    anyhow::ensure!(names.is_empty(), "in use: {}", names.join(", "));
    Ok(())
}

/// Who still needs what there is of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remains {
    /// The build, or a worker that has not seen its end.
    Needed,
    /// Nobody, as long as the hook was not started.
    Prepared,
    /// Nobody, unless it runs.
    IdleOnly,
    /// Nobody.
    Unneeded,
}

/// Decides it by where the build stands.
fn remains(build: &Build, keeps_ended: bool) -> Remains {
    let ago = |time: std::time::SystemTime| time.elapsed().unwrap_or_default();
    match &build.state {
        BuildState::Ended(_) => {
            let ended_ago = build.ended_at.map(ago).unwrap_or_default();
            match keeps_ended && ended_ago <= SEEN {
                true => Remains::Needed,
                false => Remains::Unneeded,
            }
        }
        BuildState::Queued if ago(build.claimed_at) > TAKEN_OVER => Remains::Prepared,
        // The worker that took over did so on another engine, or it would have removed this.
        _ if build.is_elsewhere && ago(build.claimed_at) > TAKEN_OVER => Remains::IdleOnly,
        _ => Remains::Needed,
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
    use std::time::SystemTime;

    use shared::build::samples::running;
    use shared::build::{Outcome, WorkerId};

    use super::*;

    #[test]
    fn remains_of_a_build_go_when_it_is_over() {
        const RECENTLY: Duration = Duration::from_secs(60);
        const LONG_AGO: Duration = Duration::from_secs(60 * 60);
        const TODAY: Duration = Duration::from_secs(13 * 60 * 60);
        let by = WorkerId::random();
        let ended = || BuildState::Ended(Outcome::Passed);
        let started = || BuildState::Started { by };
        for (state, ago, elsewhere, keeps_ended, expected) in [
            (ended(), RECENTLY, false, false, Remains::Unneeded),
            (ended(), RECENTLY, false, true, Remains::Needed),
            (ended(), LONG_AGO, false, true, Remains::Unneeded),
            (BuildState::Queued, LONG_AGO, false, true, Remains::Needed),
            (BuildState::Queued, TODAY, false, true, Remains::Prepared),
            (started(), TODAY, false, true, Remains::Needed),
            (started(), LONG_AGO, true, true, Remains::Needed),
            (started(), TODAY, true, true, Remains::IdleOnly),
        ] {
            let at = SystemTime::now() - ago;
            let build = Build {
                state,
                claimed_at: at,
                ended_at: Some(at),
                is_elsewhere: elsewhere,
                ..running()
            };
            assert_eq!(remains(&build, keeps_ended), expected, "{build:?}");
        }
    }
}
