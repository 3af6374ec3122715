//! Workers on several hosts: they share a queue at SQS and a bucket, and no engine. A hook starts at most
//! once among them, and a build has one end.

use std::time::Duration;

use harness::{
    Endpoint, Fault, FaultProxy, NetworkFault, OneBox, PrivateEngine, Request, Setup, Upstream,
    docker,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::fixture::{DEADLINE, Fixture, GATE, REPO, at_gate, log, open_gate, project, told};
use crate::sqs::Sqs;

/// Longer than a lease of a message, or a claim to a build, lasts.
const LEASE_OVER: Duration = Duration::from_secs(5 * 60 + 2);

/// A worker logs this of a build that another one has.
const SKIPPED: &str = "skipping: claimed by another worker";

const WORKER_LOST: &str =
    "Error: error: worker lost: the hook was started by another worker, which has gone away";

const PASSED: [&str; 2] = ["Pending: building", "Success: passed in …"];

/// The image of builds on other hosts: it is small, and an engine of a test has not much room.
const IMAGE: &str = "debian:trixie-slim";

/// A queue whose clock stands still, a bucket, and a commit.
struct World {
    sqs: Sqs,
    fixture: Fixture,
}

impl World {
    async fn new() -> Self {
        let sqs = Sqs::start("").await.with_store().await;
        sqs.let_pass(Duration::ZERO).await;
        Self {
            sqs,
            fixture: Fixture::plain().await,
        }
    }

    /// The worker of a host, on the engine of this machine.
    fn here(&self, hook: &str) -> Setup {
        self.sqs.stored(self.fixture.setup(hook))
    }

    /// The worker of another host.
    fn on(&self, engine: &PrivateEngine, hook: &str) -> Setup {
        let here = self.here(hook).env("BUILD_IMAGE", IMAGE);
        here.env("DOCKER_HOST", engine.docker_host())
    }

    /// Begins a build on a host, the hook of which comes to the gate.
    async fn begun(&self, worker: &OneBox) -> String {
        let build = self.fixture.push(worker).await;
        at_gate(&self.fixture.engine, &build).await;
        build
    }

    /// The host of a worker is lost, and what ran on it.
    async fn lose(&self, worker: &mut OneBox, build: &str) {
        worker.leave_unfinished();
        worker.kill();
        remove(build).await;
    }

    /// Lets the message of a lost worker come to another one, which finds a claim that may be alive; and
    /// once more, when that has ended.
    async fn taken_over_by(&self, other: &OneBox) {
        self.sqs.let_pass(LEASE_OVER).await;
        other.wait_for_log(SKIPPED, DEADLINE).await;
        self.sqs.age_claims(LEASE_OVER).await;
        self.sqs.let_pass(2 * LEASE_OVER).await;
    }

    async fn told(&self) -> Vec<String> {
        let statuses = self
            .fixture
            .github
            .wait_for_end(&self.fixture.sha, DEADLINE)
            .await;
        told(&statuses)
    }

    /// Stops the worker once no message is left: the build must have the end that it was told.
    async fn ends(&self, mut worker: OneBox, expected: &[&str]) {
        assert_eq!(self.told().await, expected);
        self.sqs.wait_until_empty().await;
        worker.stop(DEADLINE).await;
        let statuses = self.fixture.github.statuses(&self.fixture.sha);
        assert_eq!(told(&statuses), expected);
    }
}

async fn remove(build: &str) {
    docker(&["rm", "--force", "--volumes", build]).await;
    docker(&["volume", "rm", &format!("compose-ci-{build}")]).await;
}

fn posts_status(request: &Request) -> bool {
    request.method == "POST"
}

fn fetches_tarball(request: &Request) -> bool {
    request.path.contains("/tarball/")
}

fn delivery(world: &World) -> (String, Value) {
    (Uuid::new_v4().to_string(), world.fixture.payload())
}

#[tokio::test]
async fn a_build_of_a_lost_host_runs_nowhere_else() {
    let world = World::new().await;
    let hook = format!("echo ran; {GATE}");
    let mut lost = world.here(&hook).start().await;
    let build = world.begun(&lost).await;
    world.lose(&mut lost, &build).await;

    let engine = PrivateEngine::start().await;
    let other = world.on(&engine, &hook).start().await;
    world.taken_over_by(&other).await;
    assert_eq!(world.told().await, ["Pending: building", WORKER_LOST]);
    assert_eq!(log(&other, &build), "");
    world.ends(other, &["Pending: building", WORKER_LOST]).await;
}

#[tokio::test]
async fn a_build_of_a_lost_host_runs_again_if_wanted() {
    let world = World::new().await;
    let mut lost = world.here(&format!("echo ran; {GATE}")).start().await;
    let build = world.begun(&lost).await;
    world.lose(&mut lost, &build).await;

    let engine = PrivateEngine::start().await;
    engine.load(IMAGE).await;
    let other = world.on(&engine, "echo again");
    let other = other.env("RERUN_INTERRUPTED", "1").start().await;
    world.taken_over_by(&other).await;
    let told = world.told().await;
    assert_eq!(told.last().map(String::as_str), Some(PASSED[1]), "{told:?}");
    assert_eq!(log(&other, &build), "again\n");
}

#[tokio::test]
async fn a_build_that_had_not_begun_runs_on_another_host() {
    let world = World::new().await;
    let mut lost = claimed(&world).await;
    lost.leave_unfinished();
    lost.kill();
    let other = world.here("echo ran").start().await;
    world.taken_over_by(&other).await;
    let told = world.told().await;
    assert_eq!(told.last().map(String::as_str), Some(PASSED[1]), "{told:?}");
}

#[tokio::test]
async fn a_worker_that_is_killed_before_the_start_goes_on_at_its_next() {
    let world = World::new().await;
    let mut worker = claimed(&world).await;
    worker.kill();
    worker.start_again().await;
    assert_eq!(world.told().await, PASSED);
    // The message comes back when its lease has ended, and finds the end.
    world.sqs.let_pass(LEASE_OVER).await;
    let again = "reporting its result again";
    worker.wait_for_log(again, DEADLINE).await;
    world.ends(worker, &PASSED).await;
}

/// A worker that has claimed a build, and waits for its tarball.
async fn claimed(world: &World) -> OneBox {
    let github = &world.fixture.github;
    github.fail_next(Endpoint::Tarball, 1, Fault::secondary_limit(30));
    let worker = world.here("true").start().await;
    world.fixture.push(&worker).await;
    github.wait_for_request(fetches_tarball, DEADLINE).await;
    github.wait_for_requests(1, posts_status, DEADLINE).await;
    worker
}

#[tokio::test]
async fn a_worker_whose_build_was_taken_over_stops_its_hook() {
    let world = World::new().await;
    let way = FaultProxy::to(Upstream::Tcp(world.sqs.address())).await;
    let worker = world.here(GATE).env("AWS_ENDPOINT_URL", way.url());
    let mut cut_off = worker.start().await;
    let build = world.begun(&cut_off).await;
    way.fail(NetworkFault::BlackHole);

    let engine = PrivateEngine::start().await;
    let other = world.on(&engine, "echo ran").start().await;
    world.taken_over_by(&other).await;
    assert_eq!(world.told().await, ["Pending: building", WORKER_LOST]);
    way.heal();
    let lost = "lost the claim of a build";
    cut_off.wait_for_log(lost, 2 * DEADLINE).await;
    world.fixture.assert_nothing_left(&build).await;
    cut_off.stop(DEADLINE).await;
    world.ends(other, &["Pending: building", WORKER_LOST]).await;
}

#[tokio::test]
async fn a_lost_lease_costs_a_claimed_build_nothing() {
    let world = World::new().await;
    let busy = world.here(&format!("echo ran; {GATE}"));
    let worker = busy.env("CONCURRENCY", "1").start().await;
    let build = world.begun(&worker).await;
    let engine = PrivateEngine::start().await;
    let other = world.on(&engine, "echo ran").start().await;
    world.sqs.let_pass(LEASE_OVER).await;
    other.wait_for_log(SKIPPED, DEADLINE).await;
    open_gate(&build).await;
    assert_eq!(world.told().await, PASSED);
    assert_eq!(log(&worker, &build), "ran\n");
    drop(other);
    world.sqs.let_pass(2 * LEASE_OVER).await;
    let again = "reporting its result again";
    worker.wait_for_log(again, DEADLINE).await;
    world.ends(worker, &PASSED).await;
}

#[tokio::test]
async fn a_push_that_comes_twice_is_built_by_one_worker() {
    let world = World::new().await;
    let engine = PrivateEngine::start().await;
    engine.load(IMAGE).await;
    let (delivery, payload) = delivery(&world);
    let one_at_a_time = |setup: Setup| setup.env("CONCURRENCY", "1");
    let one = one_at_a_time(world.here("echo ran")).start().await;
    let other = one_at_a_time(world.on(&engine, "echo ran")).start().await;
    let build = one.deliver("push", &delivery, &payload).await.build_id();
    other.deliver("push", &delivery, &payload).await.build_id();
    assert_eq!(world.told().await, PASSED);
    let mut logs = [log(&one, &build), log(&other, &build)];
    logs.sort();
    assert_eq!(logs, ["", "ran\n"]);
    let project = project(&build);
    for engine in [&world.fixture.engine, &engine.connect().await] {
        engine.assert_nothing_left(&build, &project, DEADLINE).await;
    }
    // The second message comes back to either of them.
    world.sqs.let_pass(2 * LEASE_OVER).await;
    drop(other);
    world.sqs.let_pass(2 * LEASE_OVER).await;
    world.ends(one, &PASSED).await;
}

#[tokio::test]
async fn a_push_that_comes_again_after_its_build_changes_nothing() {
    let world = World::new().await;
    let (delivery, payload) = delivery(&world);
    let mut one = world.here("true").start().await;
    one.deliver("push", &delivery, &payload).await.build_id();
    world.told().await;
    one.stop(DEADLINE).await;

    let other = world.here("exit 1").start().await;
    other.deliver("push", &delivery, &payload).await.build_id();
    let again = "reporting its result again";
    other.wait_for_log(again, DEADLINE).await;
    world.ends(other, &PASSED).await;
}

#[tokio::test]
async fn a_dead_letter_of_an_ended_build_contradicts_nothing() {
    let world = World::new().await;
    let mut one = world.here("true").start().await;
    let build = world.fixture.push(&one).await;
    world.told().await;
    one.stop(DEADLINE).await;

    let letter = json!({
        "version": "1",
        "id": build,
        "repo": REPO,
        "revision": { "commit": world.fixture.sha },
    });
    world.sqs.plant_dead_letter(&letter.to_string()).await;
    let other = world.here("true").start().await;
    let again = "reporting its result again";
    other.wait_for_log(again, DEADLINE).await;
    world.ends(other, &PASSED).await;
}

#[tokio::test]
async fn the_end_of_a_host_that_could_not_report_is_reported() {
    let world = World::new().await;
    let github = &world.fixture.github;
    let mut lost = world.here(GATE).start().await;
    let build = world.begun(&lost).await;
    github.wait_for_requests(1, posts_status, DEADLINE).await;
    github.fail_next(Endpoint::PostStatus, 1, Fault::Hang);
    open_gate(&build).await;
    github.wait_for_requests(2, posts_status, DEADLINE).await;
    lost.leave_unfinished();
    lost.kill();

    let engine = PrivateEngine::start().await;
    let other = world.on(&engine, "true").start().await;
    world.sqs.let_pass(LEASE_OVER).await;
    assert_eq!(world.told().await, PASSED);
    world.ends(other, &PASSED).await;
}

#[tokio::test]
async fn a_hook_does_not_wait_for_its_pending_status() {
    let world = World::new().await;
    let github = &world.fixture.github;
    github.fail_next(Endpoint::PostStatus, 1, Fault::code(403));
    let worker = world.here("echo ran").start().await;
    let build = world.fixture.push(&worker).await;
    assert_eq!(world.told().await, ["Success: passed in …"]);
    assert_eq!(log(&worker, &build), "ran\n");
    world.ends(worker, &["Success: passed in …"]).await;
}

#[tokio::test]
async fn a_store_changes_nothing_that_github_sees() {
    let world = World::new().await;
    let mut worker = world.here("true").start().await;
    world.fixture.build(&worker).await.assert_passed();
    worker.stop(DEADLINE).await;
    let kind = |request: &Request| {
        let mut parts = request.path.split('/').map(str::to_owned);
        let kind = parts.find(|part| part.starts_with("statuses") || part.contains("tar"));
        format!("{} {}", request.method, kind.unwrap_or_default())
    };
    let requests = world.fixture.github.requests();
    let mut requests: Vec<_> = requests.iter().map(kind).collect();
    requests.sort();
    assert_eq!(
        requests,
        [
            // The repository's name, at the start.
            "GET ",
            "GET legacy.tar.gz",
            "GET tarball",
            "POST statuses",
            "POST statuses"
        ]
    );
}

#[tokio::test]
async fn without_a_store_the_start_says_what_is_promised() {
    let sqs = Sqs::start("").await;
    let fixture = Fixture::plain().await;
    let service = sqs.used_by(fixture.setup("true")).start().await;
    let promise = "a hook starts at most once on each engine, not among several";
    service.wait_for_log(promise, DEADLINE).await;
}
