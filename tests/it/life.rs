//! The service stops, dies and starts again, and a delivery may come twice: no hook runs twice,
//! and no build is lost.

use std::time::Duration;

use harness::{Endpoint, Fault, OneBox, Push, docker};
use rusqlite::Connection;
use shared::queue::MAX_RECEIVES;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::fixture::{DEADLINE, Fixture, GATE, REPO, at_gate, log, open_gate, told};

/// How long a service may take to end that waits for no build.
const AT_ONCE: Duration = Duration::from_secs(5);
/// A service that is away for so long sees a hook end late.
const OUTAGE: Duration = Duration::from_secs(4);

/// A build whose hook waits at the gate, and which was announced.
struct Running {
    fixture: Fixture,
    service: OneBox,
    build: String,
    /// The first digits of the container's id, which the hook writes into its log.
    container: String,
}

impl Running {
    /// Begins a build; a service that stops will wait this long for it.
    async fn draining_for(drain_timeout: &str) -> Self {
        let fixture = Fixture::plain().await;
        let hook = format!(
            "echo ran >> runs; cat /etc/hostname; seq 1 20000; {GATE}; seq 20001 40000; cat runs"
        );
        let setup = fixture.setup(&hook).env("DRAIN_TIMEOUT", drain_timeout);
        let service = setup.start().await;
        let build = fixture.push(&service).await;
        at_gate(&fixture.engine, &build).await;
        let announced =
            fixture
                .github
                .wait_for_status(&fixture.sha, |statuses| !statuses.is_empty(), DEADLINE);
        announced.await;
        let id = docker(&["inspect", "--format", "{{.Id}}", &build]).await;
        Self {
            fixture,
            service,
            build,
            container: id[..12].to_owned(),
        }
    }

    /// Waits for the end of the build. Its hook must have run once, in the container that was
    /// there before, and its log must be whole.
    async fn passes(self) {
        let built = self.fixture.finished(&self.service, self.build).await;
        built.assert_passed();
        let numbers: String = (1..=40_000).map(|number| format!("{number}\n")).collect();
        let whole = format!("{}\n{numbers}ran\n", self.container);
        let lines = built.log.lines().count();
        assert!(built.log == whole, "{lines} lines are not the whole log");
    }
}

#[tokio::test]
async fn a_service_that_stops_finishes_its_build() {
    let mut running = Running::draining_for("60s").await;
    running.service.terminate();
    open_gate(&running.build).await;
    assert!(running.service.wait_for_end(DEADLINE).await.success());
    // Nothing of it is left to the next start.
    let states = told(&running.fixture.github.statuses(&running.fixture.sha));
    assert_eq!(states, ["Pending: building", "Success: passed in …"]);
    running.service.start_again().await;
    running.passes().await;
}

#[tokio::test]
async fn a_push_is_taken_while_the_last_build_of_a_service_that_stops_goes_on() {
    let mut running = Running::draining_for("60s").await;
    running.service.terminate();
    let stopping = "asked to stop";
    running.service.wait_for_log(stopping, DEADLINE).await;
    running.fixture.commit("later", "later");
    let later = running.fixture.push(&running.service).await;
    open_gate(&running.build).await;
    assert!(running.service.wait_for_end(DEADLINE).await.success());
    running.service.start_again().await;
    at_gate(&running.fixture.engine, &later).await;
    open_gate(&later).await;
    let built = running.fixture.finished(&running.service, later).await;
    built.assert_passed();
}

#[tokio::test]
async fn a_long_build_goes_on_without_the_service_and_with_its_next_start() {
    let mut running = Running::draining_for("1s").await;
    assert!(running.service.stop(AT_ONCE).await.success());
    assert!(running.service.log().contains("left running"));
    running.service.start_again().await;
    open_gate(&running.build).await;
    running.passes().await;
}

#[tokio::test]
async fn a_killed_service_goes_on_with_its_build() {
    let mut running = Running::draining_for("60s").await;
    running.service.kill();
    running.service.start_again().await;
    open_gate(&running.build).await;
    running.passes().await;
}

