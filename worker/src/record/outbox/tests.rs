//! When reports are due.

use super::super::tests::{records, request};
use super::*;
use crate::outcome::Outcome;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// A build that passed and owes these.
async fn owing(records: &Records, reports: Vec<Report>) -> BuildId {
    let request = request("main");
    records.begin(&request).await.expect("begun");
    let finished = records.finish(request.id, &Outcome::Passed, reports);
    finished.await.expect("finished");
    request.id
}

async fn due(records: &Records, report: Report) -> Option<DueReport> {
    records.next_due(report).await.expect("read").ok()
}

async fn due_id(records: &Records, report: Report) -> Option<BuildId> {
    let due = due(records, report).await;
    due.map(|due| due.build.request.id)
}

/// How long nothing is due.
async fn idle(records: &Records, report: Report) -> Duration {
    let next = records.next_due(report).await.expect("read");
    next.expect_err("nothing is due")
        .expect("something is owed")
}

fn setback(asked: Option<Duration>) -> Setback {
    Setback {
        reason: "because".to_owned(),
        asked,
    }
}

/// One attempt that fails.
async fn fail(records: &Records, id: BuildId, report: Report, asked: Option<Duration>) {
    let due = due(records, report).await;
    let attempts = due.map_or(0, |due| due.attempts);
    records.report_begins(id, report).await.expect("begun");
    let later = records.report_later(id, report, attempts, setback(asked));
    later.await.expect("later");
}

/// Does what the clock would do: all times of the outbox lie so much further back.
async fn pass(records: &Records, time: Duration) {
    let turned = records.with(move |db| {
        db.execute(
            "UPDATE outbox SET due_ms = due_ms - ?1, owed_ms = owed_ms - ?1",
            [ms(time)],
        )?;
        db.execute("UPDATE holds SET until_ms = until_ms - ?1", [ms(time)])
    });
    turned.await.expect("turned");
}

/// Does what a clock does that is set back.
async fn set_back(records: &Records, time: Duration) {
    let turned = records.with(move |db| {
        db.execute(
            "UPDATE outbox SET due_ms = due_ms + ?1, owed_ms = owed_ms + ?1",
            [ms(time)],
        )?;
        db.execute("UPDATE holds SET until_ms = until_ms + ?1", [ms(time)])
    });
    turned.await.expect("turned");
}

#[tokio::test]
async fn the_mail_waits_for_the_status() {
    let (_directory, records) = records();
    let id = owing(&records, vec![Report::Mail, Report::Status]).await;
    assert_eq!(due_id(&records, Report::Status).await, Some(id));
    assert_eq!(due_id(&records, Report::Mail).await, None);
    let done = records.report_done(id, Report::Status);
    done.await.expect("done");
    assert_eq!(due_id(&records, Report::Status).await, None);
    assert_eq!(due_id(&records, Report::Mail).await, Some(id));
}

#[tokio::test]
async fn a_status_that_keeps_failing_does_not_hold_the_mail_for_ever() {
    let (_directory, records) = records();
    let id = owing(&records, vec![Report::Mail, Report::Status]).await;
    for _ in 0..STATUS_ATTEMPTS_BEFORE_MAIL {
        assert_eq!(due_id(&records, Report::Mail).await, None);
        fail(&records, id, Report::Status, None).await;
    }
    assert_eq!(due_id(&records, Report::Mail).await, Some(id));
}

#[tokio::test]
async fn a_status_that_is_held_back_does_not_hold_the_mail_for_ever_which_tells_why() {
    let (_directory, records) = records();
    let limited = owing(&records, vec![Report::Status]).await;
    fail(&records, limited, Report::Status, Some(HOUR)).await;
    let held = owing(&records, vec![Report::Mail, Report::Status]).await;
    let wait = idle(&records, Report::Mail).await;
    assert!(wait <= STATUS_TIME_BEFORE_MAIL, "{wait:?}");

    pass(&records, STATUS_TIME_BEFORE_MAIL).await;
    assert_eq!(due_id(&records, Report::Status).await, None);
    let mail = due(&records, Report::Mail).await.expect("due").build;
    assert_eq!(mail.request.id, held);
    assert_eq!(mail.status_problem.as_deref(), Some("because"));
}

