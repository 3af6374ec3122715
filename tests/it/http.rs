//! What the running service answers over HTTP and HTTPS.

use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

use harness::{Answer, Certificates, OneBox, Setup, run_to_end};
use serde_json::json;

use crate::fixture::{DEADLINE, Fixture, GATE, REPO, at_gate, open_gate};

/// What the image's health check finds of this service.
async fn health_of(setup: &Setup, service: &OneBox) -> Option<i32> {
    let url = service.url("");
    let (_, port) = url.rsplit_once(':').expect("a port");
    let mut check = setup.command(&["healthcheck"]);
    check.env("PORT", port);
    run_to_end(check, DEADLINE).await.status.code()
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
        assert_eq!(health_of(&setup(), &service).await, Some(0));
        service.kill();
        assert_eq!(health_of(&setup(), &service).await, Some(1));
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
    let told = "the build has no commit to report on";
    service.wait_for_log(told, DEADLINE).await;
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

/// On a host that lets each process have few files open.
#[tokio::test]
async fn connections_of_strangers_take_nothing_from_a_build() {
    const FILES: usize = 200;
    let fixture = Fixture::plain().await;
    let program = tempfile::NamedTempFile::new().expect("a file");
    let program = program.into_temp_path();
    let binary = env!("CARGO_BIN_EXE_compose-ci");
    let script = format!("#!/bin/sh\nulimit -n {FILES}\nexec {binary} \"$@\"\n");
    fs::write(&program, script).expect("written");
    fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("made executable");
    let setup = Setup::new(program.to_path_buf(), &fixture.github, REPO);
    let service = setup.env("HOOK", format!("{GATE}; cat README.md"));
    let service = service.start().await;
    let build = fixture.push(&service).await;
    at_gate(&fixture.engine, &build).await;
    let url = service.url("");
    let (_, address) = url.split_once("//").expect("a URL");
    let strangers = (0..FILES * 2).map(|_| TcpStream::connect(address));
    let strangers: Vec<_> = strangers
        .collect::<Result<_, _>>()
        .expect("the backlog has room");

    open_gate(&build).await;
    fixture.assert_nothing_left(&build).await;
    drop(strangers);
    let built = fixture.finished(&service, build).await;
    built.assert_passed();
    assert_eq!(built.log, "hello\n");
}
