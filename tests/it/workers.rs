//! Workers on several hosts: they share a queue at SQS and the commit's statuses, and neither
//! records nor an engine. A hook starts at most once among them, and a build has one end.

use std::time::Duration;

use harness::{
    Endpoint, Fault, FaultProxy, NetworkFault, OneBox, PrivateEngine, Request, Setup, Upstream,
    docker,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::fixture::{DEADLINE, Fixture, GATE, REPO, at_gate, log, open_gate, project, told};
use crate::sqs::Sqs;

/// Longer than a worker ever holds a message without prolonging that.
const LEASE_OVER: Duration = Duration::from_secs(5 * 60 + 1);

/// What a worker logs of a build that it leaves alone.
const LEFT_ALONE: &str = "another worker has begun it; left alone";

const INTERRUPTED: &str =
    "Error: error: interrupted: the hook was started by another worker, which has gone away";

/// The image of builds on other hosts: it is small, and an engine of a test has not much room.
const IMAGE: &str = "debian:trixie-slim";

/// A queue whose clock stands still, and a commit.
struct World {
    sqs: Sqs,
    fixture: Fixture,
}

impl World {
    async fn new() -> Self {
        let sqs = Sqs::start("").await;
        sqs.let_pass(Duration::ZERO).await;
        Self {
            sqs,
            fixture: Fixture::plain().await,
        }
    }

    /// The worker of a host, on the engine of this machine.
    fn here(&self, hook: &str) -> Setup {
        self.sqs.used_by(self.fixture.setup(hook))
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
        docker(&["rm", "--force", "--volumes", build]).await;
        docker(&["volume", "rm", &format!("compose-ci-{build}")]).await;
    }

    /// Lets the message of a lost worker come to another one, which makes sure of that first.
    async fn inherited_by(&self, other: &OneBox) {
        self.sqs.let_pass(LEASE_OVER).await;
        other.wait_for_log(LEFT_ALONE, DEADLINE).await;
        self.sqs.let_pass(LEASE_OVER).await;
    }

    async fn told(&self) -> Vec<String> {
        let statuses = self
            .fixture
            .github
            .wait_for_end(&self.fixture.sha, DEADLINE)
            .await;
        told(&statuses)
    }

    /// Stops the worker: the build must have the end that it was told, and no message be left.
    async fn ends(&self, mut worker: OneBox, expected: &[&str]) {
        assert_eq!(self.told().await, expected);
        worker.stop(DEADLINE).await;
        let statuses = self.fixture.github.statuses(&self.fixture.sha);
        assert_eq!(told(&statuses), expected);
        assert_eq!(self.sqs.messages().await, [0, 0]);
    }
}

fn lists_statuses(request: &Request) -> bool {
    request.method == "GET" && request.path.ends_with("/statuses")
}

fn posts_status(request: &Request) -> bool {
    request.method == "POST"
}

fn fetches_tarball(request: &Request) -> bool {
    request.path.contains("/tarball/")
}

#[tokio::test]
async fn a_build_whose_host_is_lost_is_told_to_be_interrupted_and_its_hook_runs_nowhere_else() {
    let world = World::new().await;
    let hook = format!("echo ran; {GATE}");
    let mut lost = world.here(&hook).start().await;
    let build = world.begun(&lost).await;
    world.lose(&mut lost, &build).await;

    let engine = PrivateEngine::start().await;
    let other = world.on(&engine, &hook).start().await;
    world.inherited_by(&other).await;
    assert_eq!(world.told().await, ["Pending: building", INTERRUPTED]);
    assert_eq!(log(&other, &build), "");
    world.ends(other, &["Pending: building", INTERRUPTED]).await;
}

#[tokio::test]
async fn a_build_whose_host_is_lost_runs_again_where_that_is_wanted() {
    let world = World::new().await;
    let mut lost = world.here(&format!("echo ran; {GATE}")).start().await;
    let build = world.begun(&lost).await;
    world.lose(&mut lost, &build).await;

    let engine = PrivateEngine::start().await;
    engine.load(IMAGE).await;
    let other = world.on(&engine, "echo again");
    let other = other.env("RERUN_INTERRUPTED", "1").start().await;
    world.inherited_by(&other).await;
    let expected = [
        "Pending: building",
        "Pending: building",
        "Success: passed in …",
    ];
    assert_eq!(world.told().await, expected);
    assert_eq!(log(&other, &build), "again\n");
    world.ends(other, &expected).await;
}

#[tokio::test]
async fn a_build_of_which_a_host_is_lost_before_the_start_is_told_to_be_interrupted() {
    let world = World::new().await;
    let mut lost = claimed(&world).await;
    lost.leave_unfinished();
    lost.kill();
    let other = world.here("echo ran").start().await;
    world.inherited_by(&other).await;
    world.ends(other, &["Pending: building", INTERRUPTED]).await;
}

#[tokio::test]
async fn a_worker_that_is_killed_before_the_start_goes_on_at_its_next() {
    let world = World::new().await;
    let mut worker = claimed(&world).await;
    worker.kill();
    worker.start_again().await;
    world
        .ends(worker, &["Pending: building", "Success: passed in …"])
        .await;
}

/// A worker that has announced a build, and waits for GitHub to tell that it was the first.
async fn claimed(world: &World) -> OneBox {
    let github = &world.fixture.github;
    github.fail_next(Endpoint::Tarball, 1, Fault::secondary_limit(2));
    let worker = world.here("true").start().await;
    world.fixture.push(&worker).await;
    github.wait_for_request(fetches_tarball, DEADLINE).await;
    github.fail_next(Endpoint::ListStatuses, 1, Fault::Hang);
    github.wait_for_requests(2, lists_statuses, DEADLINE).await;
    worker
}

#[tokio::test]
async fn a_worker_that_is_cut_off_from_its_queue_tells_nothing_and_another_one_does() {
    let world = World::new().await;
    let way = FaultProxy::to(Upstream::Tcp(world.sqs.address())).await;
    let worker = world.here(GATE).env("AWS_ENDPOINT_URL", way.url());
    let mut cut_off = worker.start().await;
    let build = world.begun(&cut_off).await;
    way.fail(NetworkFault::BlackHole);
    let lost = "lost the lease of a build";
    cut_off.wait_for_log(lost, DEADLINE).await;
    assert_eq!(docker(&["wait", &build]).await, "143\n");

    let engine = PrivateEngine::start().await;
    let other = world.on(&engine, "echo ran").start().await;
    world.inherited_by(&other).await;
    world.told().await;
    way.heal();
    cut_off.stop(DEADLINE).await;
    docker(&["rm", "--force", "--volumes", &build]).await;
    docker(&["volume", "rm", &format!("compose-ci-{build}")]).await;
    world.ends(other, &["Pending: building", INTERRUPTED]).await;
}

#[tokio::test]
async fn a_push_that_is_delivered_again_while_another_worker_builds_it_is_left_to_that_one() {
    let engine = PrivateEngine::start().await;
    let world = World::new().await;
    let other = world.on(&engine, "echo ran");
    is_left_to_that_one(world, other).await;
}

#[tokio::test]
async fn a_push_that_is_delivered_again_while_a_worker_beside_builds_it_is_left_to_that_one() {
    let world = World::new().await;
    let other = world.here("echo ran");
    is_left_to_that_one(world, other).await;
}

async fn is_left_to_that_one(world: World, other: Setup) {
    let one = world.here(&format!("echo ran; {GATE}")).start().await;
    let (delivery, payload) = delivery(&world);
    let build = one.deliver("push", &delivery, &payload).await.build_id();
    at_gate(&world.fixture.engine, &build).await;
    assert_eq!(world.sqs.messages().await, [1, 0]);

    let mut other = other.start().await;
    // The worker that builds would wait for its own turn with it.
    let mut stopped = one;
    stopped.terminate();
    stopped.wait_for_log("asked to stop", DEADLINE).await;
    other.deliver("push", &delivery, &payload).await.build_id();
    other.wait_for_log(LEFT_ALONE, DEADLINE).await;
    other.stop(DEADLINE).await;
    assert_eq!(log(&other, &build), "");
    stopped.wait_for_end(DEADLINE).await;
    stopped.start_again().await;
    open_gate(&build).await;
    world
        .ends(stopped, &["Pending: building", "Success: passed in …"])
        .await;
}

fn delivery(world: &World) -> (String, Value) {
    (Uuid::new_v4().to_string(), world.fixture.payload())
}

#[tokio::test]
async fn a_push_that_is_delivered_again_after_its_build_is_known_by_its_status() {
    is_known_after_its_build(|setup| setup).await;
}

#[tokio::test]
async fn a_push_that_is_delivered_again_after_its_build_is_known_by_its_page() {
    is_known_after_its_build(|setup| setup.env("PUBLIC_URL", "https://ci.example.org")).await;
}

async fn is_known_after_its_build(set: impl Fn(Setup) -> Setup) {
    let world = World::new().await;
    let (delivery, payload) = delivery(&world);
    let mut one = set(world.here("true")).start().await;
    one.deliver("push", &delivery, &payload).await.build_id();
    world.told().await;
    one.stop(DEADLINE).await;

    let other = set(world.here("exit 1")).start().await;
    other.deliver("push", &delivery, &payload).await.build_id();
    other.wait_for_log(LEFT_ALONE, DEADLINE).await;
    world
        .ends(other, &["Pending: building", "Success: passed in …"])
        .await;
}

#[tokio::test]
async fn of_two_workers_that_announce_a_build_at_once_one_builds_it() {
    let world = World::new().await;
    let engine = PrivateEngine::start().await;
    engine.load(IMAGE).await;
    // Both have looked before either of them has fetched the commit.
    let github = &world.fixture.github;
    github.fail_next(Endpoint::Tarball, 2, Fault::secondary_limit(3));
    let (delivery, payload) = delivery(&world);
    let one_at_a_time = |setup: Setup| setup.env("CONCURRENCY", "1");
    let one = one_at_a_time(world.here("echo ran")).start().await;
    let build = one.deliver("push", &delivery, &payload).await.build_id();
    github.wait_for_request(fetches_tarball, DEADLINE).await;
    let other = one_at_a_time(world.on(&engine, "echo ran")).start().await;
    other.deliver("push", &delivery, &payload).await.build_id();

    let expected = [
        "Pending: building",
        "Pending: building",
        "Success: passed in …",
    ];
    assert_eq!(world.told().await, expected);
    let mut logs = [log(&one, &build), log(&other, &build)];
    logs.sort();
    assert_eq!(logs, ["", "ran\n"]);
    let project = project(&build);
    for engine in [&world.fixture.engine, &engine.connect().await] {
        engine.assert_nothing_left(&build, &project, DEADLINE).await;
    }
    world.ends(one, &expected).await;
    world.ends(other, &expected).await;
}

#[tokio::test]
async fn a_dead_letter_of_a_build_that_another_worker_has_ended_contradicts_nothing() {
    let world = World::new().await;
    let mut one = world.here("true").start().await;
    let build = world.fixture.push(&one).await;
    world.told().await;
    one.stop(DEADLINE).await;

    let sha = &world.fixture.sha;
    let letter = json!({
        "version": "1",
        "id": build,
        "repo": REPO,
        "revision": { "commit": sha },
    });
    world.sqs.plant_dead_letter(&letter.to_string()).await;
    let other = world.here("true").start().await;
    other.wait_for_log(LEFT_ALONE, DEADLINE).await;
    world
        .ends(other, &["Pending: building", "Success: passed in …"])
        .await;
}

#[tokio::test]
async fn an_end_that_comes_after_another_worker_has_told_one_is_kept_from_the_commit() {
    let world = World::new().await;
    let github = &world.fixture.github;
    let way = FaultProxy::to(Upstream::Tcp(world.sqs.address())).await;
    let worker = world.here(GATE).env("AWS_ENDPOINT_URL", way.url());
    let mut late = worker.start().await;
    let build = world.begun(&late).await;
    // It can neither tell the end nor let go of the message, and dies.
    way.fail(NetworkFault::BlackHole);
    github.fail_next(Endpoint::PostStatus, 1, Fault::Hang);
    open_gate(&build).await;
    github.wait_for_requests(2, posts_status, DEADLINE).await;
    late.kill();

    let engine = PrivateEngine::start().await;
    let other = world.on(&engine, "true").start().await;
    world.inherited_by(&other).await;
    let expected = ["Pending: building", INTERRUPTED];
    assert_eq!(world.told().await, expected);
    let looks = github
        .requests()
        .iter()
        .filter(|one| lists_statuses(one))
        .count();
    late.start_again().await;
    github
        .wait_for_requests(looks + 1, lists_statuses, DEADLINE)
        .await;
    late.stop(DEADLINE).await;
    docker(&["rm", "--force", "--volumes", &build]).await;
    docker(&["volume", "rm", &format!("compose-ci-{build}")]).await;
    world.ends(other, &expected).await;
}

#[tokio::test]
async fn a_hook_does_not_start_before_its_pending_status_was_accepted() {
    let world = World::new().await;
    let github = &world.fixture.github;
    github.fail_next(Endpoint::PostStatus, 2, Fault::code(403));
    let worker = world.here("echo ran").start().await;
    let build = world.fixture.push(&worker).await;
    world.told().await;
    assert_eq!(log(&worker, &build), "");
    let refused =
        "Error: error: GitHub answered 403 to the commit status (may GITHUB_TOKEN do this?)";
    world.ends(worker, &[refused]).await;
}

#[tokio::test]
async fn a_pending_status_that_meets_trouble_is_posted_once() {
    let world = World::new().await;
    let github = &world.fixture.github;
    github.fail_next(Endpoint::ListStatuses, 1, Fault::code(502));
    github.fail_next(Endpoint::PostStatus, 1, Fault::LoseAnswer);
    let worker = world.here("true").start().await;
    world.fixture.push(&worker).await;
    world
        .ends(worker, &["Pending: building", "Success: passed in …"])
        .await;
}

#[tokio::test]
async fn the_statuses_of_a_build_name_it() {
    let world = World::new().await;
    let worker = world.here("true").start().await;
    let build = world.fixture.push(&worker).await;
    world.told().await;
    let statuses = world.fixture.github.statuses(&world.fixture.sha);
    let [pending, passed] = &statuses[..] else {
        panic!("{statuses:#?}")
    };
    let [pending, passed] = [pending, passed].map(|status| status.description.as_deref());
    let pending = pending.and_then(|told| told.strip_prefix(&format!("building {build} (lease ")));
    let lease = pending.and_then(|told| told.strip_suffix(')'));
    let digits = lease.map(|lease| lease.split('-').map(str::len).collect::<Vec<_>>());
    assert_eq!(digits, Some(vec![8, 4]), "{statuses:#?}");
    let passed = passed.expect("a description");
    assert!(
        passed.starts_with("passed in ") && passed.ends_with(&format!(" ({build})")),
        "{passed}"
    );
}

/// The method and the kind of each request for a build that passes, in alphabetical order.
async fn requests_for_a_build(setup: impl FnOnce(&Fixture) -> Setup) -> Vec<String> {
    let fixture = Fixture::plain().await;
    let mut service = setup(&fixture).start().await;
    fixture.build(&service).await.assert_passed();
    service.stop(DEADLINE).await;
    let kind = |request: &Request| {
        let mut parts = request.path.split('/').map(str::to_owned);
        let kind = parts.find(|part| part.starts_with("statuses") || part.contains("tar"));
        format!("{} {}", request.method, kind.unwrap_or_default())
    };
    let mut requests: Vec<_> = fixture.github.requests().iter().map(kind).collect();
    requests.sort();
    requests
}

#[tokio::test]
async fn one_box_asks_nothing_that_only_several_workers_need_to_know() {
    let requests = requests_for_a_build(|fixture| fixture.setup("true")).await;
    assert_eq!(
        requests,
        [
            "GET legacy.tar.gz",
            "GET tarball",
            "POST statuses",
            "POST statuses"
        ]
    );
}

#[tokio::test]
async fn a_worker_among_others_looks_before_it_builds_and_once_more_before_the_start() {
    let sqs = Sqs::start("").await;
    let requests = requests_for_a_build(|fixture| sqs.used_by(fixture.setup("true"))).await;
    assert_eq!(
        requests,
        [
            "GET legacy.tar.gz",
            "GET statuses",
            "GET statuses",
            "GET tarball",
            "POST statuses",
            "POST statuses"
        ]
    );
}
