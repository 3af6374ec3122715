//! The worker is killed (SIGKILL), and started again on the same data.

use std::collections::HashSet;
use std::time::Duration;

use bollard::query_parameters::RemoveContainerOptionsBuilder;
use fastrand::Rng;
use futures_util::future::join_all;
use harness::{Engine, OneBox, SinkOptions, SmtpSink};
use shared::build::BuildError;
use tokio::join;
use tokio::time::sleep;

use crate::compose;
use crate::hooks::{Hooks, Mark};
use crate::judge::{Bar, Tally};
use crate::plan::Budget;
use crate::points::{EngineEvents, POINTS, Point, View};
use crate::recorded::Unsent;
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
const KILLS_MIN: usize = 15;
/// At one of so many kills a container vanishes before the next start.
const KILLS_PER_LOST: u8 = 4;
/// One hook of so many makes what `docker compose up` makes.
const HOOKS_PER_COMPOSE: u8 = 3;
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
    let mut lane = Lane::start(bench, engine).await;
    for (_, point) in points {
        if budget.is_spent() {
            break;
        }
        lane.build_and_kill(*point, &mut dice).await;
    }
    lane.judge().await
}

/// A service, what it depends on, and what it has built.
struct Lane<'a> {
    bench: &'a Bench,
    engine: &'a Engine,
    world: World,
    events: EngineEvents,
    sink: SmtpSink,
    service: OneBox,
    builds: Vec<Build>,
    unsent: Unsent,
    tally: Tally,
}

impl<'a> Lane<'a> {
    async fn start(bench: &'a Bench, engine: &'a Engine) -> Self {
        let world = World::new().await;
        let sink = SmtpSink::start(SinkOptions::default()).await;
        let service = by_mail(world.setup(bench), sink.address()).start().await;
        Self {
            bench,
            engine,
            world,
            events: EngineEvents::of(engine),
            sink,
            service,
            builds: Vec::new(),
            unsent: Unsent::default(),
            tally: Tally::default(),
        }
    }

    /// Kills the process that has this build when the build is at this point.
    async fn build_and_kill(&mut self, point: Point, dice: &mut Rng) {
        let (hooks, engine) = (&self.bench.hooks, self.engine);
        let commit = self.world.commit(exit_code(dice));
        let composes = dice.u8(..HOOKS_PER_COMPOSE) == 0;
        if composes || point.is_while_hook_runs() {
            hooks.hold(&commit.sha);
        }
        let build = self.world.push(&self.service, commit).await;
        let compose = async {
            match composes {
                true => compose_up(hooks, engine, &build, point).await,
                false => Ok(()),
            }
        };
        let after_point = Duration::from_micros(dice.u64(..AFTER_POINT_MAX_US));
        let (composed, ()) = join!(compose, self.kill(&build, point, after_point));
        self.tally.problems.extend(composed.err());
        let sha = &build.commit.sha;
        hooks.release(sha);
        self.world.github.wait_for_end(sha, DEADLINE).await;
        self.builds.push(build);
    }

    async fn kill(&mut self, build: &Build, point: Point, after_point: Duration) {
        let view = View {
            world: &self.world,
            hooks: &self.bench.hooks,
            events: &self.events,
            sink: &self.sink,
            service: &self.service,
            build,
        };
        view.sees(point).await;
        sleep(after_point).await;
        self.service.kill();
        self.unsent.look_at(&self.service);
        self.service.start_again().await;
    }

    /// Everything comes to rest first: what is told too much is told late.
    async fn judge(mut self) -> Tally {
        let (sink, mut tally) = (&self.sink, self.tally);
        for build in &self.builds {
            if !has_mail_of(sink, build, DEADLINE).await {
                tally.problem(format!("{} has no mail", build.id));
            }
        }
        Tally::nothing_is_left(self.engine, &self.builds).await;
        self.service.stop(DEADLINE).await;
        for build in &self.builds {
            let bar = Bar::RESULT.or_told_again(self.unsent.has_result_of(build));
            let log = log(&self.service, &build.id);
            tally.judge(
                &self.world,
                &self.bench.hooks,
                &self.service,
                (build, &log),
                bar,
            );
            let mails = mails_of(sink, build);
            if mails > 1 + usize::from(self.unsent.has_mail_of(build)) {
                tally.problem(format!("{} has {mails} mails", build.id));
            }
        }
        tally
    }
}

/// Lets a hook go on once it has made what compose makes, unless the process is to be killed before.
async fn compose_up(
    hooks: &Hooks,
    engine: &Engine,
    build: &Build,
    point: Point,
) -> Result<(), String> {
    let sha = &build.commit.sha;
    hooks.wait_for(sha, Mark::Halfway, DEADLINE).await;
    let made = compose::up(engine, build).await;
    if !point.is_while_hook_runs() {
        hooks.release(sha);
    }
    made
}

/// Kills at any time, while several builds are under way.
pub(crate) async fn at_random(bench: &mut Bench, budget: &Budget, mut dice: Rng) -> Seen {
    let planned = budget.times(200).max(KILLS_MIN);
    let world = World::new().await;
    let engine = bench.engine.connect().await;
    let setup = world.setup(bench).env("CONCURRENCY", "4");
    let mut service = setup.start().await;
    let mut builds = Vec::new();
    let (mut unsent, mut lost) = (Unsent::default(), HashSet::new());
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
        unsent.look_at(&service);
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
            true => Bar::RESULT.or_error(lost_its_container),
            // Whose worker was killed three times before the hook began.
            false => Bar::RESULT.or_error(was_given_up),
        };
        let bar = bar.or_told_again(unsent.has_result_of(build));
        let log = log(&service, &build.id);
        tally.judge(&world, &bench.hooks, &service, (build, &log), bar);
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

fn lost_its_container(error: &BuildError) -> bool {
    use BuildError::{ContainerGone, ContainerRemoved, GaveUp};
    matches!(error, ContainerGone | ContainerRemoved | GaveUp { .. })
}

fn was_given_up(error: &BuildError) -> bool {
    matches!(error, BuildError::GaveUp { .. })
}
