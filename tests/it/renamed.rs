//! A repository that has another name by now: GitHub sends requests with the old one on.

use harness::{Endpoint, Fault, Push, Request};

use crate::fixture::{DEADLINE, Fixture, REPO};

const NEW: &str = "octo/renamed";

async fn is_reported_once(code: u16) {
    let fixture = Fixture::plain().await;
    fixture.github.rename(REPO, NEW, code);
    let built = fixture.run(fixture.setup("true")).await;
    assert_eq!(
        built.told(),
        ["Pending: building", "Success: passed in …"],
        "{code}"
    );
    assert!(built.statuses.iter().all(|status| status.repo == NEW));
}

#[tokio::test]
async fn statuses_of_a_renamed_repository_arrive() {
    for code in [301, 302, 307, 308] {
        is_reported_once(code).await;
    }
}

#[tokio::test]
async fn a_status_that_is_sent_to_another_server_is_owed() {
    let fixture = Fixture::plain().await;
    let other = Fixture::plain().await;
    let elsewhere = format!("{}/repos/{REPO}/statuses/{}", other.github.url(), other.sha);
    let sent_on = Fault::Answer {
        code: 307,
        headers: vec![("location", elsewhere)],
        message: "Temporary Redirect",
    };
    let github = &fixture.github;
    github.fail_next(Endpoint::PostStatus, 2, sent_on);
    fixture.run(fixture.setup("true")).await;
    assert_eq!(fixture.github.statuses(&fixture.sha).len(), 1);
    let posts = |request: &Request| request.method == "POST";
    assert!(!other.github.requests().iter().any(posts));
}

#[tokio::test]
async fn pushes_of_both_names_are_built() {
    let mut fixture = Fixture::plain().await;
    fixture.github.rename(REPO, NEW, 301);
    let service = fixture.setup("true").start().await;
    let told =
        "GITHUB_REPO: octo/hello is called octo/renamed by now; pushes of both names are built";
    service.wait_for_log(told, DEADLINE).await;
    let push = Push {
        repo: NEW,
        reference: "refs/heads/main",
        after: &fixture.sha,
        message: "A commit to build",
    };
    let build = service.push(&push.payload()).await.build_id();
    fixture.finished(&service, build).await.assert_passed();
    fixture.commit("another", "file");
    fixture.build(&service).await.assert_passed();
}

#[tokio::test]
async fn a_push_of_any_other_name_is_refused() {
    let fixture = Fixture::plain().await;
    let service = fixture.setup("true").start().await;
    let push = Push {
        repo: NEW,
        reference: "refs/heads/main",
        after: &fixture.sha,
        message: "A commit to build",
    };
    let answer = service.push(&push.payload()).await;
    assert_eq!(answer.code, 403, "{}", answer.body);
}
