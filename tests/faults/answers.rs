//! The engine's answers fail now and then: each fourth is an error, lost, cut or late.

use std::time::Duration;

use fastrand::Rng;
use harness::{EngineProxy, Flaw};
use shared::build::BuildError;

use crate::judge::{Bar, Tally};
use crate::plan::Budget;
use crate::row::Seen;
use crate::world::{Bench, World, log};

/// An answer that is late comes after this time.
const LATE: Duration = Duration::from_secs(2);
/// A build may be tried three times, with 15 and 30 seconds in between.
const DEADLINE: Duration = Duration::from_secs(180);

/// No hook begins twice, and what a status says is true: nothing was interrupted.
pub(crate) async fn fail(bench: &mut Bench, budget: &Budget, mut dice: Rng) -> Seen {
    let flaws = [
        (Flaw::Failed, 10),
        (Flaw::Lost, 4),
        (Flaw::Cut, 4),
        (Flaw::Late(LATE), 4),
    ];
    let each = budget.times(40);
    let engine = bench.engine.connect().await;
    let mut tally = Tally::default();
    let mut met = Vec::new();
    for (flaw, every) in flaws {
        if budget.is_spent() {
            break;
        }
        let world = World::new().await;
        let proxy = EngineProxy::to(bench.engine.socket());
        let setup = world.setup(bench).env("DOCKER_HOST", proxy.docker_host());
        let mut service = setup.env("CONCURRENCY", "8").start().await;
        proxy.spoil(flaw, every);
        let mut builds = Vec::new();
        for _ in 0..each {
            let commit = world.commit(dice.u8(0..4));
            builds.push(world.push(&service, commit).await);
        }
        for build in &builds {
            world.github.wait_for_end(&build.commit.sha, DEADLINE).await;
        }
        met.push(format!("{} × {flaw:?}", proxy.spoiled()));
        proxy.open();
        Tally::nothing_is_left(&engine, &builds).await;
        service.stop(DEADLINE).await;
        for build in &builds {
            let log = log(&service, &build.id);
            let bar = Bar::RESULT.or_error(|error| matches!(error, BuildError::GaveUp { .. }));
            tally.judge(&world, &bench.hooks, &service, (build, &log), bar);
            let statuses = world.github.statuses(&build.commit.sha);
            let words = statuses.last().and_then(|last| last.description.clone());
            let words = words.unwrap_or_default();
            if words.is_empty() || words.contains("interrupted") || words.ends_with("()") {
                tally.problem(format!("{} was told {words:?}", build.id));
            }
        }
    }
    let did = format!("builds ({})", met.join(", "));
    Seen::of(tally.builds(), flaws.len() * each, did, tally)
}
