//! Many builds in a row: nothing grows.

use std::collections::HashSet;
use std::fmt;
use std::fs;

use fastrand::Rng;
use harness::{Engine, OneBox, SinkOptions, SmtpSink};

use crate::judge::Tally;
use crate::plan::Budget;
use crate::row::Seen;
use crate::world::{Bench, Build, DEADLINE, World, by_mail, log};

/// So many are pushed at a time.
const WAVE: usize = 40;
/// Writes 8,893 bytes.
const HOOK: &str = "seq 1 2000";
/// How much more there may be at the end than after a tenth of the builds.
const GROWTH_MAX: Footprint = Footprint {
    rss_kib: 4 << 10,
    descriptors: 8,
    threads: 8,
    engine_objects: 0,
};

/// What the service and the engine hold. Tasks that never end cannot be seen from outside; they are
/// seen by the descriptors, threads and memory that they hold.
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
    let sink = SmtpSink::start(SinkOptions::default()).await;
    let setup = by_mail(world.setup(bench), sink.address());
    let setup = setup.env("HOOK", HOOK).env("CONCURRENCY", "4");
    let mut service = setup.env("LOG_LEVEL", "info").start().await;
    let (mut builds, mut problems) = (Vec::new(), Vec::new());
    let mut early = None;
    while builds.len() < planned && !budget.is_spent() {
        let built = builds.len();
        let wave = built + 1..=planned.min(built + WAVE);
        let wave = build(&world, &service, &engine, wave).await;
        problems.extend(
            wave.iter()
                .filter_map(|build| wrong(&world, &service, build)),
        );
        builds.extend(wave);
        if early.is_none() && builds.len() * 10 >= planned {
            early = Some(Footprint::of(&service, &engine).await);
        }
    }
    let late = Footprint::of(&service, &engine).await;
    let early = early.unwrap_or(late);
    problems.extend(late.exceeds(early));
    sink.wait_for_mails(builds.len(), DEADLINE).await;
    service.stop(DEADLINE).await;
    problems.extend(wrong_mails(&sink, &builds));
    Seen {
        done: builds.len(),
        planned,
        what: "builds in a row, each with a mail".to_owned(),
        saw: format!("after a tenth {early}; at the end {late}"),
        problems,
    }
}

/// Builds commits of these numbers, which nothing must be left of.
async fn build(
    world: &World,
    service: &OneBox,
    engine: &Engine,
    numbers: impl Iterator<Item = usize>,
) -> Vec<Build> {
    let mut builds = Vec::new();
    for number in numbers {
        builds.push(world.push(service, world.made_up(number, "", |_| {})).await);
    }
    for Build { commit, .. } in &builds {
        world.github.wait_for_end(&commit.sha, DEADLINE).await;
    }
    Tally::nothing_is_left(engine, &builds).await;
    builds
}

/// What is wrong with a build that is over.
fn wrong(world: &World, service: &OneBox, build: &Build) -> Option<String> {
    let written: String = (1..=2000).map(|line| format!("{line}\n")).collect();
    let is_whole = log(service, &build.id) == written;
    let log = (!is_whole).then(|| format!("{} has a log that is not the whole one", build.id));
    world.is_not_passed(&build.commit).or(log)
}

/// What is wrong with the mails: each build has one, whose last line names it.
fn wrong_mails(sink: &SmtpSink, builds: &[Build]) -> Option<String> {
    let mails = sink.mails();
    let told: HashSet<_> = mails
        .iter()
        .filter_map(|mail| mail.text.split_whitespace().last())
        .collect();
    let without = builds.iter().filter(|build| !told.contains(&*build.id));
    let without = without.count();
    let too_many = mails.len() - told.len();
    (without + too_many > 0)
        .then(|| format!("{without} builds without a mail, {too_many} mails too many"))
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
