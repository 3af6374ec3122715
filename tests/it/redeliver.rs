//! Where no worker looks for missed pushes, a scheduled function has GitHub deliver them again.

#![expect(
    clippy::disallowed_types,
    reason = "a program is started as an operator would"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use harness::{Endpoint, Fault, LambdaHandler, OneBox, run_to_end};
use serde_json::{Value, json};

use crate::fixture::{DEADLINE, REPO};
use crate::reconcile::{Missing, free_port, url};

/// The time of a function: enough for all looks but one that is to be cut short.
const TIME: Duration = Duration::from_secs(60);

/// The program, which is built with these tests where the whole workspace's are.
pub(crate) fn program() -> PathBuf {
    let program =
        Path::new(env!("CARGO_BIN_EXE_compose-ci")).with_file_name("compose-ci-redeliver");
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
        "resources": ["arn:aws:events:eu-west-1:123456789012:rule/team-redeliver"],
        "detail": {},
    })
}

impl Missing {
    /// A service that leaves missed pushes to the function.
    async fn webhook(&self) -> OneBox {
        self.setup().env("RECONCILE", "0").start().await
    }

    fn variables(&self) -> [(&'static str, String); 4] {
        [
            ("GITHUB_TOKEN", self.fixture.github.token().to_owned()),
            ("GITHUB_REPO", REPO.to_owned()),
            ("GITHUB_API_URL", self.fixture.github.url()),
            ("WEBHOOK_URL", url(self.port)),
        ]
    }

    async fn function(&self) -> LambdaHandler {
        LambdaHandler::start(&program(), self.variables()).await
    }

    fn by_hand(&self) -> Command {
        let mut command = Command::new(program());
        command.env_clear().envs(self.variables());
        command
    }

    /// How often GitHub was asked to deliver something again.
    fn asked(&self) -> usize {
        let requests = self.fixture.github.requests();
        let asked = requests.iter().filter(|request| request.method == "POST");
        let asked = asked.filter(|request| request.path.ends_with("/attempts"));
        asked.count()
    }

    /// Has the function look, and waits until all has been delivered that it asked for.
    async fn look(&self, function: &mut LambdaHandler) {
        function.invoke(&scheduled_event()).await;
        let github = &self.fixture.github;
        github.wait_for_redeliveries(self.asked(), DEADLINE).await;
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
async fn pushes_that_came_while_the_webhook_was_down_are_delivered_again_and_built_once_each() {
    let mut missing = Missing::start().await;
    let mut commits = missing.miss(3).await;
    let _webhook = missing.webhook().await;
    let mut function = missing.function().await;
    missing.look(&mut function).await;
    missing.assert_built_once(&commits).await;
    assert_eq!(missing.asked(), 3);

    // What GitHub has delivered in the end, by itself or again, is not missed.
    let (sha, delivery) = missing.push_to(missing.hook).await;
    assert_eq!(delivery.status_code, 202);
    commits.push(sha);
    let mut another = missing.function().await;
    missing.look(&mut function).await;
    missing.look(&mut another).await;
    assert_eq!(missing.asked(), 3);
    missing.assert_built_once(&commits).await;
}

#[tokio::test]
async fn what_is_on_a_later_page_is_found_and_what_others_miss_is_not() {
    let mut missing = Missing::start().await;
    let github = missing.fixture.github.clone();
    let commits = missing.miss(1).await;
    for _ in 0..100 {
        github.deliver(missing.hook, "watch", &json!({})).await;
    }
    let others = github.create_hook(REPO, &url(free_port()), None);
    let (not_ours, _) = missing.push_to(others).await;
    let _webhook = missing.webhook().await;
    missing.look(&mut missing.function().await).await;
    missing.assert_built_once(&commits).await;
    assert_eq!((missing.asked(), missing.states(&not_ours)), (1, vec![]));
    assert_eq!(github.deliveries(others).len(), 1);
}

#[tokio::test]
async fn the_webhook_of_an_organization_delivers_again_as_well() {
    let mut missing = Missing::start().await;
    let github = missing.fixture.github.clone();
    let (owner, _) = REPO.split_once('/').expect("owner/name");
    let secret = Some(harness::WEBHOOK_SECRET);
    let hook = github.create_hook(owner, &url(missing.port), secret);
    let (sha, _) = missing.push_to(hook).await;
    let _webhook = missing.webhook().await;
    let mut variables = missing.variables().to_vec();
    variables.push(("GITHUB_REPO", format!("{owner}/*")));
    let mut function = LambdaHandler::start(&program(), variables).await;
    missing.look(&mut function).await;
    missing.assert_built_once(&[sha]).await;
}

#[tokio::test]
async fn a_refusal_is_told_once_and_the_next_look_goes_on() {
    let mut missing = Missing::start().await;
    let commits = missing.miss(2).await;
    let github = missing.fixture.github.clone();
    let _webhook = missing.webhook().await;
    let mut function = missing.function().await;

    github.fail_next(Endpoint::HookRedelivery, 2, Fault::code(403));
    let no_right = error_of(&mut function, TIME).await;
    insta::assert_snapshot!(no_right, @r#"GitHub answered 403 to the webhooks of octo/hello: GITHUB_TOKEN needs the permission to have them deliver again ("Webhooks: write", or write:repo_hook of a classic token)"#);
    assert_eq!(error_of(&mut function, TIME).await, no_right);
    // The first push was refused, so the second one was not asked for.
    assert_eq!(missing.asked(), 2);

    github.fail_next(Endpoint::HookRedelivery, 1, Fault::secondary_limit(3600));
    let limited = error_of(&mut function, TIME).await;
    insta::assert_snapshot!(limited, @"GitHub is not available for the redelivery to a webhook of octo/hello: it answered 403");
    let told = errors(&function.output());
    assert_eq!(told, [&*no_right, "as at the last look", &limited]);

    function.invoke(&scheduled_event()).await;
    github.wait_for_redeliveries(2, DEADLINE).await;
    missing.assert_built_once(&commits).await;
}

#[tokio::test]
async fn a_look_ends_before_the_time_of_its_function_does() {
    let mut missing = Missing::start().await;
    let commits = missing.miss(1).await;
    let github = missing.fixture.github.clone();
    let _webhook = missing.webhook().await;
    let mut function = missing.function().await;
    github.fail_next(Endpoint::HookDeliveries, 1, Fault::Hang);
    let told = error_of(&mut function, Duration::from_secs(7)).await;
    assert_eq!(told, "GitHub did not answer in time");

    missing.look(&mut function).await;
    missing.assert_built_once(&commits).await;
}

#[tokio::test]
async fn a_push_that_the_webhook_never_takes_is_given_up_when_github_forgets_it() {
    let mut missing = Missing::start().await;
    let commits = missing.miss(1).await;
    let github = missing.fixture.github.clone();
    let mut function = missing.function().await;
    let hour = Duration::from_secs(60 * 60);
    for _ in 0..75 {
        missing.look(&mut function).await;
        github.age_deliveries(missing.hook, hour);
    }
    // Once an hour for three days; then only its redeliveries are remembered.
    let deliveries = github.deliveries(missing.hook);
    assert_eq!((missing.asked(), deliveries.len()), (72, 73));
    assert!(
        deliveries
            .iter()
            .all(|delivery| delivery.status_code == 502)
    );

    let _webhook = missing.webhook().await;
    missing.look(&mut function).await;
    assert_eq!((missing.asked(), missing.states(&commits[0])), (72, vec![]));
}

async fn ended(command: Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = run_to_end(command, DEADLINE).await;
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

#[tokio::test]
async fn started_by_hand_it_looks_once_and_tells_by_its_exit_code_what_came_of_it() {
    let mut missing = Missing::start().await;
    let commits = missing.miss(1).await;
    let github = missing.fixture.github.clone();
    let _webhook = missing.webhook().await;
    let (code, log) = ended(missing.by_hand()).await;
    assert_eq!(code, Some(0), "{log}");
    assert!(
        log.contains("looked for missed pushes missed=1 redelivered=1"),
        "{log}"
    );
    missing.assert_built_once(&commits).await;

    github.fail_next(Endpoint::Hooks, 1, Fault::code(404));
    let mut quiet = missing.by_hand();
    quiet.env("LOG_LEVEL", "error");
    let (code, told) = ended(quiet).await;
    assert_eq!(code, Some(1));
    insta::assert_snapshot!(told.trim_end(), @r#"compose-ci-redeliver: GitHub answered 404 to the webhooks of octo/hello: GITHUB_TOKEN needs the permission to read them ("Webhooks: read", or read:repo_hook of a classic token)"#);

    let mut without_repo = missing.by_hand();
    without_repo.env_remove("GITHUB_REPO");
    let (code, told) = ended(without_repo).await;
    assert_eq!(code, Some(2));
    insta::assert_snapshot!(told.trim_end(), @"compose-ci-redeliver: GITHUB_REPO: missing (owner/name; a comma list or owner/* accepts several)");

    let mut help = missing.by_hand();
    help.arg("--help");
    let help = run_to_end(help, DEADLINE).await;
    insta::assert_snapshot!(String::from_utf8_lossy(&help.stdout), @r"
    compose-ci-redeliver 0.1.0: has GitHub deliver missed pushes again, as a scheduled function on AWS Lambda or once.
    It takes no arguments, but environment variables:

      GITHUB_TOKEN    * statuses, tarballs; also the webhook's ?token= [required]
      GITHUB_REPO     owner/name; a comma list or owner/* accepts several [required]
      WEBHOOK_SECRET  * HMAC secrets, comma separated; when set, a token in the URL is refused [none]
      WEBHOOK_URL     the webhook's URL without a token, by which it is found at GitHub [PUBLIC_URL]
      GITHUB_API_URL  GitHub Enterprise, or a stand-in [https://api.github.com]
      PUBLIC_URL      where people reach the log pages, such as https://ci.example.org [none]
      LOG_LEVEL       error, warn, info, debug or trace [info]
      LOG_FORMAT      text or json [text]
      SSL_CERT_FILE   bundle of root certificates for outgoing HTTPS [embedded roots]

    Every secret (marked *) can also come from a file named by <NAME>_FILE.
    ");
}
