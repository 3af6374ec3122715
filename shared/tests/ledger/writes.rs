//! Writes whose answers are lost, refused or unclear.

use std::fs;
use std::path::Path;
use std::time::Duration;

use compose_ci_shared::build::{BuildState, Outcome};
use compose_ci_shared::ledger::{CLAIM, Claim, LedgerError, STATUS};
use harness::{FaultProxy, NetworkFault, Upstream};
use serde_json::{Value, json};

use crate::world::{Worker, World, alone, request, store_at};

#[tokio::test]
async fn a_worker_knows_its_own_write_after_a_lost_answer() {
    // Some are asked for again by the SDK, and some are not.
    for lost in [1, 2, 3] {
        let world = World::new().await;
        let worker = world.worker().await;
        let request = request();
        world.aws.lose_answers(&world.bucket, lost).await;
        worker.take(&request).await;
        world.aws.lose_answers(&world.bucket, lost).await;
        let released = worker.ledger.release(request.id).await;
        released.expect("it is not lost to another worker");
        worker.take(&request).await;
        world.aws.lose_answers(&world.bucket, lost).await;
        worker.ledger.start(request.id).await.expect("started");
        world.aws.lose_answers(&world.bucket, lost).await;
        let ended = worker.ledger.end(request.id, &Outcome::Passed, &[STATUS]);
        ended.await.expect("ended");
        assert!(
            worker
                .ledger
                .is_owed(request.id, STATUS)
                .await
                .expect("read")
        );
        assert_eq!(
            worker.known(&request).await.outcome(),
            Some(&Outcome::Passed)
        );
    }
}

#[tokio::test]
async fn a_write_that_meets_another_is_decided_anew() {
    let world = World::new().await;
    let worker = world.worker().await;
    let request = request();
    let conflict = async || {
        let code = "ConditionalRequestConflict";
        world.aws.refuse_write(&world.bucket, 409, code).await;
    };
    conflict().await;
    worker.take(&request).await;
    conflict().await;
    conflict().await;
    worker.ledger.start(request.id).await.expect("started");
    world.aws.refuse_write(&world.bucket, 503, "SlowDown").await;
    let ended = worker.ledger.end(request.id, &Outcome::Passed, &[]);
    ended.await.expect("ended");
}

/// Its tag changes with its content: a worker that has read it before must not take it over.
#[tokio::test]
async fn each_renewal_writes_something_new() {
    let world = World::new().await;
    let worker = world.worker().await;
    let request = request();
    worker.take(&request).await;
    let mut contents = vec![world.object(request.id).await];
    for _ in 0..2 {
        worker.ledger.renew(request.id).await.expect("renewed");
        contents.push(world.object(request.id).await);
    }
    contents.dedup();
    assert_eq!(contents.len(), 3);
}

#[tokio::test]
async fn a_step_costs_one_write_and_no_read() {
    let world = World::new().await;
    let worker = world.worker().await;
    let request = request();
    worker.take(&request).await;
    worker.ledger.renew(request.id).await.expect("renewed");
    worker.ledger.start(request.id).await.expect("started");
    let ended = worker.ledger.end(request.id, &Outcome::Passed, &[]);
    ended.await.expect("ended");
    // The bucket itself is the first.
    assert_eq!(world.aws.requests(&world.bucket).await, 1 + 4);
}

#[tokio::test]
async fn an_end_in_the_store_is_recorded_after_a_crash() {
    let world = World::new().await;
    let worker = world.worker().await;
    let request = request();
    worker.take(&request).await;
    worker.ledger.start(request.id).await.expect("started");
    let before = tempfile::tempdir().expect("directory");
    copy(&worker, before.path());
    let outcome = Outcome::Failed { exit_code: 1 };
    let ended = worker.ledger.end(request.id, &outcome, &[STATUS, "mail"]);
    ended.await.expect("ended");

    // The process died before SQLite had it.
    let worker = world.worker_in(before).await;
    let unfinished = worker.ledger.unfinished().await.expect("read");
    assert_eq!(unfinished[0].request, request);
    // Whatever it comes to now: what is in the store counts, and is owed.
    let ended = worker.ledger.end(request.id, &Outcome::Passed, &[STATUS]);
    ended.await.expect("it has ended before");
    assert_eq!(worker.known(&request).await.outcome(), Some(&outcome));
    for notifier in [STATUS, "mail"] {
        assert!(
            worker
                .ledger
                .is_owed(request.id, notifier)
                .await
                .expect("read")
        );
    }
}

#[tokio::test]
async fn an_object_that_is_gone_is_made_again() {
    let world = World::new().await;
    let (one, other) = (world.worker().await, world.worker().await);
    let request = request();
    one.take(&request).await;
    one.ledger.start(request.id).await.expect("started");
    world.delete(request.id).await;
    one.ledger.renew(request.id).await.expect("renewed");
    other.wait_for(&request).await;
    world.let_pass(CLAIM).await;
    let by = other.ledger.worker();
    assert_eq!(other.take(&request).await.state, BuildState::Started { by });
}

