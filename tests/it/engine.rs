//! A Docker engine that is not there for a while.

use harness::{Endpoint, EngineProxy, Fault, Request};
use rusqlite::Connection;

use crate::fixture::{DEADLINE, Fixture, GATE, at_gate, log, open_gate};

/// The first half of a log, a gate, and the second half.
fn two_halves() -> String {
    format!("seq 1 5000; {GATE}; seq 5001 10000")
}

/// What [`two_halves`] writes.
fn whole() -> String {
    (1..=10_000).map(|number| format!("{number}\n")).collect()
}

#[tokio::test]
async fn connections_that_break_cost_a_build_nothing() {
    let fixture = Fixture::plain().await;
    let proxy = EngineProxy::start(true);
    let setup = fixture.setup(&two_halves());
    let setup = setup.env("DOCKER_HOST", proxy.docker_host());
    let service = setup.start().await;
    let build = fixture.push(&service).await;
    at_gate(&fixture.engine, &build).await;
    proxy.close();
    proxy.open();
    open_gate(&build).await;
    let built = fixture.finished(&service, build).await;
    built.assert_passed();
    assert!(
        built.log == whole(),
        "{} bytes are not all",
        built.log.len()
    );
}

#[tokio::test]
async fn a_hook_that_ends_while_the_engine_cannot_be_reached_is_asked_for_afterwards() {
    let fixture = Fixture::plain().await;
    let proxy = EngineProxy::start(true);
    let setup = fixture.setup(&two_halves());
    let setup = setup.env("DOCKER_HOST", proxy.docker_host());
    let service = setup.start().await;
    let build = fixture.push(&service).await;
    at_gate(&fixture.engine, &build).await;
    proxy.close();
    open_gate(&build).await;
    fixture.engine.wait_until_ended(&build, DEADLINE).await;
    proxy.open();
    let built = fixture.finished(&service, build).await;
    built.assert_passed();
    assert!(
        built.log == whole(),
        "{} bytes are not all",
        built.log.len()
    );
}

#[tokio::test]
async fn pushes_are_taken_while_the_engine_starts() {
    let fixture = Fixture::plain().await;
    let proxy = EngineProxy::start(false);
    let setup = fixture.setup("cat README.md");
    let setup = setup.env("DOCKER_HOST", proxy.docker_host());
    let service = setup.start().await;
    let build = fixture.push(&service).await;
    let told = "waiting for the Docker engine";
    service.wait_for_log(told, DEADLINE).await;
    assert_eq!(log(&service, &build), "");
    proxy.open();
    let built = fixture.finished(&service, build).await;
    built.assert_passed();
    assert_eq!(built.log, "hello\n");
}

#[tokio::test]
async fn what_is_owed_is_told_while_the_engine_is_away() {
    let fixture = Fixture::plain().await;
    let proxy = EngineProxy::start(true);
    let setup = fixture.setup(GATE).env("DOCKER_HOST", proxy.docker_host());
    let mut service = setup.start().await;
    let build = fixture.push(&service).await;
    at_gate(&fixture.engine, &build).await;
    let github = &fixture.github;
    let is_post = |request: &Request| request.method == "POST";
    github.wait_for_requests(1, is_post, DEADLINE).await;
    github.fail_next(Endpoint::PostStatus, 1, Fault::Hang);
    open_gate(&build).await;
    github.wait_for_requests(2, is_post, DEADLINE).await;
    service.kill();
    proxy.close();
    service.start_again().await;
    github.wait_for_end(&fixture.sha, DEADLINE).await;
    proxy.open();
    fixture.finished(&service, build).await.assert_passed();
}

#[tokio::test]
async fn a_hook_that_the_engine_fails_to_start_is_given_up_and_not_told_as_begun() {
    let fixture = Fixture::plain().await;
    let proxy = EngineProxy::start(true);
    let setup = fixture.setup("echo ran");
    let mut service = setup.env("DOCKER_HOST", proxy.docker_host()).start().await;
    proxy.let_no_container_start();
    let build = fixture.push(&service).await;
    service
        .wait_for_log("failed to build; trying again", DEADLINE)
        .await;
    service.kill();
    // The second attempt, and the waits before it and the third, tell nothing more.
    let queue = Connection::open(service.data_dir().join("queue.db"));
    let queue = queue.expect("the queue is SQLite");
    let changed = queue.execute("UPDATE message SET receives = 2, visible_at_ms = 0", ());
    assert_eq!(changed, Ok(1));
    drop(queue);
    service.start_again().await;
    let built = fixture.finished(&service, build).await;
    assert_eq!(
        built.told(),
        [
            "Pending: building",
            "Error: error: gave up after 3 attempts (the Docker engine failed: the runtime is broken)"
        ]
    );
    assert_eq!(built.log, "");
}
