//! The worker is killed (SIGKILL), and started again on the same data.

use std::collections::HashSet;
use std::time::Duration;

use bollard::query_parameters::RemoveContainerOptionsBuilder;
use fastrand::Rng;
use futures_util::future::join_all;
use harness::{Engine, OneBox, SinkOptions, SmtpSink};
use tokio::join;
use tokio::time::sleep;

use crate::compose;
use crate::hooks::Mark;
use crate::judge::{Bar, Tally};
use crate::noted::{ended_and_not_settled, mails_on_their_way};
use crate::plan::Budget;
use crate::points::{EngineEvents, POINTS, Point, View};
use crate::row::Seen;
use crate::world::{Bench, Build, DEADLINE, World, by_mail, has_mail_of, log, mails_of};

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
/// One hook of so many makes what `docker compose up` makes.
const HOOKS_PER_COMPOSE: u8 = 3;
/// How long those may take at the end that were held up again and again.
const BACKLOG_DEADLINE: Duration = Duration::from_secs(180);

/// A build whose worker was killed at a point.
struct Killed {
    build: Build,
    /// Its end was stored, its message not settled.
    may_be_told_again: bool,
    /// Its mail was on the way.
    may_be_mailed_again: bool,
}

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
    let did = format!("kills at {kinds} points");
    Seen::of(tally.builds(), points.len(), did, tally)
}

/// Kills as many processes as there are points, each while it has one build.
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
    let (mut killed, mut tally) = (Vec::new(), Tally::default());
    for (_, point) in points {
        if budget.is_spent() {
            break;
        }
        let commit = world.commit(exit_code(&mut dice));
        let composes = dice.u8(..HOOKS_PER_COMPOSE) == 0;
        if composes || point.is_while_hook_runs() {
            bench.hooks.hold(&commit.sha);
        }
        let build = world.push(&service, commit).await;
        let kill = async {
            let view = View {
                world: &world,
                hooks: &bench.hooks,
                events: &events,
                sink: &sink,
                service: &service,
                build: &build,
            };
            view.sees(*point).await;
            sleep(Duration::from_micros(dice.u64(..AFTER_POINT_MAX_US))).await;
            kill_and_start_again(&mut service, &build).await
        };
        let compose = async {
            match composes {
                true => compose_up(bench, engine, &build, *point).await,
                false => Ok(()),
            }
        };
        let ((told, mailed), composed) = join!(kill, compose);
        tally.problems.extend(composed.err());
        bench.hooks.release(&build.commit.sha);
        world.github.wait_for_end(&build.commit.sha, DEADLINE).await;
        killed.push(Killed {
            build,
            may_be_told_again: told,
            may_be_mailed_again: mailed,
        });
    }
    tally.add(judge_killed(bench, engine, &world, &sink, service, &killed).await);
    tally
}

/// Tells whether the next process may post this build's result again, and send its mail again.
async fn kill_and_start_again(service: &mut OneBox, build: &Build) -> (bool, bool) {
    service.kill();
    let told = ended_and_not_settled(service).contains(&build.id);
    let mailed = mails_on_their_way(service).contains(&build.id);
    service.start_again().await;
    (told, mailed)
}

/// Lets the hook go on once it has made what compose makes, unless the process is to be killed
/// before.
async fn compose_up(
    bench: &Bench,
    engine: &Engine,
    build: &Build,
    point: Point,
) -> Result<(), String> {
    let sha = &build.commit.sha;
    bench.hooks.wait_for(sha, Mark::Halfway, DEADLINE).await;
    let made = compose::up(engine, build).await;
    if !point.is_while_hook_runs() {
        bench.hooks.release(sha);
    }
    made
}

async fn judge_killed(
    bench: &Bench,
    engine: &Engine,
    world: &World,
    sink: &SmtpSink,
    mut service: OneBox,
    killed: &[Killed],
) -> Tally {
    let mut tally = Tally::default();
    for Killed { build, .. } in killed {
        if !has_mail_of(sink, build, DEADLINE).await {
            tally.problem(format!("{} has no mail", build.id));
        }
        Tally::nothing_is_left(engine, std::slice::from_ref(build)).await;
    }
    service.stop(DEADLINE).await;
    for one in killed {
        let build = &one.build;
        let bar = Bar::RESULT.or_told_again(one.may_be_told_again);
        let log = log(&service, &build.id);
        tally.judge(world, &bench.hooks, build, &log, bar);
        let mails_max = 1 + usize::from(one.may_be_mailed_again);
        let mails = mails_of(sink, build);
        if mails > mails_max {
            tally.problem(format!("{} has {mails} mails", build.id));
        }
    }
    tally
}

/// Kills at any time, while several builds are under way.
pub(crate) async fn at_random(bench: &mut Bench, budget: &Budget, mut dice: Rng) -> Seen {
    let planned = budget.times(200).max(KILLS_MIN);
    let world = World::new().await;
    let engine = bench.engine.connect().await;
    let setup = world.setup(bench).env("CONCURRENCY", "4");
    let mut service = setup.start().await;
    let mut builds = Vec::new();
    let (mut may_be_told_again, mut lost) = (HashSet::new(), HashSet::new());
    let mut kills = 0;
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
        may_be_told_again.extend(ended_and_not_settled(&service));
        if dice.u8(..KILLS_PER_LOST) == 0 {
            lost.extend(lose_a_container(&world, &engine, &builds).await);
        }
        service.start_again().await;
        kills += 1;
    }
    for build in &builds {
        let sha = &build.commit.sha;
        world.github.wait_for_end(sha, BACKLOG_DEADLINE).await;
    }
    // Everything comes to rest first: what is told too much is told late.
    Tally::nothing_is_left(&engine, &builds).await;
    service.stop(DEADLINE).await;
    let mut tally = Tally::default();
    for build in &builds {
        let bar = match lost.contains(&build.id) {
            true => Bar::RESULT.or_error(""),
            // Whose worker was killed three times before the hook began.
            false => Bar::RESULT.or_error("gave up"),
        };
        let bar = bar.or_told_again(may_be_told_again.contains(&build.id));
        let log = log(&service, &build.id);
        tally.judge(&world, &bench.hooks, build, &log, bar);
    }
    let did = format!("kills at random, {} containers lost meanwhile", lost.len());
    Seen::of(kills, planned, did, tally)
}

/// Removes the container of a build whose hook may run, and tells which, if there is one.
async fn lose_a_container(world: &World, engine: &Engine, builds: &[Build]) -> Option<String> {
    let remove = RemoveContainerOptionsBuilder::default().force(true).build();
    for build in builds.iter().filter(|build| !world.has_ended(build)) {
        let removed = engine
            .docker()
            .remove_container(&build.id, Some(remove.clone()));
        if removed.await.is_ok() {
            return Some(build.id.clone());
        }
    }
    None
}

/// Two of three hooks pass.
fn exit_code(dice: &mut Rng) -> u8 {
    if dice.u8(..3) == 0 { 3 } else { 0 }
}
