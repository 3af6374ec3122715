//! The times at which reports are due.

use super::super::database::tests::{ledger, open};
use super::*;
use crate::build::samples::request;
use crate::build::{BuildRequest, Outcome};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const MAIL: &str = "mail";

/// A build that this worker has.
async fn claimed(ledger: &Ledger) -> BuildRequest {
    let request = request("main");
    ledger.claim(&request).await.expect("claimed");
    request
}

/// A build that passed and owes these.
async fn owing(ledger: &Ledger, owes: &[&str]) -> BuildId {
    let id = claimed(ledger).await.id;
    let ended = ledger.end(id, &Outcome::Passed, owes);
    ended.await.expect("ended");
    id
}

async fn due(ledger: &Ledger, notifier: &str) -> Option<DueReport> {
    match ledger.next_due(notifier).await.expect("read") {
        NextReport::Due(due) => Some(*due),
        NextReport::In(_) | NextReport::Nothing => None,
    }
}

async fn due_id(ledger: &Ledger, notifier: &str) -> Option<BuildId> {
    let due = due(ledger, notifier).await;
    due.map(|due| due.build.request.id)
}

/// The time for which nothing is due.
async fn idle(ledger: &Ledger, notifier: &str) -> Duration {
    match ledger.next_due(notifier).await.expect("read") {
        NextReport::In(wait) => wait,
        next => panic!("{next:?}"),
    }
}

/// Sends what is due next.
async fn send(ledger: &Ledger, notifier: &str) -> DueReport {
    let due = due(ledger, notifier).await.expect("due");
    ledger.report_begins(&due).await.expect("begun");
    ledger.report_done(&due).await.expect("done");
    due
}

/// One attempt to send what is due next, which fails.
async fn fail(ledger: &Ledger, notifier: &str, asked: Option<Duration>) {
    let due = due(ledger, notifier).await.expect("due");
    ledger.report_begins(&due).await.expect("begun");
    put_off(ledger, &due, asked).await;
}

async fn put_off(ledger: &Ledger, due: &DueReport, asked: Option<Duration>) {
    let setback = Setback {
        reason: "because".to_owned(),
        asked,
    };
    ledger.report_later(due, setback).await.expect("later");
}

/// Does what the clock would do: all times of the outbox lie so much further back.
async fn pass(ledger: &Ledger, time: Duration) {
    turn(ledger, -millis(time)).await;
}

/// Does what a clock does that is set back.
async fn set_back(ledger: &Ledger, time: Duration) {
    turn(ledger, millis(time)).await;
}

async fn turn(ledger: &Ledger, by_ms: i64) {
    for sql in [
        "UPDATE outbox SET due_ms = due_ms + ?1, owed_ms = owed_ms + ?1",
        "UPDATE holds SET until_ms = until_ms + ?1",
    ] {
        ledger.execute(sql, [by_ms]).await.expect("turned");
    }
}

#[tokio::test]
async fn the_mail_waits_for_the_status() {
    let (_directory, ledger) = ledger();
    let id = owing(&ledger, &[MAIL, STATUS]).await;
    assert_eq!(due_id(&ledger, STATUS).await, Some(id));
    assert_eq!(due_id(&ledger, MAIL).await, None);
    send(&ledger, STATUS).await;
    assert_eq!(due_id(&ledger, STATUS).await, None);
    assert_eq!(due_id(&ledger, MAIL).await, Some(id));
}

#[tokio::test]
async fn a_status_that_keeps_failing_does_not_hold_the_mail_for_ever() {
    let (_directory, ledger) = ledger();
    let id = owing(&ledger, &[MAIL, STATUS]).await;
    let status = due(&ledger, STATUS).await.expect("due");
    for _ in 0..STATUS_ATTEMPTS_BEFORE_OTHERS {
        assert_eq!(due_id(&ledger, MAIL).await, None);
        ledger.report_begins(&status).await.expect("begun");
        put_off(&ledger, &status, None).await;
    }
    assert_eq!(due_id(&ledger, MAIL).await, Some(id));
}

#[tokio::test]
async fn a_status_that_is_held_back_does_not_hold_the_mail_for_ever_which_tells_why() {
    let (_directory, ledger) = ledger();
    owing(&ledger, &[STATUS]).await;
    fail(&ledger, STATUS, Some(HOUR)).await;
    let held = owing(&ledger, &[MAIL, STATUS]).await;
    let wait = idle(&ledger, MAIL).await;
    assert!(wait <= STATUS_TIME_BEFORE_OTHERS, "{wait:?}");

    pass(&ledger, STATUS_TIME_BEFORE_OTHERS).await;
    assert_eq!(due_id(&ledger, STATUS).await, None);
    let mail = due(&ledger, MAIL).await.expect("due").build;
    assert_eq!(mail.request.id, held);
    assert_eq!(mail.status_problem.as_deref(), Some("because"));
}

