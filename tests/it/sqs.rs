//! The one box with its queue at SQS: the same push, the same behaviour.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use harness::{Aws, Queues, REGION, Setup, docker};
use serde_json::json;
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::fixture::{DEADLINE, Fixture, GATE, REPO, at_gate, log, open_gate, told};

/// How the names of the queues begin.
const FAMILY: &str = "ci";

/// Where workers on several hosts claim builds.
const BUCKET: &str = "ci-builds";

/// An emulator with the two queues of one service.
pub(crate) struct Sqs {
    aws: Aws,
    queues: Queues,
}

impl Sqs {
    pub(crate) async fn start(suffix: &str) -> Self {
        let aws = Aws::start().await;
        let queues = aws.create_queues(FAMILY, suffix).await;
        Self { aws, queues }
    }

    pub(crate) fn used_by(&self, setup: Setup) -> Setup {
        at(setup, &self.queues.url, &self.aws.endpoint_url())
    }

    /// Makes the bucket.
    pub(crate) async fn with_store(self) -> Self {
        self.aws.create_bucket(BUCKET).await;
        self
    }

    /// The same worker, which claims its builds in the bucket.
    pub(crate) fn stored(&self, setup: Setup) -> Setup {
        let setup = self.used_by(setup);
        setup.env("STORE_URL", format!("s3://{BUCKET}/team"))
    }

    /// Does to the claims what time would do.
    pub(crate) async fn age_claims(&self, by: Duration) {
        self.aws.age_objects(BUCKET, by).await;
    }

    /// Where the emulator listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.aws.address()
    }

    /// Stops the queues' clock, at the first call, and moves it.
    pub(crate) async fn let_pass(&self, time: Duration) {
        self.aws.advance_clock(FAMILY, time).await;
    }

    /// Sends what no handler would send there.
    pub(crate) async fn plant_dead_letter(&self, body: &str) {
        let message = json!({ "QueueUrl": self.queues.dead_letters_url, "MessageBody": body });
        self.aws.sqs("SendMessage", message).await;
    }

    /// Waits until no message is left.
    pub(crate) async fn wait_until_empty(&self) {
        let emptied = async { while self.messages().await != [0, 0] {} };
        let in_time = tokio::time::timeout(DEADLINE, emptied).await;
        assert!(in_time.is_ok(), "{:?}", self.messages().await);
    }

    /// How many messages the queue and its dead letters hold.
    pub(crate) async fn messages(&self) -> [u64; 2] {
        let Queues {
            url,
            dead_letters_url,
        } = &self.queues;
        [
            self.aws.messages(url).await,
            self.aws.messages(dead_letters_url).await,
        ]
    }
}

fn at(setup: Setup, queue_url: &str, endpoint_url: &str) -> Setup {
    setup
        .env("QUEUE_URL", queue_url)
        .env("AWS_ENDPOINT_URL", endpoint_url)
        .env("AWS_REGION", REGION)
        .env("AWS_ACCESS_KEY_ID", "an-id")
        .env("AWS_SECRET_ACCESS_KEY", "a-secret")
}

#[tokio::test]
async fn a_push_passes_by_way_of_a_standard_queue() {
    a_push_passes(Sqs::start("").await).await;
}

#[tokio::test]
async fn a_push_passes_by_way_of_a_fifo_queue() {
    a_push_passes(Sqs::start(".fifo").await).await;
}

async fn a_push_passes(sqs: Sqs) {
    let fixture = Fixture::plain().await;
    // The hook is told nothing of the queue.
    let setup = fixture.setup("cat README.md; env | grep _URL= | cut -d= -f1 | sort");
    let mut service = sqs.used_by(setup).start().await;
    assert_eq!(service.get("/healthz").await.code, 200);
    let built = fixture.build(&service).await;
    built.assert_passed();
    assert!(!built.log.contains("QUEUE_URL"), "{}", built.log);
    assert!(built.log.starts_with("hello\n"), "{}", built.log);
    service.stop(DEADLINE).await;
    assert_eq!(sqs.messages().await, [0, 0]);
}

#[tokio::test]
async fn a_delivery_that_comes_twice_to_a_standard_queue_runs_once() {
    let sqs = Sqs::start("").await;
    let fixture = Fixture::plain().await;
    let setup = fixture.setup(&format!("echo ran >> runs; {GATE}; cat runs"));
    let mut service = sqs.used_by(setup).start().await;
    let delivery = Uuid::new_v4().to_string();
    let first = service.deliver("push", &delivery, &fixture.payload()).await;
    let build = first.build_id();
    at_gate(&fixture.engine, &build).await;
    let again = service.deliver("push", &delivery, &fixture.payload()).await;
    assert_eq!(again.build_id(), build);
    open_gate(&build).await;
    let reported_again = "reporting its result again";
    service.wait_for_log(reported_again, DEADLINE).await;
    let statuses = told(&fixture.github.wait_for_end(&fixture.sha, DEADLINE).await);
    assert_eq!(statuses, ["Pending: building", "Success: passed in …"]);
    assert_eq!(log(&service, &build), "ran\n");
    service.stop(DEADLINE).await;
    assert_eq!(sqs.messages().await, [0, 0]);
}