#[tokio::test]
async fn a_build_that_ended_while_no_service_ran_is_told_by_the_next() {
    let mut running = Running::draining_for("60s").await;
    running.service.kill();
    open_gate(&running.build).await;
    assert_eq!(docker(&["wait", &running.build]).await, "0\n");
    running.service.start_again().await;
    running.passes().await;
}

/// What a commit is told whose container vanishes with the service, after this many receives.
async fn told_without_container(receives: u32) -> Vec<String> {
    let mut running = Running::draining_for("60s").await;
    running.service.kill();
    docker(&["rm", "--force", "--volumes", &running.build]).await;
    let queue = Connection::open(running.service.data_dir().join("queue.db"));
    let queue = queue.expect("the queue is SQLite");
    let changed = queue.execute("UPDATE message SET receives = ?1", [receives]);
    assert_eq!(changed, Ok(1));
    drop(queue);
    running.service.start_again().await;
    let Running {
        fixture,
        service,
        build,
        ..
    } = running;
    fixture.finished(&service, build).await.told()
}

const INTERRUPTED: [&str; 2] = [
    "Pending: building",
    "Error: error: interrupted: the hook was started, and its container is gone",
];

#[tokio::test]
async fn a_build_whose_container_vanished_while_no_service_ran_is_not_run_again() {
    assert_eq!(told_without_container(1).await, INTERRUPTED);
}

#[tokio::test]
async fn a_build_that_was_given_up_is_not_told_as_one_that_never_began() {
    assert_eq!(told_without_container(MAX_RECEIVES).await, INTERRUPTED);
}

#[tokio::test]
async fn a_log_is_whole_of_which_the_engine_keeps_only_the_end() {
    let fixture = Fixture::plain().await;
    // The engine needs five times the room for lines that are so short.
    let hook = format!("seq 1 120000; {GATE}; seq 120001 140000");
    let setup = fixture.setup(&hook).env("LOG_LIMIT", "1MiB");
    let mut service = setup.start().await;
    let build = fixture.push(&service).await;
    at_gate(&fixture.engine, &build).await;
    let is_written = async || {
        let kept = docker(&["logs", "--tail", "1", &build]).await;
        let head = log(&service, &build);
        kept == "120000\n" && head.len() == 512 << 10
    };
    let written = async { while !is_written().await {} };
    timeout(DEADLINE, written).await.expect("it is written");
    assert!(!docker(&["logs", &build]).await.starts_with("1\n"));
    service.kill();
    service.start_again().await;
    open_gate(&build).await;
    let built = fixture.finished(&service, build).await;
    built.assert_passed();
    let whole: String = (1..=140_000).map(|number| format!("{number}\n")).collect();
    let lines = built.log.lines().count();
    assert!(built.log == whole, "{lines} lines are not the whole log");
}

#[tokio::test]
async fn the_end_of_a_long_log_outlives_a_killed_service() {
    let fixture = Fixture::plain().await;
    let hook = format!(
        "yes 0123456789abcdef | head --bytes 30000000; {GATE}
        seq --format 'AFTER %g' 5; echo THE-END"
    );
    let setup = fixture.setup(&hook).env("LOG_LIMIT", "1MiB");
    let mut service = setup.start().await;
    let build = fixture.push(&service).await;
    at_gate(&fixture.engine, &build).await;
    service.kill();
    service.start_again().await;
    open_gate(&build).await;
    let built = fixture.finished(&service, build).await;
    built.assert_passed();
    let end = "AFTER 1\nAFTER 2\nAFTER 3\nAFTER 4\nAFTER 5\nTHE-END\n";
    let log = &built.log;
    assert!(
        log.starts_with("0123456789abcdef\n") && log.ends_with(end),
        "{} bytes: {}",
        log.len(),
        &log[log.len().saturating_sub(300)..]
    );
}