#[tokio::test]
async fn a_limit_holds_back_all_reports_of_its_notifier_across_a_restart() {
    let (directory, ledger) = ledger();
    let limited = owing(&ledger, &[STATUS]).await;
    let mail = owing(&ledger, &[MAIL]).await;
    fail(&ledger, STATUS, Some(HOUR / 2)).await;
    let fresh = owing(&ledger, &[STATUS]).await;
    drop(ledger);

    let ledger = open(directory.path());
    ledger.resume_reports().await.expect("resumed");
    let wait = idle(&ledger, STATUS).await;
    assert!(wait > HOUR / 2 - MINUTE, "{wait:?}");
    assert_eq!(due_id(&ledger, MAIL).await, Some(mail));
    fail(&ledger, MAIL, Some(HOUR)).await;
    owing(&ledger, &[MAIL]).await;
    assert!(idle(&ledger, MAIL).await > HOUR - MINUTE);

    pass(&ledger, HOUR / 2 + MINUTE).await;
    let mut sent = Vec::new();
    while due_id(&ledger, STATUS).await.is_some() {
        sent.push(send(&ledger, STATUS).await.build.request.id);
    }
    sent.sort();
    let mut all = [limited, fresh];
    all.sort();
    assert_eq!(sent, all);
    assert_eq!(due_id(&ledger, MAIL).await, None);
}

#[tokio::test]
async fn what_is_late_waits_for_what_is_not() {
    let (_directory, ledger) = ledger();
    let late = owing(&ledger, &[STATUS]).await;
    pass(&ledger, 2 * FRESH).await;
    let failed = owing(&ledger, &[STATUS]).await;
    fail(&ledger, STATUS, None).await;
    ledger.resume_reports().await.expect("resumed");
    let fresh = owing(&ledger, &[STATUS]).await;
    for (id, is_late) in [(fresh, false), (late, true), (failed, true)] {
        let next = send(&ledger, STATUS).await;
        assert_eq!((next.build.request.id, next.is_late), (id, is_late));
    }
}

#[tokio::test]
async fn a_clock_that_was_set_back_delays_nothing_by_as_much() {
    let (_directory, ledger) = ledger();
    owing(&ledger, &[STATUS]).await;
    fail(&ledger, STATUS, None).await;
    set_back(&ledger, 1000 * HOUR).await;
    ledger.resume_reports().await.expect("resumed");
    let next = due(&ledger, STATUS).await.expect("due");
    assert!(next.owed_since <= SystemTime::now());

    fail(&ledger, STATUS, Some(HOUR)).await;
    set_back(&ledger, 1000 * HOUR).await;
    ledger.resume_reports().await.expect("resumed");
    let wait = idle(&ledger, STATUS).await;
    assert!(wait <= ASKED_MAX, "{wait:?}");
}

#[tokio::test]
async fn a_report_is_owed_since_it_is_owed_and_not_since_its_build_ended() {
    let (_directory, ledger) = ledger();
    let id = owing(&ledger, &[STATUS]).await;
    let again = async || {
        ledger
            .owe(id, STATUS, Event::Ended, true)
            .await
            .expect("owed")
    };
    // It is owed already.
    again().await;
    pass(&ledger, HOUR).await;
    let owed_for = async || {
        let due = due(&ledger, STATUS).await.expect("due");
        due.owed_since.elapsed().expect("it is past")
    };
    assert!(owed_for().await >= HOUR);
    send(&ledger, STATUS).await;
    again().await;
    assert!(owed_for().await < MINUTE);
}

#[tokio::test]
async fn a_report_that_may_have_been_sent_says_so() {
    let (_directory, ledger) = ledger();
    let id = owing(&ledger, &[STATUS]).await;
    let maybe_sent = async || due(&ledger, STATUS).await.expect("due").maybe_sent;
    assert!(!maybe_sent().await);
    fail(&ledger, STATUS, None).await;
    ledger.resume_reports().await.expect("resumed");
    assert!(maybe_sent().await);
    send(&ledger, STATUS).await;
    let again = ledger.owe(id, STATUS, Event::Ended, true);
    again.await.expect("owed again");
    assert!(maybe_sent().await);
}

