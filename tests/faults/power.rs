//! The power goes off: what was not asked to reach the disk is gone.

use fastrand::Rng;
use harness::{OneBox, SmallDisk};

use crate::hooks::{Hooks, Mark};
use crate::judge::{Bar, Tally};
use crate::plan::Budget;
use crate::recorded::{Unsent, builds};
use crate::row::Seen;
use crate::world::{Bench, Build, DEADLINE, World, log};

/// What had been done when the power went off, and must be known when it is back.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Accepted,
    HookBegan,
    Told,
}

/// Each thing that was done to the outside is on the disk before, and the service goes on with what
/// is on the disk. The engine, which is on another machine, keeps its power.
pub(crate) async fn cut(bench: &mut Bench, budget: &Budget, mut dice: Rng) -> Seen {
    let mut deeds = [Deed::Accepted, Deed::HookBegan, Deed::Told].repeat(budget.times(10));
    dice.shuffle(&mut deeds);
    let world = World::new().await;
    let disk = SmallDisk::mount();
    let data_dir = disk.path().display().to_string();
    let setup = world.setup(bench).env("DATA_DIR", data_dir);
    let mut service = setup.env("DISK_FREE_MIN", "0").start().await;
    let (mut survivors, mut tally) = (Vec::new(), Tally::default());
    let (mut cuts, mut unsent) = (0, Unsent::default());
    for deed in &deeds {
        if budget.is_spent() {
            break;
        }
        let commit = world.commit(0);
        bench.hooks.hold(&commit.sha);
        let build = world.push(&service, commit).await;
        deed.is_done(&world, &bench.hooks, &build).await;
        service.kill();
        disk.lose_power();
        cuts += 1;
        let is_known = deed.is_known_to(&service, &build);
        unsent.look_at(&service);
        service.start_again().await;
        bench.hooks.release(&build.commit.sha);
        if is_known {
            world.github.wait_for_end(&build.commit.sha, DEADLINE).await;
            survivors.push(build);
        } else {
            service.leave_unfinished();
            tally.problem(format!("{}: {deed:?} is not on the disk", build.id));
        }
    }
    let engine = bench.engine.connect().await;
    Tally::nothing_is_left(&engine, &survivors).await;
    service.stop(DEADLINE).await;
    // Their logs have outlived the cuts that came after them, too.
    for build in &survivors {
        let log = log(&service, &build.id);
        let bar = Bar::RESULT.or_told_again(unsent.has_result_of(build));
        tally.judge(&world, &bench.hooks, &service, (build, &log), bar);
    }
    Seen::of(cuts, deeds.len(), "power cuts", tally)
}

impl Deed {
    /// Waits until the outside knows of it.
    async fn is_done(self, world: &World, hooks: &Hooks, build: &Build) {
        let sha = &build.commit.sha;
        match self {
            Self::Accepted => {}
            Self::HookBegan => hooks.wait_for(sha, Mark::Began, DEADLINE).await,
            Self::Told => {
                hooks.release(sha);
                world.github.wait_for_end(sha, DEADLINE).await;
            }
        }
    }

    fn is_known_to(self, service: &OneBox, build: &Build) -> bool {
        let (database, statement) = match self {
            Self::Accepted => ("queue.db", "SELECT build FROM message"),
            Self::HookBegan => ("builds.db", "SELECT id FROM builds WHERE started_ms > 0"),
            Self::Told => ("builds.db", "SELECT id FROM builds WHERE ended_ms > 0"),
        };
        builds(service, database, statement).contains(&build.id)
    }
}
