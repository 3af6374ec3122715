//! Queue and records that cannot be used: no build loses its attempts, and no push is accepted in vain.

use std::fs;
use std::time::Duration;

use rusqlite::Connection;

use crate::fixture::{DEADLINE, Fixture, GATE, at_gate, open_gate, refused, told};

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

#[tokio::test]
async fn a_queue_that_was_removed_takes_no_push() {
    for file in ["queue.db", "queue.db-wal"] {
        let fixture = Fixture::plain().await;
        let service = fixture.setup("true").start().await;
        let path = service.data_dir().join(file);
        fs::remove_file(&path).expect("removed");
        for _ in 0..2 {
            assert_eq!(service.push(&fixture.payload()).await.code, 503, "{file}");
            assert_eq!(service.get("/readyz").await.code, 503, "{file}");
            assert_eq!(service.get("/healthz").await.code, 503, "{file}");
            // Another one in its place is not the queue that pushes were stored in.
            fs::write(&path, "").expect("written");
        }
        let told = format!("{} was removed or replaced", path.display());
        service.wait_for_log(&told, DEADLINE).await;
    }
}

#[tokio::test]
async fn records_that_were_removed_take_no_build() {
    let fixture = Fixture::plain().await;
    let mut service = fixture.setup("true").start().await;
    fixture.build(&service).await.assert_passed();
    fs::remove_file(service.data_dir().join("builds.db")).expect("removed");
    assert_eq!(service.get("/readyz").await.code, 503);
    service.leave_unfinished();
}

#[tokio::test]
async fn damage_is_named_at_the_start() {
    for file in ["queue.db", "builds.db"] {
        let fixture = Fixture::plain().await;
        let setup = fixture.setup("true");
        let data_dir = tempfile::tempdir().expect("a directory");
        let path = data_dir.path().join(file);
        let database = Connection::open(&path).expect("opened");
        let fill = "CREATE TABLE x (t); INSERT INTO x VALUES (randomblob(9000))";
        database.execute_batch(fill).expect("filled");
        drop(database);
        let mut bytes = fs::read(&path).expect("read");
        bytes[4096..4200].fill(0xaa);
        fs::write(&path, bytes).expect("written");
        let setup = setup.env("DATA_DIR", data_dir.path().display().to_string());
        let told = refused(&setup, "serve").await;
        let line = told.lines().last().unwrap_or_default();
        let begin = format!("compose-ci: DATA_DIR: {} is damaged (", path.display());
        assert!(
            line.starts_with(&begin) && line.contains("put a sound copy"),
            "{told}"
        );
    }
}
