//! The one box with its queue at SQS: the same push, the same behaviour.

use std::time::Duration;

use harness::{Aws, CommitState, Queues, REGION, Setup};
use serde_json::json;
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::fixture::{DEADLINE, Fixture, GATE, REPO, at_gate, log, open_gate, told};

/// An emulator with the two queues of one service.
struct Sqs {
    aws: Aws,
    queues: Queues,
}

impl Sqs {
    async fn start(suffix: &str) -> Self {
        let aws = Aws::start().await;
        let queues = aws.create_queues("ci", suffix).await;
        Self { aws, queues }
    }

    fn used_by(&self, setup: Setup) -> Setup {
        at(setup, &self.queues.url, &self.aws.endpoint_url())
    }

    /// Sends what no handler would send there.
    async fn plant_dead_letter(&self, body: &str) {
        let message = json!({ "QueueUrl": self.queues.dead_letters_url, "MessageBody": body });
        self.aws.sqs("SendMessage", message).await;
    }

    /// How many messages the queue and its dead letters hold.
    async fn messages(&self) -> [u64; 2] {
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
    assert_eq!(statuses[..2], ["Pending: building", "Success: passed in …"]);
    assert_eq!(log(&service, &build), "ran\n");
    service.stop(DEADLINE).await;
    assert_eq!(sqs.messages().await, [0, 0]);
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
    assert_eq!(statuses[0].state, CommitState::Error);
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
        .wait_for_log("cannot read a message", DEADLINE)
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
