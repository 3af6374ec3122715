//! Where no service looks for missed pushes, a scheduled function does, and queues them at SQS.

#![expect(
    clippy::disallowed_types,
    reason = "a program is started as an operator would"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use harness::{Aws, Endpoint, Fault, LambdaHandler, Queues, REGION, run_to_end};
use serde_json::{Value, json};
use shared::build::{BuildId, DEFAULT_STATUS_CONTEXT};
use shared::message::Message;

use crate::fixture::{DEADLINE, REPO};
use crate::reconcile::{Missing, free_port, url};

/// The time of a function: enough for all looks but one that is to be cut short.
const TIME: Duration = Duration::from_secs(60);

/// The program, which is built with these tests where the whole workspace's are.
pub(crate) fn program() -> PathBuf {
    let program =
        Path::new(env!("CARGO_BIN_EXE_compose-ci")).with_file_name("compose-ci-reconcile");
    assert!(
        program.exists(),
        "{} is missing: run cargo build --package compose-ci-handler --all-features",
        program.display()
    );
    program
}

/// What EventBridge sends at the times of a schedule.
pub(crate) fn scheduled_event() -> Value {
    json!({
        "version": "0",
        "id": "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa",
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": "123456789012",
        "time": "2026-11-22T12:00:00Z",
        "region": "eu-west-1",
        "resources": ["arn:aws:events:eu-west-1:123456789012:rule/team-reconcile"],
        "detail": {},
    })
}

/// A webhook where nobody listens, and a queue for what it misses.
struct Scheduled {
    missing: Missing,
    aws: Aws,
    queues: Queues,
}

impl Scheduled {
    async fn start() -> Self {
        let aws = Aws::start().await;
        let queues = aws.create_queues("ci", "").await;
        let missing = Missing::start().await;
        Self {
            missing,
            aws,
            queues,
        }
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            (
                "GITHUB_TOKEN",
                self.missing.fixture.github.token().to_owned(),
            ),
            ("GITHUB_REPO", REPO.to_owned()),
            ("GITHUB_API_URL", self.missing.fixture.github.url()),
            ("WEBHOOK_URL", url(self.missing.port)),
            ("QUEUE_URL", self.queues.url.clone()),
            ("AWS_ENDPOINT_URL", self.aws.endpoint_url()),
        ]
    }

    async fn function(&self) -> LambdaHandler {
        LambdaHandler::start(&program(), self.variables()).await
    }

    fn by_hand(&self) -> Command {
        let mut command = Command::new(program());
        command
            .env_clear()
            .env("AWS_REGION", REGION)
            .env("AWS_ACCESS_KEY_ID", "an-id")
            .env("AWS_SECRET_ACCESS_KEY", "a-secret")
            .envs(self.variables());
        command
    }

    /// Takes what the queue holds: the builds' ids and commits, sorted by the commits.
    async fn queued(&self) -> Vec<(String, BuildId)> {
        let asked = json!({ "QueueUrl": self.queues.url, "MaxNumberOfMessages": 10 });
        let received = self.aws.sqs("ReceiveMessage", asked).await;
        let mut builds = Vec::new();
        for message in received["Messages"].as_array().into_iter().flatten() {
            let lease =
                json!({ "QueueUrl": self.queues.url, "ReceiptHandle": message["ReceiptHandle"] });
            self.aws.sqs("DeleteMessage", lease).await;
            let body = message["Body"].as_str().expect("a body");
            let request = Message::decode(body).expect("a message").into_request();
            assert_eq!(
                (request.repo.as_str(), request.ref_name()),
                (REPO, Some("main"))
            );
            builds.push((request.revision.to_string(), request.id));
        }
        builds.sort();
        builds
    }

    /// The builds of these commits, by the deliveries that the webhook has missed, likewise sorted.
    fn builds_of(&self, commits: &[String]) -> Vec<(String, BuildId)> {
        let deliveries = self.missing.fixture.github.deliveries(self.missing.hook);
        let ids = deliveries
            .iter()
            .map(|delivery| BuildId::from_delivery(&delivery.guid, DEFAULT_STATUS_CONTEXT));
        let mut builds: Vec<_> = commits.iter().cloned().zip(ids).collect();
        builds.sort();
        builds
    }
}

/// The message of the error that a look ends in.
async fn error_of(function: &mut LambdaHandler, time: Duration) -> String {
    let result = function.try_invoke(&scheduled_event(), time).await;
    let error = result.expect_err("a look that fails");
    error["errorMessage"].as_str().expect("a text").to_owned()
}

/// The lines of a log that tell of what went wrong.
fn errors(log: &str) -> Vec<String> {
    let lines = log.lines().filter_map(|line| line.split_once("ERROR "));
    let told = lines.map(|(_, told)| told.rsplit_once("}: ").map_or(told, |(_, told)| told));
    told.map(str::to_owned).collect()
}

