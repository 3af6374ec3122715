//! A disk is full, and has room again.

use fastrand::Rng;
use harness::{OneBox, PrivateEngine, SmallDisk};

use crate::hooks::Mark;
use crate::judge::{Bar, Tally};
use crate::plan::Budget;
use crate::row::Seen;
use crate::world::{Bench, Build, DEADLINE, World, log};
use shared::build::BuildError;

/// Which disk, of what, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Full {
    DataDirBefore,
    DataDirDuring,
    InodesBefore,
    InodesDuring,
    EngineBefore,
    EngineDuring,
}

const ALL: [Full; 6] = [
    Full::DataDirBefore,
    Full::DataDirDuring,
    Full::InodesBefore,
    Full::InodesDuring,
    Full::EngineBefore,
    Full::EngineDuring,
];

/// What is left of a disk on which no build should begin.
const LITTLE_BYTES: u64 = 10 << 20;

/// A build that is over, with its log: a later build may need the room of that.
type Ended = (Build, String);

/// The build is told what is wrong, the service lives, and the next build passes.
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
        let build = world.push(&service, world.commit(0)).await;
        next.push(end(&world, &service, build).await);
    }
    let engine = bench.engine.connect().await;
    for (build, _) in met.iter().chain(&next) {
        Tally::nothing_is_left(&engine, std::slice::from_ref(build)).await;
    }
    service.stop(DEADLINE).await;
    let (mut tally, mut after) = (Tally::default(), Tally::default());
    for ((build, log), case) in met.iter().zip(&cases) {
        tally.judge(&world, &bench.hooks, &service, (build, log), case.bar());
    }
    for (build, log) in &next {
        after.judge(&world, &bench.hooks, &service, (build, log), Bar::RESULT);
    }
    let mut seen = Seen::of(met.len(), cases.len(), "full disks", after);
    seen.saw = format!("{}; with room again {}", tally.summary(), seen.saw);
    seen.problems.extend(tally.problems);
    seen
}

async fn end(world: &World, service: &OneBox, build: Build) -> Ended {
    world.github.wait_for_end(&build.commit.sha, DEADLINE).await;
    let log = log(service, &build.id);
    (build, log)
}

impl Full {
    /// What the build that meets it is told.
    fn bar(self) -> Bar {
        match self {
            // The engine is on a machine of its own, whose disk the service cannot see, and this
            // hook needs nothing of it any more.
            Self::EngineDuring => Bar::RESULT.or_error(is_disk_full),
            _ => Bar::error(is_disk_full),
        }
    }

    /// Builds a commit that meets it.
    async fn meet(self, bench: &Bench, world: &World, disk: &SmallDisk, service: &OneBox) -> Ended {
        let commit = world.commit(0);
        let sha = commit.sha.clone();
        bench.hooks.hold(&sha);
        let build = match self {
            Self::DataDirBefore | Self::InodesBefore | Self::EngineBefore => {
                self.fill(disk, &bench.engine);
                world.push(service, commit).await
            }
            Self::DataDirDuring | Self::InodesDuring | Self::EngineDuring => {
                let build = world.push(service, commit).await;
                bench.hooks.wait_for(&sha, Mark::Halfway, DEADLINE).await;
                self.fill(disk, &bench.engine);
                build
            }
        };
        // All others are noticed while the hook runs, or before it does.
        if self == Self::EngineDuring {
            bench.hooks.release(&sha);
        }
        let ended = end(world, service, build).await;
        bench.hooks.release(&sha);
        self.free(disk, &bench.engine);
        ended
    }

    fn fill(self, disk: &SmallDisk, engine: &PrivateEngine) {
        match self {
            Self::DataDirBefore => disk.fill_up_to(LITTLE_BYTES),
            Self::DataDirDuring => disk.fill(),
            Self::InodesBefore | Self::InodesDuring => disk.fill_with_files(),
            Self::EngineBefore | Self::EngineDuring => engine.fill_disk(),
        }
    }

    fn free(self, disk: &SmallDisk, engine: &PrivateEngine) {
        match self {
            Self::EngineBefore | Self::EngineDuring => engine.free_disk(),
            _ => disk.free(),
        }
    }
}

fn is_disk_full(error: &BuildError) -> bool {
    matches!(error, BuildError::DiskFull(_))
}