#[tokio::test]
async fn a_build_from_before_the_store_is_known_there_as_it_stands() {
    let world = World::new().await;
    let (directory, alone) = alone();
    let (started, ended) = (request(), request());
    for request in [&started, &ended] {
        alone.claim(request).await.expect("claimed");
        alone.start(request.id).await.expect("started");
    }
    let end = alone.end(ended.id, &Outcome::Passed, &[]);
    end.await.expect("ended");
    drop(alone);
    let worker = world.worker_in(directory).await;
    assert!(worker.take(&started).await.state.may_have_begun());
    let claim = worker.claim(&ended).await;
    assert!(matches!(claim, Claim::Ended(_)));
}

#[tokio::test]
async fn a_store_that_is_cut_off_is_told_in_one_line() {
    let world = World::new().await;
    let proxy = FaultProxy::to(Upstream::Tcp(world.aws.address())).await;
    let store = store_at(&world.config(), &proxy.url()).await;
    let directory = tempfile::tempdir().expect("directory");
    let worker = Worker::new(directory, store);
    let request = request();
    worker.take(&request).await;
    for fault in [NetworkFault::Refuse, NetworkFault::BlackHole] {
        proxy.fail(fault);
        let started = worker.ledger.start(request.id).await;
        let Err(LedgerError::Store(line)) = started else {
            panic!("{started:?}");
        };
        let begins = format!(
            "the store s3://{}/team/ci cannot be reached: ",
            world.bucket
        );
        assert!(
            line.starts_with(&begins) && line.lines().count() == 1,
            "{line}"
        );
        // What is not in the store has not happened.
        assert!(!worker.known(&request).await.state.may_have_begun());
        proxy.heal();
    }
    worker.ledger.start(request.id).await.expect("started");
}

#[tokio::test]
async fn the_object_of_version_1_is_written_and_read_as_ever() {
    let world = World::new().await;
    let (one, other) = (world.worker().await, world.worker().await);
    let mut request = request();
    request.id = "67e55044-10b1-426f-9247-bb680e5fe0c8"
        .parse()
        .expect("an id");
    one.take(&request).await;
    one.ledger.start(request.id).await.expect("started");
    let ended = one.ledger.end(request.id, &Outcome::Passed, &[STATUS]);
    ended.await.expect("ended");
    let written = world.object(request.id).await.expect("it is there");
    let mut written: Value = serde_json::from_str(&written).expect("JSON");
    for (field, fixed) in [
        ("write", json!("0b6f0d52-5f0c-4a53-8d4e-8a1d0f6b2c11")),
        ("writer", json!("5d1f7c3a-9a43-4c2e-b7f6-2a9e4d0c8b77")),
        ("claimed_ms", 1_796_057_412_000_u64.into()),
        ("started_ms", 1_796_057_413_000_u64.into()),
        ("ended_ms", 1_796_057_414_000_u64.into()),
    ] {
        assert!(
            written[field].is_string() || written[field].is_u64(),
            "{field}"
        );
        written[field] = fixed;
    }
    let golden: Value = serde_json::from_str(VERSION_1).expect("JSON");
    assert_eq!(written, golden);

    let key = format!("team/ci/builds/{}.json", request.id);
    let by_message_1 = VERSION_1.replace(r#""version":"2","forge":"github""#, r#""version":"1""#);
    for (object, reader) in [(VERSION_1, other), (&by_message_1, world.worker().await)] {
        world.aws.put_object(&world.bucket, &key, object).await;
        let Claim::Ended(build) = reader.claim(&request).await else {
            panic!("it has ended");
        };
        assert_eq!(build.request, request);
        assert_eq!(build.duration(), Some(Duration::from_secs(1)));
    }

    let newer = VERSION_1.replace(r#""version":1"#, r#""version":2"#);
    world.aws.put_object(&world.bucket, &key, &newer).await;
    let third = world.worker().await;
    let error = third.ledger.claim(&request).await.expect_err("unreadable");
    assert!(error.to_string().contains("newer version"), "{error}");
}

const VERSION_1: &str = r#"{"version":1,"write":"0b6f0d52-5f0c-4a53-8d4e-8a1d0f6b2c11","request":{"version":"2","forge":"github","id":"67e55044-10b1-426f-9247-bb680e5fe0c8","repo":"octo/hello","revision":{"commit":"0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c"},"git_ref":{"branch":"main"}},"commit":"0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c","state":{"ended":"passed"},"claimed_ms":1796057412000,"started_ms":1796057413000,"ended_ms":1796057414000,"writer":"5d1f7c3a-9a43-4c2e-b7f6-2a9e4d0c8b77","owes":["status"]}"#;

/// Copies a worker's files as a crash would leave them.
fn copy(worker: &Worker, to: &Path) {
    for entry in fs::read_dir(worker.directory.path()).expect("listed") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}