#[tokio::test]
async fn a_missed_push_is_queued_once_and_not_delivered_again() {
    let mut scheduled = Scheduled::start().await;
    let commits = scheduled.missing.miss(3).await;
    let mut function = scheduled.function().await;
    function.invoke(&scheduled_event()).await;
    assert_eq!(scheduled.queued().await, scheduled.builds_of(&commits));

    function.invoke(&scheduled_event()).await;
    assert_eq!(scheduled.queued().await, []);
    let github = &scheduled.missing.fixture.github;
    assert_eq!(github.deliveries(scheduled.missing.hook).len(), 3);
    let requests = github.requests();
    assert!(requests.iter().all(|request| request.method == "GET"));
}

#[tokio::test]
async fn another_process_queues_the_same_build() {
    let mut scheduled = Scheduled::start().await;
    let commits = scheduled.missing.miss(1).await;
    for _ in 0..2 {
        let mut function = scheduled.function().await;
        function.invoke(&scheduled_event()).await;
        assert_eq!(scheduled.queued().await, scheduled.builds_of(&commits));
    }
}

#[tokio::test]
async fn a_push_that_was_delivered_meanwhile_is_not_queued() {
    let mut scheduled = Scheduled::start().await;
    let missing = &mut scheduled.missing;
    let (sha, failed) = missing.push_to(missing.hook).await;
    let webhook = missing.setup().env("RECONCILE", "0").start().await;
    let github = missing.fixture.github.clone();
    let again = github.redeliver(missing.hook, &failed).await;
    assert_eq!(again.status_code, 202);
    missing.assert_built_once(&[sha]).await;
    scheduled.function().await.invoke(&scheduled_event()).await;
    assert_eq!(scheduled.queued().await, []);
    drop(webhook);
}

#[tokio::test]
async fn a_push_that_github_has_forgotten_is_not_queued() {
    let mut scheduled = Scheduled::start().await;
    scheduled.missing.miss(1).await;
    let three_days = Duration::from_secs(3 * 24 * 60 * 60);
    let github = scheduled.missing.fixture.github.clone();
    github.age_deliveries(scheduled.missing.hook, three_days);
    scheduled.function().await.invoke(&scheduled_event()).await;
    assert_eq!(scheduled.queued().await, []);
}

#[tokio::test]
async fn what_is_on_a_later_page_is_found_and_what_others_miss_is_not() {
    let mut scheduled = Scheduled::start().await;
    let commits = scheduled.missing.miss(1).await;
    let github = scheduled.missing.fixture.github.clone();
    for _ in 0..100 {
        let hook = scheduled.missing.hook;
        github.deliver(hook, "watch", &json!({})).await;
    }
    let others = github.create_hook(REPO, &url(free_port()), None);
    scheduled.missing.push_to(others).await;
    scheduled.function().await.invoke(&scheduled_event()).await;
    assert_eq!(scheduled.queued().await, scheduled.builds_of(&commits));
}

#[tokio::test]
async fn the_webhook_of_an_organization_is_looked_at() {
    let mut scheduled = Scheduled::start().await;
    let github = scheduled.missing.fixture.github.clone();
    let (owner, _) = REPO.split_once('/').expect("owner/name");
    let secret = Some(harness::WEBHOOK_SECRET);
    let hook = github.create_hook(owner, &url(scheduled.missing.port), secret);
    scheduled.missing.hook = hook;
    let commits = scheduled.missing.miss(1).await;
    let mut variables = scheduled.variables();
    variables.push(("GITHUB_REPO", format!("{owner}/*")));
    let mut function = LambdaHandler::start(&program(), variables).await;
    function.invoke(&scheduled_event()).await;
    assert_eq!(scheduled.queued().await, scheduled.builds_of(&commits));
}

