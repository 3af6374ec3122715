//! Pushes that GitHub could not deliver are found and built, once, without anybody's help.

use std::net::TcpListener;
use std::process::Output;

use harness::{
    CommitState, Delivery, Endpoint, Fault, Hook, OneBox, Push, Setup, WEBHOOK_SECRET, run_to_end,
};

use crate::fixture::{DEADLINE, Fixture, REPO, told};

/// A repository with a webhook at an address where nobody listens yet.
pub(crate) struct Missing {
    pub(crate) fixture: Fixture,
    pub(crate) hook: Hook,
    pub(crate) port: u16,
}

impl Missing {
    pub(crate) async fn start() -> Self {
        let fixture = Fixture::plain().await;
        let port = free_port();
        let hook = fixture
            .github
            .create_hook(REPO, &url(port), Some(WEBHOOK_SECRET));
        Self {
            fixture,
            hook,
            port,
        }
    }

    /// A service that knows its webhook's URL, and tells when it has looked for missed pushes.
    pub(crate) fn setup(&self) -> Setup {
        self.fixture
            .setup("true")
            .env("PORT", self.port.to_string())
            .env("WEBHOOK_URL", url(self.port))
            .env("CONCURRENCY", "4")
            .env("LOG_LEVEL", "debug")
    }

    /// Commits, and lets GitHub tell a webhook of it.
    pub(crate) async fn push_to(&mut self, hook: Hook) -> (String, Delivery) {
        let sha = self.fixture.repo.commit("Another commit");
        let push = Push {
            repo: REPO,
            reference: "refs/heads/main",
            after: &sha,
            message: "A commit to build",
        };
        let payload = push.payload();
        let delivery = self.fixture.github.deliver(hook, "push", &payload).await;
        (sha, delivery)
    }

    /// Commits so often while nobody listens.
    pub(crate) async fn miss(&mut self, count: usize) -> Vec<String> {
        let mut commits = Vec::new();
        for _ in 0..count {
            let (sha, delivery) = self.push_to(self.hook).await;
            assert_eq!(delivery.status_code, 502);
            commits.push(sha);
        }
        commits
    }

    pub(crate) async fn assert_built_once(&self, commits: &[String]) {
        for sha in commits {
            let statuses = self.fixture.github.wait_for_end(sha, DEADLINE).await;
            let expected = ["Pending: building", "Success: passed in …"];
            assert_eq!(told(&statuses), expected, "{sha}");
        }
    }

    pub(crate) fn states(&self, sha: &str) -> Vec<CommitState> {
        self.fixture.github.states(sha)
    }
}

pub(crate) fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}/")
}

/// A port on which nothing listens.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

async fn has_looked(service: &OneBox) {
    service
        .wait_for_log("looked for missed pushes", DEADLINE)
        .await;
}

