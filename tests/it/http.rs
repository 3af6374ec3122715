//! What the running service answers over HTTP and HTTPS.

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::{Answer, Certificates, OneBox, Setup};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::fixture::{Fixture, REPO};

/// Where GitHub's example payloads are; they are downloaded once.
#[expect(clippy::disallowed_types, reason = "the download is a script")]
fn examples() -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fetch-octokit");
    let fetched = Command::new(script).output().expect("the script runs");
    let complaint = String::from_utf8_lossy(&fetched.stderr);
    assert!(fetched.status.success(), "{complaint}");
    let index = String::from_utf8_lossy(&fetched.stdout);
    let text = fs::read_to_string(index.trim()).expect("the index");
    serde_json::from_str(&text).expect("it is JSON")
}

#[tokio::test]
async fn every_example_payload_of_github_is_answered() {
    let fixture = Fixture::plain().await;
    // The repository of the examples, of which nothing is on this GitHub.
    let setup = fixture.setup("true").env("GITHUB_REPO", "Codertocat/*");
    let service = setup.env("BRANCHES", "none").start().await;
    let mut answered = 0;
    for event in examples().as_array().expect("a list of events") {
        let name = event["name"].as_str().expect("an event's name");
        for payload in event["examples"].as_array().expect("a list of payloads") {
            let delivery = Uuid::new_v4().to_string();
            let answer = service.deliver(name, &delivery, payload).await;
            let known = matches!(answer.code, 200 | 400 | 403);
            assert!(known, "{name}: {} {}", answer.code, answer.body);
            assert_eq!(answer.body.lines().count(), 1, "{name}: {}", answer.body);
            answered += 1;
        }
    }
    assert_eq!(answered, 329);
    assert_eq!(service.get("/healthz").await.code, 200);
}

/// What the image's health check finds of this service.
fn health_of(setup: &Setup, service: &OneBox) -> Option<i32> {
    let port = service
        .url("")
        .rsplit_once(':')
        .expect("a port")
        .1
        .to_owned();
    let mut check = setup.command(&["healthcheck"]);
    let checked = check.env("PORT", port).output();
    checked.expect("it can be started").status.code()
}

#[tokio::test]
async fn a_push_over_https_is_built() {
    let certificates = Certificates::new();
    let fixture = Fixture::plain().await;
    let setup = fixture.setup("cat README.md").https(&certificates);
    let service = setup.start().await;
    assert!(service.url("").starts_with("https://"));
    fixture.build(&service).await.assert_passed();
}

#[tokio::test]
async fn the_health_check_tells_a_service_that_answers_from_one_that_does_not() {
    let fixture = Fixture::plain().await;
    let certificates = Certificates::new();
    for https in [false, true] {
        let setup = || match https {
            true => fixture.setup("true").https(&certificates),
            false => fixture.setup("true"),
        };
        let mut service = setup().start().await;
        assert_eq!(service.get("/healthz").await.code, 200);
        assert_eq!(health_of(&setup(), &service), Some(0));
        service.kill();
        assert_eq!(health_of(&setup(), &service), Some(1));
    }
}

/// Builds what a manual trigger names, and answers which commit that was.
async fn triggered(fixture: &Fixture, after: &str) -> String {
    let service = fixture.setup("echo $commit").start().await;
    let bearer = format!("Bearer {}", fixture.github.token());
    let body = json!({ "after": after, "repository": { "full_name": REPO } }).to_string();
    let answer = service.post("/", &[("authorization", &bearer)], body).await;
    let built = fixture.finished(&service, answer.build_id()).await;
    built.assert_passed();
    built.log.trim_end().to_owned()
}

#[tokio::test]
async fn a_manual_trigger_may_name_a_branch_a_tag_or_a_short_sha() {
    for name in ["feature/one", "v1.0", "short"] {
        let fixture = Fixture::plain().await;
        fixture.repo.branch("feature/one").tag("v1.0");
        let after = match name {
            "short" => &fixture.sha[..8],
            name => name,
        };
        assert_eq!(triggered(&fixture, after).await, fixture.sha, "{name}");
    }
}

#[tokio::test]
async fn a_manual_trigger_of_what_does_not_exist_ends_in_an_error_of_no_commit() {
    let fixture = Fixture::plain().await;
    let service = fixture.setup("true").start().await;
    let bearer = format!("Bearer {}", fixture.github.token());
    let body = json!({ "after": "no-such-branch" }).to_string();
    let answer = service.post("/", &[("authorization", &bearer)], body).await;
    let build = answer.build_id();
    service
        .wait_for_log("finished", crate::fixture::DEADLINE)
        .await;
    let page = service.get(&format!("/builds/{build}")).await.body;
    assert!(
        page.contains("GitHub answered 422 to the commit no-such-branch"),
        "{page}"
    );
}

/// As the seed's `curl -X POST "…/?token=$GITHUB_TOKEN" -d '{"after": "<commit>"}'`.
async fn seeds_curl(fixture: &Fixture, service: &OneBox) -> Answer {
    let path = format!("/?token={}", fixture.github.token());
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let body = json!({ "after": fixture.sha }).to_string();
    service.post(&path, &form, body).await
}

#[tokio::test]
async fn the_seeds_manual_trigger_builds_where_there_is_no_webhook_secret() {
    let fixture = Fixture::plain().await;
    let setup = fixture.setup("cat README.md").without("WEBHOOK_SECRET");
    let service = setup.start().await;
    let build = seeds_curl(&fixture, &service).await.build_id();
    fixture.finished(&service, build).await.assert_passed();

    let with_secret = fixture.setup("true").start().await;
    assert_eq!(seeds_curl(&fixture, &with_secret).await.code, 401);
}