#[tokio::test]
async fn the_time_that_is_told_is_the_hooks() {
    let fixture = Fixture::plain().await;
    let mut service = fixture.setup(&format!("{GATE}; exit 3")).start().await;
    let build = fixture.push(&service).await;
    at_gate(&fixture.engine, &build).await;
    service.kill();
    open_gate(&build).await;
    fixture.engine.wait_until_ended(&build, DEADLINE).await;
    // Nobody is there to see that it has ended.
    sleep(OUTAGE).await;
    service.start_again().await;
    let built = fixture.finished(&service, build).await;
    let last = built.statuses.last().expect("a status");
    let told = last.description.as_deref().unwrap_or_default();
    let time = told.strip_prefix("failed with exit code 3 after ");
    let time = time.and_then(|time| time.trim_start_matches('<').strip_suffix('s'));
    let seconds: u64 = time.and_then(|time| time.parse().ok()).expect(told);
    assert!(seconds < OUTAGE.as_secs(), "{told}");
}

#[tokio::test]
async fn a_build_whose_container_vanished_is_run_again_where_that_is_wanted() {
    let fixture = Fixture::plain().await;
    let setup = fixture.setup(&format!("echo ran; {GATE}"));
    let mut service = setup.env("RERUN_INTERRUPTED", "1").start().await;
    let build = fixture.push(&service).await;
    at_gate(&fixture.engine, &build).await;
    service.kill();
    docker(&["rm", "--force", "--volumes", &build]).await;
    service.start_again().await;
    at_gate(&fixture.engine, &build).await;
    open_gate(&build).await;
    let built = fixture.finished(&service, build).await;
    built.assert_passed();
    assert_eq!(built.log, "ran\n");
}

#[tokio::test]
async fn a_second_signal_ends_the_service_at_once() {
    let mut running = Running::draining_for("60s").await;
    running.service.terminate();
    running.service.wait_for_log("asked to stop", AT_ONCE).await;
    running.service.stop(AT_ONCE).await;
    running.service.start_again().await;
    open_gate(&running.build).await;
    running.passes().await;
}

#[tokio::test]
async fn an_idle_service_stops_at_once() {
    let fixture = Fixture::plain().await;
    let mut service = fixture.setup("true").start().await;
    assert!(service.stop(AT_ONCE).await.success());
}

#[tokio::test]
async fn a_push_that_was_accepted_outlives_the_service() {
    let fixture = Fixture::plain().await;
    let mut service = fixture.setup("echo ran").start().await;
    let build = fixture.push(&service).await;
    service.kill();
    service.start_again().await;
    let built = fixture.finished(&service, build).await;
    built.assert_passed();
    assert_eq!(built.log, "ran\n");
}

#[tokio::test]
async fn a_status_that_a_killed_service_owed_is_posted_by_the_next() {
    let fixture = Fixture::plain().await;
    let mut service = fixture.setup(GATE).start().await;
    let build = fixture.push(&service).await;
    at_gate(&fixture.engine, &build).await;
    let is_post = |request: &harness::Request| request.method == "POST";
    let github = &fixture.github;
    github
        .wait_for_status(&fixture.sha, |statuses| !statuses.is_empty(), DEADLINE)
        .await;
    github.fail_next(Endpoint::PostStatus, 1, Fault::Hang);
    open_gate(&build).await;
    github.wait_for_requests(2, is_post, DEADLINE).await;
    service.kill();
    service.start_again().await;
    fixture.finished(&service, build).await.assert_passed();
}

/// A hook that writes something else each time it runs.
const DIFFERENT: &str = "cat /proc/sys/kernel/random/uuid";

#[tokio::test]
async fn a_delivery_that_comes_again_during_its_build_is_the_same_build() {
    let fixture = Fixture::plain().await;
    let service = fixture.setup(GATE).start().await;
    let delivery = Uuid::new_v4().to_string();
    let payload = fixture.payload();
    let first = service.deliver("push", &delivery, &payload).await;
    let build = first.build_id();
    at_gate(&fixture.engine, &build).await;
    let again = service.deliver("push", &delivery, &payload).await;
    assert_eq!(again.build_id(), build);
    open_gate(&build).await;
    fixture.finished(&service, build).await.assert_passed();
}

