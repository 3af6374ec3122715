//! What is left on the engine of builds that are over: found by label, removed as often as need be.

use std::collections::BTreeSet;
use std::time::Duration;

use runner::container::{BUILD_LABEL, KEEP_LABEL};
use runner::engine::Phase;
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
    for id in candidates {
        let Some(build) = ledger.find(id).await? else {
            continue;
        };
        let removed = match remains(&build, keeps_ended) {
            Remains::Needed => continue,
            Remains::Prepared => cleanup::remove_prepared(engine, id).await,
            Remains::IdleOnly if runs(engine, id).await? => continue,
            Remains::IdleOnly | Remains::Unneeded => cleanup::remove(engine, id).await,
        };
        match removed {
            Ok(()) => tracing::info!(build = %id, "removed what was left of a build"),
            Err(error) => {
                tracing::warn!(build = %id, %error, "failed to remove what is left of a build");
                failed += 1;
            }
        }
    }
    anyhow::ensure!(failed == 0, "something is left of {failed} builds");
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