#[tokio::test]
async fn a_limit_holds_back_all_statuses_and_no_mail_across_a_restart() {
    let (directory, records) = records();
    let limited = owing(&records, vec![Report::Status]).await;
    let other = owing(&records, vec![Report::Status]).await;
    let mail = owing(&records, vec![Report::Mail]).await;
    fail(&records, limited, Report::Status, Some(HOUR / 2)).await;
    let fresh = owing(&records, vec![Report::Status]).await;
    drop(records);

    let records = Records::open(directory.path()).expect("opened");
    records.resume_reports().await.expect("resumed");
    let wait = idle(&records, Report::Status).await;
    assert!(wait > HOUR / 2 - MINUTE, "{wait:?}");
    let held_for = records.held_for(Report::Status).await.expect("read");
    assert!(held_for > Some(HOUR / 2 - MINUTE), "{held_for:?}");
    assert_eq!(records.held_for(Report::Mail).await.expect("read"), None);
    assert_eq!(due_id(&records, Report::Mail).await, Some(mail));

    pass(&records, HOUR / 2 + MINUTE).await;
    assert_eq!(records.held_for(Report::Status).await.expect("read"), None);
    let mut due = Vec::new();
    while let Some(id) = due_id(&records, Report::Status).await {
        due.push(id);
        let done = records.report_done(id, Report::Status);
        done.await.expect("done");
    }
    due.sort_by_key(BuildId::to_string);
    let mut all = [limited, other, fresh];
    all.sort_by_key(BuildId::to_string);
    assert_eq!(due, all);
}

#[tokio::test]
async fn what_is_late_waits_for_what_is_not() {
    let (_directory, records) = records();
    let late = owing(&records, vec![Report::Status]).await;
    pass(&records, 2 * FRESH).await;
    let failed = owing(&records, vec![Report::Status]).await;
    fail(&records, failed, Report::Status, None).await;
    records.resume_reports().await.expect("resumed");
    let fresh = owing(&records, vec![Report::Status]).await;
    for (id, is_late) in [(fresh, false), (late, true), (failed, true)] {
        let next = due(&records, Report::Status).await.expect("due");
        assert_eq!((next.build.request.id, next.is_late), (id, is_late));
        let done = records.report_done(id, Report::Status);
        done.await.expect("done");
    }
}

#[tokio::test]
async fn a_clock_that_was_set_back_delays_nothing_by_as_much() {
    let (_directory, records) = records();
    let id = owing(&records, vec![Report::Status]).await;
    fail(&records, id, Report::Status, None).await;
    let limited = owing(&records, vec![Report::Status]).await;
    set_back(&records, 1000 * HOUR).await;
    records.resume_reports().await.expect("resumed");
    let next = due(&records, Report::Status).await.expect("due");
    assert!(next.owed_since <= SystemTime::now());

    fail(&records, limited, Report::Status, Some(HOUR)).await;
    set_back(&records, 1000 * HOUR).await;
    records.resume_reports().await.expect("resumed");
    let wait = idle(&records, Report::Status).await;
    assert!(wait <= ASKED_MAX, "{wait:?}");
}

#[tokio::test]
async fn a_report_is_owed_since_it_is_owed_and_not_since_its_build_ended() {
    let (_directory, records) = records();
    let id = owing(&records, vec![Report::Status]).await;
    let again = records.owe_again(id, Report::Status);
    again.await.expect("it is owed already");
    pass(&records, HOUR).await;
    let owed_for = async || {
        let due = due(&records, Report::Status).await.expect("due");
        due.owed_since.elapsed().expect("it is past")
    };
    assert!(owed_for().await >= HOUR);
    let done = records.report_done(id, Report::Status);
    done.await.expect("done");
    let again = records.owe_again(id, Report::Status);
    again.await.expect("owed again");
    assert!(owed_for().await < MINUTE);
}

#[tokio::test]
async fn what_a_later_build_of_the_commit_has_told_is_not_contradicted() {
    let (_directory, records) = records();
    let is_outdated = async |id| records.is_outdated(id).await.expect("read");
    let first = owing(&records, vec![Report::Status]).await;
    let second = owing(&records, vec![Report::Status]).await;
    // Both are owed, and will be told in their order, or one of them will not.
    assert!(!is_outdated(first).await);
    let told = records.report_done(first, Report::Status);
    told.await.expect("told");
    assert!(!is_outdated(second).await);
    let again = records.owe_again(first, Report::Status);
    again.await.expect("owed again");
    let told = records.report_done(second, Report::Status);
    told.await.expect("told");
    assert!(is_outdated(first).await);
    assert!(!is_outdated(second).await);

    let mut elsewhere = request("main");
    elsewhere.revision = "b".repeat(40).parse().expect("a commit");
    records.begin(&elsewhere).await.expect("begun");
    let finished = records.finish(elsewhere.id, &Outcome::Passed, vec![]);
    finished.await.expect("finished");
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
