//! A disk is full, and has room again.

use fastrand::Rng;
use harness::{OneBox, PrivateEngine, SmallDisk};

use crate::hooks::Mark;
use crate::plan::Budget;
use crate::row::Seen;
use crate::world::{Bench, Build, DEADLINE, Tally, World};

/// Which disk, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Full {
    DataDirBefore,
    DataDirDuring,
    EngineBefore,
    EngineDuring,
}

const ALL: [Full; 4] = [
    Full::DataDirBefore,
    Full::DataDirDuring,
    Full::EngineBefore,
    Full::EngineDuring,
];

/// What is left of a disk on which no build should begin.
const LITTLE_BYTES: u64 = 10 << 20;

/// The build ends in something true, the service lives, and the next build passes.
pub(crate) async fn full(bench: &mut Bench, budget: &Budget, mut dice: Rng) -> Seen {
    let mut cases = ALL.repeat(budget.times(4));
    dice.shuffle(&mut cases);
    let world = World::new().await;
    let disk = SmallDisk::mount();
    let data_dir = disk.path().display().to_string();
    let setup = world.setup(bench).env("DATA_DIR", data_dir);
    let mut service = setup.env("DISK_FREE_MIN", "16MiB").start().await;
    let (mut met, mut next) = (Vec::new(), Vec::new());
    for case in &cases {
        if budget.is_spent() {
            break;
        }
        met.push(case.meet(bench, &world, &disk, &service).await);
        let commit = world.commit(0);
        let build = world.push(&service, commit).await;
        world.github.wait_for_end(&build.commit.sha, DEADLINE).await;
        next.push(build);
    }
    let engine = bench.engine.connect().await;
    Tally::nothing_is_left(&engine, &[&*met, &*next].concat()).await;
    service.stop(DEADLINE).await;
    let mut tally = Tally::without_ends_of_logs();
    let mut after = Tally::default();
    for (met, next) in met.iter().zip(&next) {
        tally.judge(&world, &bench.hooks, &service, met);
        after.judge(&world, &bench.hooks, &service, next);
    }
    for error in after.errors.drain(..) {
        tally.problem(format!("with room again: {error}"));
    }
    let did = format!("{} of {} full disks", met.len(), cases.len());
    let mut seen = Seen::of(did, after);
    seen.saw = format!("{}; with room again {}", tally.summary(), seen.saw);
    seen.problems.extend(tally.problems);
    seen
}

impl Full {
    /// Builds a commit that meets it.
    async fn meet(self, bench: &Bench, world: &World, disk: &SmallDisk, service: &OneBox) -> Build {
        let commit = world.commit(0);
        let sha = commit.sha.clone();
        bench.hooks.hold(&sha);
        let build = match self {
            Self::DataDirBefore | Self::EngineBefore => {
                self.fill(disk, &bench.engine);
                world.push(service, commit).await
            }
            Self::DataDirDuring | Self::EngineDuring => {
                let build = world.push(service, commit).await;
                bench.hooks.wait_for(&sha, Mark::Halfway, DEADLINE).await;
                self.fill(disk, &bench.engine);
                build
            }
        };
        bench.hooks.release(&sha);
        world.github.wait_for_end(&sha, 3 * DEADLINE).await;
        match self {
            Self::DataDirBefore | Self::DataDirDuring => disk.free(),
            Self::EngineBefore | Self::EngineDuring => bench.engine.free_disk(),
        }
        build
    }

    fn fill(self, disk: &SmallDisk, engine: &PrivateEngine) {
        match self {
            Self::DataDirBefore => disk.fill_up_to(LITTLE_BYTES),
            Self::DataDirDuring => disk.fill(),
            Self::EngineBefore | Self::EngineDuring => engine.fill_disk(),
        }
    }
}
