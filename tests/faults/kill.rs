//! The worker is killed (SIGKILL), and started again on the same data.

use std::time::Duration;

use bollard::query_parameters::RemoveContainerOptionsBuilder;
use fastrand::Rng;
use futures_util::future::join_all;
use harness::{Engine, OneBox, SinkOptions, SmtpSink};
use tokio::time::sleep;

use crate::plan::Budget;
use crate::points::{EngineEvents, POINTS, Point, View};
use crate::row::Seen;
use crate::world::{Bench, Build, DEADLINE, Tally, World, by_mail};

/// So many points are worked on at a time.
const LANES: usize = 2;
/// The process dies so long after the point at most: what follows it takes a few milliseconds.
const AFTER_POINT_MAX_US: u64 = 4000;
/// A process lives for so long at most between two kills at random.
const LIFE_MAX_MS: u64 = 2500;
/// So many builds at least wait or run when a process is killed at random.
const UNDER_WAY: usize = 8;
/// Fewer would tell nothing of what is met seldom.
const KILLS_MIN: usize = 20;
/// At one of so many kills a container vanishes before the next start.
const KILLS_PER_LOST: u8 = 4;
/// How long those may take at the end that were held up again and again.
const BACKLOG_DEADLINE: Duration = Duration::from_secs(180);

/// Kills at points that can be seen from outside.
pub(crate) async fn at_points(bench: &mut Bench, budget: &Budget, mut dice: Rng) -> Seen {
    let mut points = POINTS.repeat(budget.times(10));
    dice.shuffle(&mut points);
    let engine = bench.engine.connect().await;
    let share = points.len().div_ceil(LANES);
    let lanes = points
        .chunks(share)
        .map(|points| kill_at_each(bench, &engine, points, budget, dice.fork()));
    let mut tally = Tally::default();
    for lane in join_all(lanes).await {
        tally.add(lane);
    }
    let kinds = POINTS.len();
    let did = format!(
        "{} of {} kills at {kinds} points",
        tally.builds(),
        points.len()
    );
    Seen::of(did, tally)
}

async fn kill_at_each(
    bench: &Bench,
    engine: &Engine,
    points: &[(&str, Point)],
    budget: &Budget,
    mut dice: Rng,
) -> Tally {
    let world = World::new().await;
    let events = EngineEvents::of(engine);
    let sink = SmtpSink::start(SinkOptions::default()).await;
    let mut service = by_mail(world.setup(bench), sink.address()).start().await;
    let mut builds = Vec::new();
    for (_, point) in points {
        if budget.is_spent() {
            break;
        }
        let mails_before = sink.mails().len();
        let commit = world.commit(exit_code(&mut dice));
        if point.is_while_hook_runs() {
            bench.hooks.hold(&commit.sha);
        }
        let build = world.push(&service, commit).await;
        let view = View {
            world: &world,
            hooks: &bench.hooks,
            events: &events,
            sink: &sink,
            mails_before,
            service: &service,
            build: &build,
        };
        view.sees(*point).await;
        sleep(Duration::from_micros(dice.u64(..AFTER_POINT_MAX_US))).await;
        service.kill();
        service.start_again().await;
        bench.hooks.release(&build.commit.sha);
        world.github.wait_for_end(&build.commit.sha, DEADLINE).await;
        builds.push(build);
    }
    judge(bench, engine, &world, service, &builds).await
}

/// Kills at any time, while several builds are under way.
pub(crate) async fn at_random(bench: &mut Bench, budget: &Budget, mut dice: Rng) -> Seen {
    let planned = budget.times(200).max(KILLS_MIN);
    let world = World::new().await;
    let engine = bench.engine.connect().await;
    let setup = world.setup(bench).env("CONCURRENCY", "4");
    let mut service = setup.start().await;
    let mut builds = Vec::new();
    let (mut kills, mut lost) = (0, 0);
    while kills < planned && !budget.is_spent() {
        let under_way = builds
            .iter()
            .filter(|build| !world.has_ended(build))
            .count();
        for _ in under_way..UNDER_WAY {
            let commit = world.commit(exit_code(&mut dice));
            builds.push(world.push(&service, commit).await);
        }
        sleep(Duration::from_millis(dice.u64(..LIFE_MAX_MS))).await;
        service.kill();
        if dice.u8(..KILLS_PER_LOST) == 0 {
            lost += usize::from(lose_a_container(&world, &engine, &builds).await);
        }
        service.start_again().await;
        kills += 1;
    }
    for build in &builds {
        let sha = &build.commit.sha;
        world.github.wait_for_end(sha, BACKLOG_DEADLINE).await;
    }
    let did = format!("{kills} of {planned} kills at random, {lost} containers lost meanwhile");
    Seen::of(did, judge(bench, &engine, &world, service, &builds).await)
}

/// Removes the container of a build whose hook may run; whether there was one.
async fn lose_a_container(world: &World, engine: &Engine, builds: &[Build]) -> bool {
    let remove = RemoveContainerOptionsBuilder::default().force(true).build();
    for build in builds.iter().filter(|build| !world.has_ended(build)) {
        let removed = engine
            .docker()
            .remove_container(&build.id, Some(remove.clone()));
        if removed.await.is_ok() {
            return true;
        }
    }
    false
}

/// Lets everything come to rest first: what is told too much is told late.
async fn judge(
    bench: &Bench,
    engine: &Engine,
    world: &World,
    mut service: OneBox,
    builds: &[Build],
) -> Tally {
    Tally::nothing_is_left(engine, builds).await;
    service.stop(DEADLINE).await;
    let mut tally = Tally::default();
    for build in builds {
        tally.judge(world, &bench.hooks, &service, build);
    }
    tally
}

/// Two of three hooks pass.
fn exit_code(dice: &mut Rng) -> u8 {
    if dice.u8(..3) == 0 { 3 } else { 0 }
}
