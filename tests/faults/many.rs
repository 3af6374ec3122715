//! Many builds in a row: nothing grows.

use std::fmt;
use std::fs;

use fastrand::Rng;
use harness::{Engine, OneBox};

use crate::plan::Budget;
use crate::row::Seen;
use crate::world::{Bench, Build, DEADLINE, Tally, World};

/// So many are pushed at a time.
const WAVE: usize = 40;
/// How much more there may be at the end than after a tenth of the builds.
const GROWTH_MAX: Footprint = Footprint {
    rss_kib: 16 << 10,
    descriptors: 8,
    threads: 8,
    engine_objects: 0,
};

/// What the service and the engine hold.
#[derive(Clone, Copy, Debug)]
struct Footprint {
    rss_kib: u64,
    descriptors: usize,
    threads: usize,
    engine_objects: usize,
}

pub(crate) async fn builds(bench: &mut Bench, budget: &Budget, _dice: Rng) -> Seen {
    let planned = budget.times(2000);
    let world = World::new().await;
    let engine = bench.engine.connect().await;
    let setup = world
        .setup(bench)
        .env("HOOK", "true")
        .env("CONCURRENCY", "4");
    let service = setup.env("LOG_LEVEL", "info").start().await;
    let mut problems = Vec::new();
    let mut built = 0;
    let mut early = None;
    while built < planned && !budget.is_spent() {
        let wave = WAVE.min(planned - built);
        let failed = build(&world, &service, &engine, built + 1..=built + wave).await;
        problems.extend(failed);
        built += wave;
        if early.is_none() && built * 10 >= planned {
            early = Some(Footprint::of(&service, &engine).await);
        }
    }
    let late = Footprint::of(&service, &engine).await;
    let early = early.unwrap_or(late);
    problems.extend(late.exceeds(early));
    let did = format!("{built} of {planned} builds in a row");
    let saw = format!("after a tenth {early}; at the end {late}");
    Seen { did, saw, problems }
}

/// Builds commits of these numbers, which nothing must be left of; answers what is wrong.
async fn build(
    world: &World,
    service: &OneBox,
    engine: &Engine,
    numbers: impl Iterator<Item = usize>,
) -> Vec<String> {
    let mut builds = Vec::new();
    for number in numbers {
        builds.push(world.push(service, world.made_up(number, "", |_| {})).await);
    }
    for Build { commit, .. } in &builds {
        world.github.wait_for_end(&commit.sha, DEADLINE).await;
    }
    Tally::nothing_is_left(engine, &builds).await;
    let problems = builds
        .iter()
        .filter_map(|build| world.is_not_passed(&build.commit));
    problems.collect()
}

impl Footprint {
    async fn of(service: &OneBox, engine: &Engine) -> Self {
        let entries = |of: &str| {
            let directory = fs::read_dir(format!("/proc/{}/{of}", service.pid()));
            directory.expect("the service runs").count()
        };
        Self {
            rss_kib: service.rss_kib(),
            descriptors: entries("fd"),
            threads: entries("task"),
            engine_objects: engine.snapshot().await.len(),
        }
    }

    /// What there is too much of.
    fn exceeds(self, early: Self) -> Option<String> {
        let grown = self.rss_kib > early.rss_kib + GROWTH_MAX.rss_kib
            || self.descriptors > early.descriptors + GROWTH_MAX.descriptors
            || self.threads > early.threads + GROWTH_MAX.threads
            || self.engine_objects > early.engine_objects + GROWTH_MAX.engine_objects;
        grown.then(|| format!("more has grown than {GROWTH_MAX}"))
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} KiB, {} descriptors, {} threads, {} engine objects",
            self.rss_kib, self.descriptors, self.threads, self.engine_objects
        )
    }
}
