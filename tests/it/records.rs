//! Queue and records that cannot be used: no build loses its attempts, and no push is accepted in vain.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use harness::{EngineProxy, OneBox};
use rusqlite::Connection;
use tokio::time::{sleep, timeout};

use crate::fixture::{DEADLINE, Fixture, GATE, at_gate, open_gate, refused, told};

const PAGE_BYTES: usize = 4096;
/// The records learn of a push a moment after its answer.
const RECORDED_WITHIN: Duration = Duration::from_millis(300);

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

/// Overwrites a page, counted from 1, while `builds.db` is in use, and puts it back after a while.
async fn damaged_page_costs_no_attempt(page: u64) {
    let mut fixture = Fixture::plain().await;
    let setup = fixture.setup(&format!("[ -e another ] || {{ {GATE}; }}"));
    let service = setup.env("CONCURRENCY", "1").start().await;
    let first = fixture.push(&service).await;
    let mut commits = vec![fixture.sha.clone()];
    at_gate(&fixture.engine, &first).await;
    for number in 1..10 {
        fixture.commit("another", &number.to_string());
        fixture.push(&service).await;
        commits.push(fixture.sha.clone());
    }
    checkpointed(&service).await;
    assert_eq!(service.get("/readyz").await.code, 200);

    let records = service.data_dir().join("builds.db");
    let sound = fs::read(&records).expect("read");
    overwrite(&records, page, &noise());
    assert_eq!(service.get("/readyz").await.code, 503);
    open_gate(&first).await;
    service
        .wait_for_log("failed to write the build record; trying again", DEADLINE)
        .await;
    let named = format!("{} is damaged", records.display());
    service.wait_for_log(&named, DEADLINE).await;
    // Longer than the worker waits after that.
    sleep(Duration::from_secs(7)).await;
    assert_eq!(service.get("/readyz").await.code, 503);
    fs::write(&records, sound).expect("put back");
    assert_eq!(service.get("/readyz").await.code, 200);

    for sha in &commits {
        let statuses = fixture.github.wait_for_end(sha, DEADLINE).await;
        assert_eq!(
            told(&statuses),
            ["Pending: building", "Success: passed in …"]
        );
    }
    assert!(!service.log().contains("failed to build; trying again"));
}

#[tokio::test]
async fn a_damaged_first_page_costs_no_attempt() {
    damaged_page_costs_no_attempt(1).await;
}

#[tokio::test]
async fn a_damaged_third_page_costs_no_attempt() {
    damaged_page_costs_no_attempt(3).await;
}

#[tokio::test]
async fn a_queue_that_is_damaged_takes_no_push() {
    let mut fixture = Fixture::plain().await;
    let service = fixture.setup("true").start().await;
    fixture.build(&service).await.assert_passed();
    checkpointed(&service).await;
    let queue = service.data_dir().join("queue.db");
    let sound = fs::read(&queue).expect("read");
    overwrite(&queue, 2, &noise());
    fixture.commit("another", "file");
    assert_eq!(service.push(&fixture.payload()).await.code, 503);
    assert_eq!(service.get("/healthz").await.code, 503);
    fs::write(&queue, sound).expect("put back");
    fixture.build(&service).await.assert_passed();
}

/// Damages the files of a killed service in which ten pushes wait.
async fn lost_pushes_are_told(damage: impl FnOnce(&Path), told_as: &str, built: usize) {
    let mut fixture = Fixture::plain().await;
    let proxy = EngineProxy::start(false);
    let setup = fixture.setup("true");
    let setup = setup.env("DOCKER_HOST", proxy.docker_host());
    let mut service = setup.start().await;
    checkpointed(&service).await;
    let mut commits = Vec::new();
    for number in 0..10 {
        fixture.commit("another", &number.to_string());
        fixture.push(&service).await;
        commits.push(fixture.sha.clone());
    }
    sleep(RECORDED_WITHIN).await;
    service.kill();
    damage(service.data_dir());
    service.start_again().await;
    service
        .wait_for_log(&format!("DATA_DIR: queue.db {told_as}"), DEADLINE)
        .await;
    service
        .wait_for_log("send the others again from the webhook's", DEADLINE)
        .await;
    proxy.open();
    for sha in &commits[..built] {
        let statuses = fixture.github.wait_for_end(sha, DEADLINE).await;
        let last = told(&statuses).pop();
        assert_eq!(last.as_deref(), Some("Success: passed in …"));
    }
    // It is told once.
    service.stop(DEADLINE).await;
    service.start_again().await;
    assert_eq!(service.log().matches("may be lost").count(), 1);
    service.leave_unfinished();
}