async fn reconcile(setup: &Setup) -> Output {
    run_to_end(setup.command(&["reconcile"]), DEADLINE).await
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn pushes_that_came_while_the_service_was_down_are_built_once_each() {
    let mut missing = Missing::start().await;
    let mut commits = missing.miss(20).await;
    let mut service = missing.setup().start().await;
    has_looked(&service).await;
    missing.assert_built_once(&commits).await;

    // From now on the webhook gets what is pushed, and another start finds nothing.
    let (sha, delivery) = missing.push_to(missing.hook).await;
    assert_eq!(delivery.status_code, 202);
    commits.push(sha);
    missing.assert_built_once(&commits).await;
    assert!(service.stop(DEADLINE).await.success());
    service.start_again().await;
    has_looked(&service).await;
    service
        .wait_for_log("looked for missed pushes queued=0", DEADLINE)
        .await;
    missing.assert_built_once(&commits).await;
}

#[tokio::test]
async fn what_the_webhooks_of_others_miss_is_left_alone() {
    let mut missing = Missing::start().await;
    let github = missing.fixture.github.clone();
    let others = github.create_hook(REPO, &url(free_port()), None);
    let (not_ours, failed) = missing.push_to(others).await;
    assert_eq!(failed.status_code, 502);
    let ours = missing.miss(1).await;
    let service = missing.setup().start().await;
    has_looked(&service).await;
    missing.assert_built_once(&ours).await;
    assert_eq!(missing.states(&not_ours), []);
}

#[tokio::test]
async fn a_push_that_was_delivered_again_is_not_missed() {
    let mut missing = Missing::start().await;
    let (sha, failed) = missing.push_to(missing.hook).await;
    let commits = [sha];
    let github = missing.fixture.github.clone();
    let mut service = missing.setup().env("RECONCILE", "0").start().await;
    let again = github.redeliver(missing.hook, &failed).await;
    assert_eq!((again.status_code, &again.guid), (202, &failed.guid));
    missing.assert_built_once(&commits).await;
    assert!(service.stop(DEADLINE).await.success());

    // Another service knows of the build only what GitHub tells.
    let other = missing.setup().start().await;
    other
        .wait_for_log("looked for missed pushes queued=0", DEADLINE)
        .await;
    missing.assert_built_once(&commits).await;
}

#[tokio::test]
async fn a_service_that_is_told_not_to_does_not_ask_for_missed_pushes() {
    let mut missing = Missing::start().await;
    let missed = missing.miss(1).await;
    let service = missing.setup().env("RECONCILE", "0").start().await;
    let (sha, _) = missing.push_to(missing.hook).await;
    missing.assert_built_once(&[sha]).await;
    assert_eq!(missing.states(&missed[0]), []);
    let requests = missing.fixture.github.requests();
    assert!(
        !requests
            .iter()
            .any(|request| request.path.contains("/hooks"))
    );
    drop(service);
}

#[tokio::test]
async fn a_token_without_the_right_is_told_in_one_line_and_pushes_build() {
    let missing = Missing::start().await;
    let github = &missing.fixture.github;
    github.fail_next(Endpoint::Hooks, 1, Fault::code(403));
    let service = missing.setup().start().await;
    has_looked(&service).await;
    missing.fixture.build(&service).await.assert_passed();
    let log = service.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("ooks")).collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    let (_, told) = lines[0].split_once("WARN").expect("a warning");
    insta::assert_snapshot!(told.trim(), @r#"failed to look for missed pushes error="GitHub answered 403 to the webhooks of octo/hello: GITHUB_TOKEN needs the permission to read them (\"Webhooks: read\", or read:repo_hook of a classic token)""#);
}

#[tokio::test]
async fn the_command_queues_what_was_missed_and_prints_it() {
    let mut missing = Missing::start().await;
    let commits = missing.miss(2).await;
    let github = missing.fixture.github.clone();
    // They stand on the second page of what GitHub remembers, which it does not serve at once.
    for _ in 0..100 {
        github
            .deliver(missing.hook, "watch", &serde_json::json!({}))
            .await;
    }
    github.fail_next(Endpoint::HookDeliveries, 1, Fault::secondary_limit(1));
    let setup = missing.setup();
    let output = reconcile(&setup).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let printed = stdout(&output);
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(lines.len(), 3, "{printed}");
    for (line, sha) in lines.iter().zip(&commits) {
        assert!(line.starts_with("queued "), "{line}");
        assert!(line.ends_with(&format!(" {REPO} main {sha}")), "{line}");
    }
    assert_eq!(lines[2], "2 missed pushes queued");
    // Nothing knows of these builds until a worker begins them: they are queued again, and run once.
    assert_eq!(stdout(&reconcile(&setup).await), printed);

    let _service = setup.env("RECONCILE", "0").start().await;
    let (later, _) = missing.push_to(missing.hook).await;
    missing.assert_built_once(&[later]).await;
    for sha in &commits {
        github.wait_for_end(sha, DEADLINE).await;
        let mut states = missing.states(sha);
        states.dedup();
        assert_eq!(states, [CommitState::Pending, CommitState::Success]);
    }
}

#[tokio::test]
async fn the_command_fails_where_it_cannot_look() {
    let missing = Missing::start().await;
    let github = missing.fixture.github.clone();
    github.fail_next(Endpoint::Hooks, 1, Fault::code(404));
    let setup = missing.setup().env("LOG_LEVEL", "error");
    let no_right = reconcile(&setup).await;
    assert_eq!(no_right.status.code(), Some(1));
    insta::assert_snapshot!(stderr(&no_right).trim_end(), @r#"compose-ci: GitHub answered 404 to the webhooks of octo/hello: GITHUB_TOKEN needs the permission to read them ("Webhooks: read", or read:repo_hook of a classic token)"#);

    let elsewhere = setup.env("WEBHOOK_URL", "https://ci.example.org/");
    let no_webhook = reconcile(&elsewhere).await;
    assert_eq!(no_webhook.status.code(), Some(1));
    insta::assert_snapshot!(stderr(&no_webhook).trim_end(), @"compose-ci: no active webhook of octo/hello leads to WEBHOOK_URL");

    let nowhere = elsewhere.without("WEBHOOK_URL");
    let no_address = reconcile(&nowhere).await;
    assert_eq!(no_address.status.code(), Some(2));
    insta::assert_snapshot!(stderr(&no_address).trim_end(), @"compose-ci: WEBHOOK_URL: missing (the webhook's URL without a token, by which it is found at GitHub)");
}

#[tokio::test]
async fn the_webhook_of_an_organization_serves_all_of_its_repositories() {
    let mut missing = Missing::start().await;
    let github = missing.fixture.github.clone();
    let (owner, _) = REPO.split_once('/').expect("owner/name");
    let hook = github.create_hook(owner, &url(missing.port), Some(WEBHOOK_SECRET));
    let (sha, _) = missing.push_to(hook).await;
    let service = missing
        .setup()
        .env("GITHUB_REPO", format!("{owner}/*"))
        .start()
        .await;
    has_looked(&service).await;
    missing.assert_built_once(&[sha]).await;
}