#[tokio::test]
async fn a_worker_that_is_killed_goes_on_at_its_next_start() {
    let sqs = Sqs::start("").await;
    let fixture = Fixture::plain().await;
    sqs.let_pass(Duration::ZERO).await;
    let setup = fixture.setup(&format!("echo ran; {GATE}"));
    let mut service = sqs.used_by(setup).start().await;
    let build = fixture.push(&service).await;
    at_gate(&fixture.engine, &build).await;
    service.kill();
    service.start_again().await;
    let adopted = "going on with a build that was left running";
    service.wait_for_log(adopted, Duration::from_secs(20)).await;
    open_gate(&build).await;
    fixture.github.wait_for_end(&fixture.sha, DEADLINE).await;
    // The message comes back when its lease has ended, finds the end and removes the container.
    sqs.let_pass(Duration::from_secs(5 * 60 + 1)).await;
    service
        .wait_for_log("reporting its result again", DEADLINE)
        .await;
    let built = fixture.finished(&service, build).await;
    assert_eq!(built.log, "ran\n");
    service.stop(DEADLINE).await;
    assert_eq!(sqs.messages().await, [0, 0]);
}

fn one_at_a_time(fixture: &Fixture) -> Setup {
    fixture.setup(GATE).env("CONCURRENCY", "1")
}

#[tokio::test]
async fn builds_beyond_the_free_slots_are_left_to_other_workers() {
    let sqs = Sqs::start("").await;
    let mut fixture = Fixture::plain().await;
    let mut one = sqs.used_by(one_at_a_time(&fixture)).start().await;
    let mut other = sqs.used_by(one_at_a_time(&fixture)).start().await;
    let mut commits = Vec::new();
    let mut builds = Vec::new();
    for number in ["1", "2", "3"] {
        fixture.commit("number", number);
        commits.push(fixture.sha.clone());
        builds.push(fixture.push(&one).await);
    }
    let mut started: FuturesUnordered<_> = builds
        .iter()
        .map(async |build| {
            at_gate(&fixture.engine, build).await;
            build
        })
        .collect();
    // Two run at once although each worker runs one at a time; the third waits for either.
    let first = started.next().await.expect("a build");
    let second = started.next().await.expect("another build");
    assert_eq!(sqs.messages().await, [3, 0]);
    assert!(started.next().now_or_never().is_none());
    open_gate(first).await;
    let third = started.next().await.expect("the last build");
    open_gate(second).await;
    open_gate(third).await;
    for commit in &commits {
        let statuses = fixture.github.wait_for_end(commit, DEADLINE).await;
        assert_eq!(
            told(&statuses),
            ["Pending: building", "Success: passed in …"]
        );
    }
    for service in [&one, &other] {
        assert!(service.log().contains("finished"), "{}", service.log());
    }
    one.stop(DEADLINE).await;
    other.stop(DEADLINE).await;
    assert_eq!(sqs.messages().await, [0, 0]);
}

#[tokio::test]
async fn a_worker_that_is_cut_off_from_its_queue_stops_its_build_and_reports_nothing() {
    let sqs = Sqs::start("").await;
    let fixture = Fixture::plain().await;
    let mut service = sqs.used_by(fixture.setup(GATE)).start().await;
    let build = fixture.push(&service).await;
    at_gate(&fixture.engine, &build).await;
    drop(sqs);
    // The lease of a build that has just begun ends after a minute, with a margin for the stop.
    service
        .wait_for_log("lost the lease of a build", DEADLINE)
        .await;
    let exit_code = docker(&["wait", &build]).await;
    assert_eq!(exit_code.trim(), "143");
    service.leave_unfinished();
    service.stop(DEADLINE).await;
    let statuses = told(&fixture.github.statuses(&fixture.sha));
    assert_eq!(statuses, ["Pending: building"]);
    docker(&["rm", "--force", "--volumes", &build]).await;
    docker(&["volume", "rm", &format!("compose-ci-{build}")]).await;
}

#[tokio::test]
async fn a_dead_letter_gives_its_commit_a_final_status() {
    let sqs = Sqs::start("").await;
    let fixture = Fixture::plain().await;
    let letter = json!({
        "version": "1",
        "id": Uuid::new_v4(),
        "repo": REPO,
        "revision": { "commit": fixture.sha },
    });
    sqs.plant_dead_letter(&letter.to_string()).await;
    let mut service = sqs.used_by(fixture.setup("true")).start().await;
    let statuses = fixture.github.wait_for_end(&fixture.sha, DEADLINE).await;
    assert_eq!(
        told(&statuses),
        ["Error: error: gave up after 3 attempts (the worker was interrupted)"]
    );
    service.stop(DEADLINE).await;
    assert_eq!(sqs.messages().await, [0, 0]);
}

#[tokio::test]
async fn a_dead_letter_that_cannot_be_read_is_told_and_stays() {
    let sqs = Sqs::start("").await;
    let fixture = Fixture::plain().await;
    sqs.plant_dead_letter("of another age").await;
    let mut service = sqs.used_by(fixture.setup("true")).start().await;
    service
        .wait_for_log("failed to read a message", DEADLINE)
        .await;
    // It stops nobody.
    fixture.build(&service).await.assert_passed();
    service.stop(DEADLINE).await;
    assert_eq!(sqs.messages().await, [0, 1]);
}

#[tokio::test]
async fn a_push_is_not_accepted_while_sqs_cannot_be_reached() {
    let fixture = Fixture::plain().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint_url = format!("http://{}", nobody.local_addr().expect("an address"));
    let url = format!("https://sqs.{REGION}.amazonaws.com/1/builds");
    // It listens and never answers.
    let service = at(fixture.setup("true"), &url, &endpoint_url).start().await;
    let refused = service.push(&fixture.payload()).await;
    assert_eq!(refused.code, 503, "{}", refused.body);
    service.wait_for_log(&url, Duration::from_secs(1)).await;
    assert_eq!(service.get("/healthz").await.code, 503);
}
