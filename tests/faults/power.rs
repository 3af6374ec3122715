//! The power goes off: what was not asked to reach the disk is gone.

use fastrand::Rng;
use harness::SmallDisk;
use rusqlite::Connection;

use crate::hooks::{Hooks, Mark};
use crate::plan::Budget;
use crate::row::Seen;
use crate::world::{Bench, Build, DEADLINE, Tally, World};

/// What had been done when the power went off, and must be known when it is back.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Accepted,
    HookBegan,
    Told,
}

/// Each thing that was done to the outside is on the disk before.
pub(crate) async fn cut(bench: &mut Bench, budget: &Budget, mut dice: Rng) -> Seen {
    let mut deeds = [Deed::Accepted, Deed::HookBegan, Deed::Told].repeat(budget.times(10));
    dice.shuffle(&mut deeds);
    let world = World::new().await;
    let disk = SmallDisk::mount();
    let data_dir = disk.path().display().to_string();
    let setup = world.setup(bench).env("DATA_DIR", data_dir);
    let mut service = setup.env("DISK_FREE_MIN", "0").start().await;
    let (mut builds, mut problems) = (Vec::new(), Vec::new());
    for deed in &deeds {
        if budget.is_spent() {
            break;
        }
        let commit = world.commit(0);
        bench.hooks.hold(&commit.sha);
        let build = world.push(&service, commit).await;
        deed.is_done(&world, &bench.hooks, &build).await;
        service.kill();
        if !deed.is_known_to(&disk.after_power_cut(), &build) {
            problems.push(format!("{}: {deed:?} is not on the disk", build.id));
        }
        service.start_again().await;
        bench.hooks.release(&build.commit.sha);
        world.github.wait_for_end(&build.commit.sha, DEADLINE).await;
        builds.push(build);
    }
    let engine = bench.engine.connect().await;
    Tally::nothing_is_left(&engine, &builds).await;
    service.stop(DEADLINE).await;
    Seen {
        did: format!("{} of {} power cuts", builds.len(), deeds.len()),
        saw: format!("{} were on the disk", builds.len() - problems.len()),
        problems,
    }
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

    fn is_known_to(self, disk: &SmallDisk, build: &Build) -> bool {
        let (database, statement) = match self {
            Self::Accepted => ("queue.db", "SELECT 1 FROM message WHERE build = ?1"),
            Self::HookBegan => (
                "builds.db",
                "SELECT 1 FROM builds WHERE id = ?1 AND hook_started_ms > 0",
            ),
            Self::Told => (
                "builds.db",
                "SELECT 1 FROM builds WHERE id = ?1 AND finished_ms > 0",
            ),
        };
        let database = Connection::open(disk.path().join(database));
        let database = database.expect("SQLite opens what a power cut leaves");
        let found = database.prepare(statement);
        found.is_ok_and(|mut found| found.exists([&build.id]).unwrap_or(false))
    }
}
