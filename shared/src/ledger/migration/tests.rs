//! The records of earlier versions survive.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::super::database::tests::open;
use super::super::entry::now_ms;
use super::super::{Claim, Event, Ledger, NextReport, STATUS};
use super::*;
use crate::build::{Build, BuildError, BuildId, BuildState, Outcome, StopReason};

/// The time at which the last build of the test data was begun.
const WRITTEN_MS: i64 = 1_796_057_412_249;

const NEWER: &str = "c0ffee6d8f5eaf1f6ba5c57fc3c7d91ac0fd1c00";

/// The ledger of a worker whose last version was 10.
struct Migrated {
    ledger: Ledger,
    _directory: tempfile::TempDir,
}

impl Migrated {
    /// All times lie as far back as if the test data had been written this long ago.
    fn after(age: Duration) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("builds.db");
        let data =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/records/builds-v10.db");
        fs::copy(data, &file).expect("copied");
        let shift = now_ms() - age.as_millis() as i64 - WRITTEN_MS;
        let old = Connection::open(&file).expect("opened");
        for (table, columns) in [
            (
                "builds",
                &[
                    "started_ms",
                    "finished_ms",
                    "hook_started_ms",
                    "log_removed_ms",
                ][..],
            ),
            ("outbox", &["due_ms", "owed_ms"]),
            ("holds", &["until_ms"]),
            ("images", &["used_ms"]),
        ] {
            for column in columns {
                let turn = format!("UPDATE {table} SET {column} = {column} + {shift}");
                old.execute(&turn, []).expect("turned");
            }
        }
        drop(old);
        Self {
            ledger: open(directory.path()),
            _directory: directory,
        }
    }

    fn just_now() -> Self {
        Self::after(Duration::from_secs(60))
    }

    async fn build(&self, number: u32) -> Build {
        let found = self.ledger.find(id(number)).await.expect("read");
        found.unwrap_or_else(|| panic!("build {number} is known"))
    }
}

fn id(number: u32) -> BuildId {
    let id = format!("00000000-0000-4000-8000-{number:012}");
    id.parse().expect("an id")
}

#[tokio::test]
async fn every_build_of_version_10_stands_where_it_stood() {
    let migrated = Migrated::just_now();
    let us = migrated.ledger.worker();
    let (claimed, started) = (
        BuildState::Claimed { by: us },
        BuildState::Started { by: us },
    );
    for (number, kind, state) in [
        (1, "begun", &claimed),
        (2, "its hook started", &started),
        (9, "by a tag's name, its lease held and claimed", &claimed),
        (10, "its hook started, its lease held", &started),
        (11, "its lease held and claimed", &claimed),
        (14, "its lease given back", &BuildState::Queued),
    ] {
        let build = migrated.build(number).await;
        assert_eq!(build.state, *state, "{number}, {kind}");
        assert!(!build.is_elsewhere, "{number}, {kind}");
        assert_eq!(build.started_at.is_some(), build.state.may_have_begun());
    }
    for (number, kind, has_started) in [
        (12, "its lease lost", false),
        (13, "its hook started, its lease lost", true),
        (15, "left to another worker", false),
    ] {
        let build = migrated.build(number).await;
        assert!(build.is_elsewhere, "{number}, {kind}");
        assert_eq!(
            build.state.may_have_begun(),
            has_started,
            "{number}, {kind}"
        );
    }
    let unfinished = migrated.ledger.unfinished().await.expect("read");
    let unfinished: Vec<_> = unfinished.iter().map(|build| build.request.id).collect();
    assert_eq!(unfinished, [2, 10, 1, 11, 9].map(id));
}

