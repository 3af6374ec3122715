//! A build that waits for somebody else holds no slot: the others go on.

use harness::{Endpoint, Fault, Request};

use crate::fixture::{DEADLINE, Fixture, told};

fn fetches_tarball(request: &Request) -> bool {
    request.path.contains("/legacy.tar.gz/")
}

fn asks_for_tarball(request: &Request) -> bool {
    request.path.contains("/tarball/")
}

#[tokio::test]
async fn a_build_that_waits_for_github_lets_others_go_on() {
    let mut fixture = Fixture::plain().await;
    let limit = Fault::secondary_limit(6);
    fixture.github.fail_next(Endpoint::Tarball, 1, limit);
    let setup = fixture.setup("true").env("CONCURRENCY", "1");
    let service = setup.start().await;
    let waiting = fixture.sha.clone();
    fixture.push_to(&service, "refs/heads/waiting").await;
    let asked = fixture.github.wait_for_request(asks_for_tarball, DEADLINE);
    asked.await;

    fixture.commit("another", "file");
    fixture.build(&service).await.assert_passed();
    let statuses = fixture.github.statuses(&waiting);
    assert_eq!(told(&statuses), ["Pending: building"]);
    let statuses = fixture.github.wait_for_end(&waiting, DEADLINE).await;
    assert_eq!(
        told(&statuses),
        ["Pending: building", "Success: passed in …"]
    );
}

#[tokio::test]
async fn tarballs_that_fall_silent_stop_no_other_build() {
    let mut fixture = Fixture::plain().await;
    let silence = Fault::StallAfter(100);
    fixture.github.fail_next(Endpoint::Codeload, 2, silence);
    let setup = fixture.setup("true").env("CONCURRENCY", "2");
    let mut service = setup.start().await;
    for branch in ["one", "other"] {
        let branch = format!("refs/heads/{branch}");
        fixture.push_to(&service, &branch).await;
    }
    let asked = fixture
        .github
        .wait_for_requests(2, fetches_tarball, DEADLINE);
    asked.await;

    for number in ["1", "2", "3"] {
        fixture.commit("number", number);
        fixture.build(&service).await.assert_passed();
    }
    // The silent ones wait for another half a minute.
    service.leave_unfinished();
    service.stop(DEADLINE).await;
}