#[tokio::test]
async fn a_refusal_is_told_once_and_the_next_look_goes_on() {
    let mut scheduled = Scheduled::start().await;
    let commits = scheduled.missing.miss(2).await;
    let github = scheduled.missing.fixture.github.clone();
    let mut function = scheduled.function().await;

    github.fail_next(Endpoint::Hooks, 2, Fault::code(403));
    let no_right = error_of(&mut function, TIME).await;
    insta::assert_snapshot!(no_right, @r#"GitHub answered 403 to the webhooks of octo/hello: GITHUB_TOKEN needs the permission to read them ("Webhooks: read", or read:repo_hook of a classic token)"#);
    assert_eq!(error_of(&mut function, TIME).await, no_right);

    let limit = Fault::secondary_limit(3600);
    github.fail_next(Endpoint::HookDelivery, 1, limit);
    let limited = error_of(&mut function, TIME).await;
    let (what, reason) = limited.split_once(": ").expect("a reason");
    assert!(
        what.starts_with("GitHub is not available for the delivery "),
        "{what}"
    );
    assert_eq!(reason, "it answered 403");
    let told = errors(&function.output());
    assert_eq!(told, [&*no_right, "as at the last look", &limited]);
    // The first push was refused, so the second one was not asked for.
    assert_eq!(scheduled.queued().await, []);

    function.invoke(&scheduled_event()).await;
    assert_eq!(scheduled.queued().await, scheduled.builds_of(&commits));
}

#[tokio::test]
async fn a_look_ends_before_the_time_of_its_function_does() {
    let mut scheduled = Scheduled::start().await;
    let commits = scheduled.missing.miss(1).await;
    let github = scheduled.missing.fixture.github.clone();
    let mut function = scheduled.function().await;
    github.fail_next(Endpoint::HookDeliveries, 1, Fault::Hang);
    let told = error_of(&mut function, Duration::from_secs(7)).await;
    assert_eq!(
        told,
        "the time was over: GitHub, the queue or the store answers slowly"
    );

    function.invoke(&scheduled_event()).await;
    assert_eq!(scheduled.queued().await, scheduled.builds_of(&commits));
}

#[tokio::test]
async fn a_queue_that_cannot_be_reached_fails_the_look() {
    let mut scheduled = Scheduled::start().await;
    let commits = scheduled.missing.miss(1).await;
    let mut elsewhere = scheduled.by_hand();
    elsewhere.env("QUEUE_URL", format!("{}-none", scheduled.queues.url));
    let (code, log) = ended(elsewhere).await;
    assert_eq!(code, Some(1), "{log}");

    let (code, log) = ended(scheduled.by_hand()).await;
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(scheduled.queued().await, scheduled.builds_of(&commits));
}

async fn ended(command: Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = run_to_end(command, DEADLINE).await;
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

#[tokio::test]
async fn started_by_hand_it_looks_once_and_tells_by_its_exit_code_what_came_of_it() {
    let mut scheduled = Scheduled::start().await;
    let commits = scheduled.missing.miss(1).await;
    let github = scheduled.missing.fixture.github.clone();
    let (code, log) = ended(scheduled.by_hand()).await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("looked for missed pushes queued=1"), "{log}");
    assert_eq!(scheduled.queued().await, scheduled.builds_of(&commits));

    github.fail_next(Endpoint::Hooks, 1, Fault::code(404));
    let mut quiet = scheduled.by_hand();
    quiet.env("LOG_LEVEL", "error");
    let (code, told) = ended(quiet).await;
    assert_eq!(code, Some(1));
    insta::assert_snapshot!(told.trim_end(), @r#"compose-ci-reconcile: GitHub answered 404 to the webhooks of octo/hello: GITHUB_TOKEN needs the permission to read them ("Webhooks: read", or read:repo_hook of a classic token)"#);

    let mut without_repo = scheduled.by_hand();
    without_repo.env_remove("GITHUB_REPO");
    let (code, told) = ended(without_repo).await;
    assert_eq!(code, Some(2));
    insta::assert_snapshot!(told.trim_end(), @"compose-ci-reconcile: GITHUB_REPO: missing (owner/name; a comma list or owner/* accepts several)");

    let mut without_queue = scheduled.by_hand();
    without_queue.env_remove("QUEUE_URL");
    let (code, told) = ended(without_queue).await;
    assert_eq!(code, Some(2));
    insta::assert_snapshot!(told.trim_end(), @"compose-ci-reconcile: QUEUE_URL: missing (the queue in DATA_DIR serves compose-ci serve alone)");

    let mut help = scheduled.by_hand();
    help.arg("--help");
    let help = run_to_end(help, DEADLINE).await;
    insta::assert_snapshot!(String::from_utf8_lossy(&help.stdout), @r"
    compose-ci-reconcile 0.1.0: queues the pushes that the webhook missed, as a scheduled function on AWS Lambda or once.
    It takes no arguments, but environment variables:

      GITHUB_TOKEN    * statuses, tarballs; also the webhook's ?token= [required]
      GITHUB_REPO     owner/name; a comma list or owner/* accepts several [required]
      WEBHOOK_SECRET  * HMAC secrets, comma separated; when set, a token in the URL is refused [none]
      WEBHOOK_URL     the webhook's URL without a token, by which it is found at GitHub [PUBLIC_URL]
      BRANCHES        globs of the branches and tags that build, comma separated [*]
      STATUS_CONTEXT  name of the commit status; one for each service that builds the same pushes [compose-ci]
      GITHUB_API_URL  GitHub Enterprise, or a stand-in [https://api.github.com]
      PUBLIC_URL      where people reach the log pages, such as https://ci.example.org [none]
      QUEUE_URL       URL of an SQS queue; AWS_… variables and credentials as the aws CLI finds them [required]
      STORE_URL       s3://bucket/prefix that all workers of the queue share: a hook starts once among all hosts [none]
      LOG_LEVEL       error, warn, info, debug or trace [info]
      LOG_FORMAT      text or json [text]
      SSL_CERT_FILE   bundle of root certificates for outgoing HTTPS [embedded roots]

    Every secret (marked *) can also come from a file named by <NAME>_FILE.
    ");
}