#[tokio::test]
async fn a_beginning_is_reported_once() {
    let (_directory, ledger) = ledger();
    let build = claimed(&ledger).await;
    let owe = async || {
        ledger
            .owe(build.id, STATUS, Event::Began, false)
            .await
            .expect("owed")
    };
    let is_owed = async || ledger.is_owed(build.id, STATUS).await.expect("read");
    owe().await;
    owe().await;
    assert!(is_owed().await);
    assert_eq!(send(&ledger, STATUS).await.event, Event::Began);
    owe().await;
    assert!(!is_owed().await);
    assert!(due(&ledger, STATUS).await.is_none());
    // It comes back to this worker.
    ledger.claim(&build).await.expect("claimed");
    owe().await;
    assert!(!is_owed().await);
    // What is remembered holds nothing up.
    let ended = ledger.end(build.id, &Outcome::Passed, &[]);
    ended.await.expect("ended");
    let done_with = ledger.oldest_with_log(10).await.expect("read");
    assert_eq!(done_with.len(), 1);
}

#[tokio::test]
async fn no_beginning_is_reported_after_its_end() {
    let (_directory, ledger) = ledger();
    let id = claimed(&ledger).await.id;
    let began = ledger.owe(id, STATUS, Event::Began, false);
    began.await.expect("owed");
    let unsent = due(&ledger, STATUS).await.expect("due");
    let ended = ledger.end(id, &Outcome::Passed, &[STATUS]);
    ended.await.expect("ended");
    put_off(&ledger, &unsent, None).await;
    assert_eq!(send(&ledger, STATUS).await.event, Event::Ended);
    assert!(due(&ledger, STATUS).await.is_none());
}

#[tokio::test]
async fn no_beginning_is_reported_of_a_lost_build() {
    let (_directory, ledger) = ledger();
    let build = claimed(&ledger).await;
    let began = ledger.owe(build.id, STATUS, Event::Began, false);
    began.await.expect("owed");
    ledger.leave(build.id).await.expect("left");
    assert!(due(&ledger, STATUS).await.is_none());
    ledger.claim(&build).await.expect("claimed");
    let began = ledger.owe(build.id, STATUS, Event::Began, false);
    began.await.expect("owed");
    assert!(due(&ledger, STATUS).await.is_some());
}

#[tokio::test]
async fn after_a_restart_a_beginning_waits_for_its_claim() {
    let (_directory, ledger) = ledger();
    let build = claimed(&ledger).await;
    let owe = async || {
        ledger
            .owe(build.id, STATUS, Event::Began, false)
            .await
            .expect("owed")
    };
    owe().await;
    fail(&ledger, STATUS, None).await;
    ledger.resume_reports().await.expect("resumed");
    assert!(due(&ledger, STATUS).await.is_none());
    ledger.claim(&build).await.expect("claimed");
    owe().await;
    let began = due(&ledger, STATUS).await.expect("due");
    assert!(began.event == Event::Began && began.maybe_sent);
}

#[tokio::test]
async fn what_a_later_build_of_the_commit_has_told_is_not_contradicted() {
    let (_directory, ledger) = ledger();
    let is_outdated = async |id| ledger.is_outdated(id).await.expect("read");
    let first = owing(&ledger, &[STATUS]).await;
    let second = owing(&ledger, &[STATUS]).await;
    // Both are owed, and will be told in their order, or one of them will not.
    assert!(!is_outdated(first).await);
    assert_eq!(send(&ledger, STATUS).await.build.request.id, first);
    assert!(!is_outdated(second).await);
    assert_eq!(send(&ledger, STATUS).await.build.request.id, second);
    let again = ledger.owe(first, STATUS, Event::Ended, true);
    again.await.expect("owed again");
    assert!(is_outdated(first).await);
    assert!(!is_outdated(second).await);

    let mut elsewhere = request("main");
    elsewhere.revision = "b".repeat(40).parse().expect("a commit");
    ledger.claim(&elsewhere).await.expect("claimed");
    let ended = ledger.end(elsewhere.id, &Outcome::Passed, &[]);
    ended.await.expect("ended");
    assert!(!is_outdated(second).await);
}

#[test]
fn the_wait_between_attempts_doubles_up_to_ten_minutes() {
    let waits: Vec<_> = [0, 1, 2, 20, 99].map(|n| backoff(n).as_secs()).into();
    assert_eq!(waits, [2, 4, 8, 600, 600]);
}

#[test]
fn who_asks_for_a_time_gets_it_within_reason_and_jitter() {
    let seconds = Duration::from_secs;
    for (attempts, asked, least) in [
        (0, None, seconds(2)),
        (0, Some(Duration::ZERO), seconds(2)),
        (3, Some(seconds(1)), seconds(16)),
        (3, Some(seconds(100)), seconds(100)),
        (99, Some(seconds(100)), DELAY_MAX),
        (0, Some(Duration::MAX), HOUR),
    ] {
        let wait = wait(BuildId::random(), attempts, asked);
        let most = least + backoff(attempts) / 4;
        assert!(
            (least..=most).contains(&wait),
            "{attempts} {asked:?} {wait:?}"
        );
    }
}
