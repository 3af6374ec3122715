//! The engine is stopped, killed and suspended while a hook runs on it.

use std::time::Duration;

use fastrand::Rng;
use harness::PrivateEngine;
use shared::build::BuildError;
use tokio::time::sleep;

use crate::hooks::Mark;
use crate::judge::{Bar, Tally};
use crate::plan::Budget;
use crate::row::Seen;
use crate::world::{Bench, DEADLINE, World, log};

/// How long the engine is away at most, besides the time of its start.
const AWAY_MAX_MS: u64 = 3000;
/// How long it is suspended at most: longer than it may take to say that it is there.
const SUSPENDED_MAX_MS: u64 = 15_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Term,
    Kill,
    Stop,
}

/// The final status must come within [`DEADLINE`] of the engine's return.
pub(crate) async fn away(bench: &mut Bench, budget: &Budget, mut dice: Rng) -> Seen {
    let mut signals = [
        vec![Signal::Term; budget.times(15)],
        vec![Signal::Kill; budget.times(15)],
        vec![Signal::Stop; budget.times(5)],
    ]
    .concat();
    dice.shuffle(&mut signals);
    let world = World::new().await;
    let mut service = world.setup(bench).start().await;
    let (mut builds, mut shrunk) = (Vec::new(), 0);
    for signal in &signals {
        if budget.is_spent() {
            break;
        }
        let commit = world.commit(0);
        bench.hooks.hold(&commit.sha);
        let build = world.push(&service, commit).await;
        let sha = &build.commit.sha;
        bench.hooks.wait_for(sha, Mark::Halfway, DEADLINE).await;
        leave(&mut bench.engine, *signal).await;
        let stored_bytes = log(&service, &build.id).len();
        // Some hooks come to their end while nobody can tell.
        if dice.bool() {
            bench.hooks.release(sha);
        }
        come_back(&mut bench.engine, *signal, &mut dice).await;
        bench.hooks.release(sha);
        world.github.wait_for_end(sha, DEADLINE).await;
        shrunk += usize::from(log(&service, &build.id).len() < stored_bytes);
        builds.push(build);
    }
    let engine = bench.engine.connect().await;
    Tally::nothing_is_left(&engine, &builds).await;
    service.stop(DEADLINE).await;
    let mut tally = Tally::default();
    if shrunk > 0 {
        tally.problem(format!("{shrunk} stored logs became shorter"));
    }
    for (build, signal) in builds.iter().zip(&signals) {
        let log = log(&service, &build.id);
        tally.judge(&world, &bench.hooks, &service, (build, &log), signal.bar());
    }
    let count = |kind| {
        signals[..builds.len()]
            .iter()
            .filter(|one| **one == kind)
            .count()
    };
    let did = format!(
        "engines away ({} × TERM, {} × KILL, {} × STOP)",
        count(Signal::Term),
        count(Signal::Kill),
        count(Signal::Stop)
    );
    Seen::of(builds.len(), signals.len(), did, tally)
}

impl Signal {
    /// An engine that is only suspended takes nothing with it. One that ends, or is started again,
    /// stops its hooks, and does not have all that they wrote; what was stored before stays.
    fn bar(self) -> Bar {
        match self {
            Self::Stop => Bar::RESULT,
            Self::Term | Self::Kill => Bar::RESULT.or_error(was_interrupted).without_end_of_log(),
        }
    }
}

async fn leave(engine: &mut PrivateEngine, signal: Signal) {
    match signal {
        Signal::Term => engine.stop().await,
        Signal::Kill => engine.kill().await,
        Signal::Stop => engine.suspend(),
    }
}

async fn come_back(engine: &mut PrivateEngine, signal: Signal, dice: &mut Rng) {
    let away_max_ms = match signal {
        Signal::Stop => SUSPENDED_MAX_MS,
        Signal::Term | Signal::Kill => AWAY_MAX_MS,
    };
    sleep(Duration::from_millis(dice.u64(..away_max_ms))).await;
    match signal {
        Signal::Stop => engine.resume(),
        Signal::Term | Signal::Kill => engine.start_again().await,
    }
}

fn was_interrupted(error: &BuildError) -> bool {
    use BuildError::{ContainerGone, EngineKilled, EngineLost, NoEndMark};
    matches!(
        error,
        ContainerGone | EngineKilled | EngineLost | NoEndMark { .. }
    )
}