#[tokio::test]
async fn a_queue_that_is_gone_is_told() {
    let gone = |data_dir: &Path| fs::remove_file(data_dir.join("queue.db")).expect("removed");
    let told_as = "is new, and builds.db knows another one: accepted pushes may be lost, \
                   10 of which are known to have waited";
    lost_pushes_are_told(gone, told_as, 0).await;
}

#[tokio::test]
async fn a_queue_that_is_empty_is_told() {
    let empty = |data_dir: &Path| fs::write(data_dir.join("queue.db"), "").expect("emptied");
    let told_as = "is new, and builds.db knows another one: accepted pushes may be lost, \
                   10 of which are known to have waited";
    lost_pushes_are_told(empty, told_as, 0).await;
}

#[tokio::test]
async fn a_queue_without_its_log_is_told() {
    let without =
        |data_dir: &Path| fs::remove_file(data_dir.join("queue.db-wal")).expect("removed");
    let told_as = "lacks messages that builds.db knows of: accepted pushes may be lost, \
                   10 of which are known to have waited";
    lost_pushes_are_told(without, told_as, 0).await;
}

#[tokio::test]
async fn a_queue_whose_log_was_cut_is_told() {
    let cut = |data_dir: &Path| {
        let log = open(&data_dir.join("queue.db-wal"));
        let len = log.metadata().expect("it is there").len();
        log.set_len(len / 2).expect("cut");
    };
    lost_pushes_are_told(cut, "lacks messages that builds.db knows of", 4).await;
}

#[tokio::test]
async fn a_queue_whose_log_has_a_wrong_bit_is_told() {
    let wrong_bit = |data_dir: &Path| {
        let log = open(&data_dir.join("queue.db-wal"));
        let place = log.metadata().expect("it is there").len() / 2;
        let mut byte = [0];
        log.read_exact_at(&mut byte, place).expect("read");
        log.write_all_at(&[byte[0] ^ 1], place).expect("written");
    };
    lost_pushes_are_told(wrong_bit, "lacks messages that builds.db knows of", 4).await;
}

#[tokio::test]
async fn a_queue_that_is_whole_is_not_told() {
    let mut fixture = Fixture::plain().await;
    let proxy = EngineProxy::start(false);
    let setup = fixture.setup("true");
    let setup = setup.env("DOCKER_HOST", proxy.docker_host());
    let mut service = setup.start().await;
    let mut commits = Vec::new();
    for is_killed in [true, false] {
        fixture.commit("another", &is_killed.to_string());
        fixture.push(&service).await;
        commits.push(fixture.sha.clone());
        match is_killed {
            true => service.kill(),
            false => drop(service.stop(DEADLINE).await),
        }
        service.start_again().await;
    }
    proxy.open();
    for sha in &commits {
        fixture.github.wait_for_end(sha, DEADLINE).await;
    }
    assert!(!service.log().contains("may be lost"));
}

#[tokio::test]
async fn what_is_left_alone_stands_in_the_databases() {
    let fixture = Fixture::plain().await;
    let mut service = fixture.setup("true").start().await;
    fixture.build(&service).await.assert_passed();
    checkpointed(&service).await;
    service.kill();
    for file in ["queue.db-wal", "builds.db-wal"] {
        fs::remove_file(service.data_dir().join(file)).expect("removed");
    }
    service.start_again().await;
    fixture.build(&service).await;
    assert!(!service.log().contains("may be lost"));
}

/// Waits until nothing stands in the logs of the databases alone: a log that was begun anew holds one page.
async fn checkpointed(service: &OneBox) {
    let is_empty = |file| {
        let log = fs::metadata(service.data_dir().join(file));
        log.expect("it is there").len() < 2 * PAGE_BYTES as u64
    };
    let both = async {
        while !(is_empty("queue.db-wal") && is_empty("builds.db-wal")) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, both).await.expect("checkpointed in time");
}

fn overwrite(database: &Path, page: u64, bytes: &[u8; PAGE_BYTES]) {
    let written = open(database).write_all_at(bytes, (page - 1) * PAGE_BYTES as u64);
    written.expect("written");
}

fn noise() -> [u8; PAGE_BYTES] {
    let mut noise = [0; PAGE_BYTES];
    fastrand::Rng::with_seed(4).fill(&mut noise);
    noise
}

fn open(file: &Path) -> File {
    let opened = OpenOptions::new().read(true).write(true).open(file);
    opened.expect("opened")
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
