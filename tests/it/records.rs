//! Records that cannot be used for a while cost no build its attempts.

use std::time::Duration;

use rusqlite::Connection;

use crate::fixture::{DEADLINE, Fixture, GATE, at_gate, open_gate, told};

#[tokio::test]
async fn a_lock_of_the_records_costs_no_attempt() {
    let mut fixture = Fixture::plain().await;
    let setup = fixture.setup(&format!("[ -e another ] || {{ {GATE}; }}"));
    let service = setup.env("CONCURRENCY", "1").start().await;
    let first = (fixture.push(&service).await, fixture.sha.clone());
    at_gate(&fixture.engine, &first.0).await;
    fixture.commit("another", "file");
    let second = fixture.push(&service).await;
    assert_eq!(service.get("/readyz").await.code, 200);

    let other = Connection::open(service.data_dir().join("builds.db")).expect("opened");
    other.execute_batch("BEGIN IMMEDIATE").expect("locked");
    open_gate(&first.0).await;
    assert_eq!(service.get("/readyz").await.code, 503);
    // Longer than the worker waits for a lock, and than it waits after that.
    service
        .wait_for_log("failed to write the build record; trying again", DEADLINE)
        .await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    other.execute_batch("ROLLBACK").expect("let go");

    for sha in [&first.1, &fixture.sha] {
        let statuses = fixture.github.wait_for_end(sha, DEADLINE).await;
        assert_eq!(
            told(&statuses),
            ["Pending: building", "Success: passed in …"]
        );
    }
    fixture.assert_nothing_left(&second).await;
    assert!(!service.log().contains("failed to build; trying again"));
    assert_eq!(service.get("/readyz").await.code, 200);
}