/// GitHub delivers a push under one GUID to each of a repository's webhooks.
#[tokio::test]
async fn two_services_on_one_engine_build_the_same_push_once_each() {
    let fixture = Fixture::plain().await;
    let tests = fixture.setup(&format!("{GATE}; echo tests"));
    let mut tests = tests.start().await;
    let deploy = fixture.setup("echo deploy").env("STATUS_CONTEXT", "deploy");
    let mut deploy = deploy.start().await;
    let (delivery, payload) = (Uuid::new_v4().to_string(), fixture.payload());
    let tested = tests.deliver("push", &delivery, &payload).await.build_id();
    at_gate(&fixture.engine, &tested).await;
    let deployed = deploy.deliver("push", &delivery, &payload).await.build_id();
    deploy.wait_for_log("finished", DEADLINE).await;
    assert_eq!(log(&deploy, &deployed), "deploy\n");

    open_gate(&tested).await;
    fixture.assert_nothing_left(&tested).await;
    assert_eq!(log(&tests, &tested), "tests\n");
    // What they owe is told before they end.
    for service in [&mut tests, &mut deploy] {
        service.stop(DEADLINE).await;
    }
    let statuses = fixture.github.statuses(&fixture.sha);
    for context in ["compose-ci", "deploy"] {
        let of_one = statuses.iter().filter(|status| status.context == context);
        let of_one: Vec<_> = of_one.cloned().collect();
        assert_eq!(told(&of_one), ["Pending: building", "Success: passed in …"]);
    }
}

#[tokio::test]
async fn a_delivery_that_comes_again_after_its_build_only_tells_the_result_again() {
    let fixture = Fixture::plain().await;
    let mut service = fixture.setup(DIFFERENT).start().await;
    let delivery = Uuid::new_v4().to_string();
    let payload = fixture.payload();
    let first = service.deliver("push", &delivery, &payload).await;
    let built = fixture.finished(&service, first.build_id()).await;
    built.assert_passed();
    // Until its message is settled, the delivery is still the one in work.
    assert!(service.stop(DEADLINE).await.success());
    service.start_again().await;

    let again = service.deliver("push", &delivery, &payload).await;
    assert_eq!(again.build_id(), built.id);
    let statuses = fixture
        .github
        .wait_for_status(&fixture.sha, |statuses| statuses.len() > 2, DEADLINE)
        .await;
    let told = told(&statuses);
    assert_eq!(told[..2], built.told());
    assert_eq!(told[2..], built.told()[1..]);
    assert_eq!(log(&service, &built.id), built.log);
}

/// Pushes so many commits, one after the other; answers the commits and their builds.
async fn push_commits(fixture: &Fixture, service: &OneBox, count: usize) -> Vec<(String, String)> {
    let mut pushed = Vec::new();
    for number in 1..=count {
        let sha = fixture.repo.commit(&format!("Commit {number}"));
        let push = Push {
            repo: REPO,
            reference: "refs/heads/main",
            after: &sha,
            message: "",
        };
        let build = service.push(&push.payload()).await.build_id();
        pushed.push((sha, build));
    }
    pushed
}

#[tokio::test]
async fn one_build_at_a_time_keeps_the_order_of_the_pushes() {
    let fixture = Fixture::plain().await;
    let hook = "date +%s%N; sleep 0.2; date +%s%N";
    let setup = fixture.setup(hook).env("CONCURRENCY", "1");
    let service = setup.start().await;
    let pushed = push_commits(&fixture, &service, 3).await;
    let mut times = Vec::new();
    for (sha, build) in &pushed {
        fixture.github.wait_for_end(sha, DEADLINE).await;
        let log = log(&service, build);
        times.extend(log.lines().map(|ns| ns.parse::<u64>().expect("a time")));
    }
    assert_eq!(times.len(), 6);
    assert!(times.is_sorted(), "{times:?}");
}

#[tokio::test]
async fn two_builds_at_a_time_run_at_once() {
    let fixture = Fixture::plain().await;
    let setup = fixture.setup(GATE).env("CONCURRENCY", "2");
    let service = setup.start().await;
    let pushed = push_commits(&fixture, &service, 2).await;
    for (_, build) in &pushed {
        at_gate(&fixture.engine, build).await;
    }
    for (sha, build) in &pushed {
        open_gate(build).await;
        fixture.github.wait_for_end(sha, DEADLINE).await;
    }
}