#[tokio::test]
async fn every_end_of_version_10_is_told_as_before() {
    let migrated = Migrated::just_now();
    let by = NEWER.parse().expect("a commit");
    let no_image = "the build image nowhere/app is not there and cannot be pulled";
    for (number, outcome) in [
        (3, Outcome::Passed),
        (4, Outcome::Failed { exit_code: 2 }),
        (5, Outcome::TimedOut { timeout_s: 3600 }),
        (
            6,
            Outcome::OutOfMemory {
                limit_bytes: Some(512 << 20),
            },
        ),
        (7, Outcome::Superseded { by }),
        (8, BuildError::Reason(no_image.to_owned()).into()),
        (18, Outcome::OutOfMemory { limit_bytes: None }),
        (19, Outcome::Passed),
    ] {
        let build = migrated.build(number).await;
        assert_eq!(build.outcome(), Some(&outcome), "{number}");
        assert!(build.ended_at.expect("it has ended") >= build.claimed_at);
        assert!(!build.is_elsewhere);
        assert_eq!(build.log_removed, number == 3);
    }
    let timed_out = migrated.build(5).await;
    let problem = timed_out.status_problem.as_deref();
    assert_eq!(problem, Some("422: no such commit"));

    // Of the last two, 18 and 19, neither says nothing of the branch.
    let next = migrated.build(1).await;
    let before = migrated.ledger.outcome_before(&next).await.expect("read");
    assert_eq!(before, Some(Outcome::Passed));
    let sha = next.commit.clone().expect("a commit");
    let second = migrated.build(2).await;
    let came_before = migrated.ledger.came_before(&second, [&sha, &sha]);
    assert!(came_before.await.expect("read"));
}

#[tokio::test]
async fn what_version_10_knew_of_a_build_is_kept() {
    let migrated = Migrated::just_now();
    let by_name = migrated.build(9).await;
    assert_eq!(by_name.request.revision.to_string(), "v1.0");
    let commit = by_name.commit.as_ref().map(|commit| commit.as_str());
    assert_eq!(commit, Some(NEWER));

    let superseded = StopReason::Superseded {
        by: NEWER.parse().expect("a commit"),
    };
    for (number, expected) in [(10, Some(&superseded)), (11, None), (20, None)] {
        let stop = migrated.ledger.stop_reason(id(number)).await.expect("read");
        assert_eq!(stop.as_ref(), expected, "{number}");
    }
    let images = migrated.ledger.pulled_images().await.expect("read");
    assert_eq!(images[0].name, "debian:trixie");

    // Neither a lease nor a push that was dealt with is a build.
    for number in [16, 17, 20] {
        assert_eq!(migrated.ledger.find(id(number)).await.expect("read"), None);
    }
}

#[tokio::test]
async fn what_version_10_owed_is_owed() {
    let migrated = Migrated::just_now();
    let ledger = &migrated.ledger;
    ledger.resume_reports().await.expect("resumed");
    // The status is held back, and with it the mail of its build.
    let NextReport::In(wait) = ledger.next_due(STATUS).await.expect("read") else {
        panic!("a status is owed and held back");
    };
    assert!(wait > Duration::from_secs(25 * 60), "{wait:?}");
    let NextReport::Due(mail) = ledger.next_due("mail").await.expect("read") else {
        panic!("a mail is due");
    };
    assert_eq!((mail.build.request.id, mail.attempts), (id(5), 0));
    ledger.report_done(&mail).await.expect("done");
    for notifier in [STATUS, "mail"] {
        assert!(ledger.is_owed(id(4), notifier).await.expect("read"));
    }
    // Version 10 has announced them: they are not announced again.
    for number in [2, 9, 10, 11] {
        let announced = ledger.owe(id(number), STATUS, Event::Began, false);
        announced.await.expect("owed");
        assert!(!ledger.is_owed(id(number), STATUS).await.expect("read"));
    }
}

#[tokio::test]
async fn what_version_10_left_for_weeks_is_not_begun() {
    let migrated = Migrated::after(Duration::from_secs(16 * 24 * 60 * 60));
    assert_eq!(migrated.ledger.unfinished().await.expect("read"), []);
    let left = migrated.build(2).await;
    assert!(left.is_elsewhere);
    let claim = migrated.ledger.claim(&left.request);
    let Claim::Ours(build) = claim.await.expect("claimed") else {
        panic!("whose message comes all the same has the build");
    };
    assert!(build.state.may_have_begun());
}

#[test]
fn the_first_version_is_migrated_and_a_newer_one_refused() {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("builds.db");
    let old = Connection::open(&file).expect("opened");
    old.execute_batch(FIRST).expect("made");
    old.execute("INSERT INTO leases (build_id, token) VALUES ('a', 'b')", [])
        .expect("filled");
    drop(open(directory.path()));
    drop(open(directory.path()));

    old.pragma_update(None, "user_version", 99).expect("newer");
    let refused = Ledger::with_store(directory.path(), None).expect_err("refused");
    let line = format!("{refused:#}");
    assert!(
        line.starts_with("DATA_DIR: ") && line.contains("newer version"),
        "{line}"
    );
}
