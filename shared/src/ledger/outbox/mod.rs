//! The reports that are owed to the world, and when each of them is due.
//!
//! A report is of one build, one event and one notifier, which is known here by its name alone.

use std::time::{Duration, SystemTime};

use rusqlite::{OptionalExtension, Row, named_params, params};

use super::database::Ledger;
use super::entry::{Event, from_ms, now_ms, to_ms};
use super::{Result, records};
use crate::build::{Build, BuildId, WorkerId};
use crate::process::millis;

/// The name of the notifier of commit statuses, for which the reports of a build's end wait.
pub const STATUS: &str = "status";

/// The first wait after a report that could not be sent; it doubles with every attempt.
const DELAY_MIN: Duration = Duration::from_secs(2);
/// The longest wait between two attempts, unless the other side asks for more.
const DELAY_MAX: Duration = Duration::from_secs(10 * 60);
/// The longest wait that the other side can ask for: GitHub counts requests by the hour.
const ASKED_MAX: Duration = Duration::from_secs(60 * 60);
/// The number of failed attempts to post a status after which no other notifier waits for it: a mail
/// tells if the status could not be posted.
const STATUS_ATTEMPTS_BEFORE_OTHERS: u32 = 4;
/// The longest time that a notifier waits for a status: while GitHub limits us, one is not even
/// attempted.
const STATUS_TIME_BEFORE_OTHERS: Duration = Duration::from_secs(5 * 60);
/// The time after which a report that is owed is late.
const FRESH: Duration = Duration::from_secs(60);

/// The next report of a notifier.
#[derive(Debug)]
pub enum NextReport {
    /// This report is due.
    Due(Box<DueReport>),
    /// No report is due for this long.
    In(Duration),
    /// No report is owed.
    Nothing,
}

/// A report that is due.
#[derive(Debug)]
pub struct DueReport {
    /// The build. Where a notifier no longer waits for the build's status, its `status_problem` tells why
    /// that is not posted.
    pub build: Build,
    /// The name of the notifier that is to send it.
    pub notifier: String,
    /// The event that it tells of.
    pub event: Event,
    /// The number of attempts before this one.
    pub attempts: u32,
    /// The time since when it is owed.
    pub owed_since: SystemTime,
    /// True if it could not be sent as soon as it was owed.
    pub is_late: bool,
    /// True if it may have been sent before: by an attempt whose answer was lost, by another worker, or
    /// when the build ended.
    pub maybe_sent: bool,
}

/// The reason for which a report has to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setback {
    /// The reason, in one line.
    pub reason: String,
    /// The time for which the other side asks to be left alone, by all reports of the notifier.
    pub asked: Option<Duration>,
}

impl Ledger {
    /// Owes a report of a build: of its beginning once, as long as this worker has the build; of its end
    /// again, as for a redelivery. `maybe_sent` is true if it may have been sent before, by another worker
    /// also.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn owe(
        &self,
        id: BuildId,
        notifier: &str,
        event: Event,
        maybe_sent: bool,
    ) -> Result<()> {
        let notifier = notifier.to_owned();
        self.with(move |db| Ok(records::owe(db, id, &notifier, event, maybe_sent)?))
            .await
    }

    /// Returns true if a notifier has still to report of a build.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn is_owed(&self, id: BuildId, notifier: &str) -> Result<bool> {
        let notifier = notifier.to_owned();
        self.with(move |db| {
            let sql = "SELECT EXISTS (
                SELECT 1 FROM outbox
                WHERE build_id = ?1 AND notifier = ?2 AND due_ms IS NOT NULL)";
            Ok(db.query_row(sql, params![id.to_string(), notifier], |row| row.get(0))?)
        })
        .await
    }

    /// Makes up for a clock that was ahead when an earlier process put reports off: none waits for that
    /// time, and none is owed since then. What was put off is due. But the beginning of a build is not
    /// reported before the build is claimed anew, and the report owed again: another worker may have ended
    /// the build by now.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn resume_reports(&self) -> Result<()> {
        self.transact(move |transaction| {
            let now = now_ms();
            transaction.execute(
                "UPDATE outbox SET owed_ms = min(owed_ms, ?1),
                    due_ms = iif(event = 'began', max(due_ms, ?2), min(due_ms, ?1))",
                [now, i64::MAX],
            )?;
            transaction.execute(
                "UPDATE holds SET until_ms = min(until_ms, ?1)",
                [now + millis(ASKED_MAX)],
            )?;
            Ok(())
        })
        .await
    }

    /// Returns the report that a notifier is to send next. What is late waits for what is not.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn next_due(&self, notifier: &str) -> Result<NextReport> {
        let (notifier, worker) = (notifier.to_owned(), self.worker);
        self.with(move |db| {
            let now = now_ms();
            let values = named_params! {
                ":notifier": notifier,
                ":status": STATUS,
                ":now": now,
                ":attempts": STATUS_ATTEMPTS_BEFORE_OTHERS,
                ":patience_ms": millis(STATUS_TIME_BEFORE_OTHERS),
                ":fresh_ms": millis(FRESH),
            };
            let mut select = db.prepare_cached(NEXT_DUE)?;
            let next = select.query_row(values, |row| {
                Ok((read_due(row, worker)?, row.get::<_, i64>("ready_ms")?))
            });
            Ok(match next.optional()? {
                Some((due, ready_ms)) if ready_ms <= now => NextReport::Due(Box::new(due)),
                Some((_, ready_ms)) => {
                    NextReport::In(Duration::from_millis(ready_ms.abs_diff(now)))
                }
                None => NextReport::Nothing,
            })
        })
        .await
    }

    /// Records that an attempt to send a report begins. Should this process die over it, the next
    /// attempt knows that there was one.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn report_begins(&self, due: &DueReport) -> Result<()> {
        let sql = "UPDATE outbox SET attempts = attempts + 1
             WHERE build_id = ?1 AND notifier = ?2 AND event = ?3";
        self.execute(sql, due.key()).await.map(drop)
    }

    /// Records that a report was sent, or will never be: it is owed no more. That of a beginning is
    /// remembered.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn report_done(&self, due: &DueReport) -> Result<()> {
        let sql = match due.event {
            Event::Began => {
                "UPDATE outbox SET due_ms = NULL
                 WHERE build_id = ?1 AND notifier = ?2 AND event = ?3"
            }
            Event::Ended => {
                "DELETE FROM outbox WHERE build_id = ?1 AND notifier = ?2 AND event = ?3"
            }
        };
        self.execute(sql, due.key()).await.map(drop)
    }

    /// Puts a report off that could not be sent, for a time that grows with the attempts that were made
    /// before. If the other side asks for a time, it is at least that, and for all reports of the
    /// notifier.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn report_later(&self, due: &DueReport, setback: Setback) -> Result<()> {
        let (id, notifier, event) = due.key();
        let wait = wait(due.build.request.id, due.attempts, setback.asked);
        let until = to_ms(SystemTime::now() + wait);
        self.transact(move |transaction| {
            transaction.execute(
                "UPDATE outbox SET due_ms = ?4
                 WHERE build_id = ?1 AND notifier = ?2 AND event = ?3",
                params![id, notifier, event, until],
            )?;
            // The report of a beginning is not worth it that an end waits.
            if setback.asked.is_some() && event == Event::Ended {
                transaction.execute(
                    "INSERT OR REPLACE INTO holds (notifier, until_ms, reason)
                     VALUES (?1, ?2, ?3)",
                    params![notifier, until, setback.reason],
                )?;
            }
            Ok(())
        })
        .await
    }

    /// Makes all reports due that a notifier could not send: the other side answers again. The report of a
    /// beginning waits all the same until its build is claimed anew.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn reports_are_due(&self, notifier: &str) -> Result<()> {
        let sql = "UPDATE outbox SET due_ms = min(due_ms, ?2)
             WHERE notifier = ?1 AND attempts > 0 AND due_ms < ?3";
        let values = (notifier.to_owned(), now_ms(), i64::MAX);
        self.execute(sql, values).await.map(drop)
    }

    /// Returns true if the status of a build of the same commit that ended later was posted already: that
    /// of this one would stand in front of it.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn is_outdated(&self, id: BuildId) -> Result<bool> {
        self.with(move |db| {
            let sql = "SELECT EXISTS (
                SELECT 1 FROM builds AS one JOIN builds AS later
                    ON later.repo = one.repo AND later.commit_sha = one.commit_sha
                    AND later.end_number > one.end_number
                WHERE one.id = ?1 AND NOT EXISTS (
                    SELECT 1 FROM outbox
                    WHERE build_id = later.id AND notifier = ?2 AND event = 'ended'))";
            Ok(db.query_row(sql, params![id.to_string(), STATUS], |row| row.get(0))?)
        })
        .await
    }

    /// Records why the status could not be posted, for the mail to tell; nothing once it could.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn set_status_problem(&self, id: BuildId, problem: Option<String>) -> Result<()> {
        let sql = "UPDATE builds SET status_problem = ?2 WHERE id = ?1";
        self.execute(sql, (id.to_string(), problem)).await.map(drop)
    }
}

/// All other notifiers wait for the status of the same build, and every notifier for its own hold.
const NEXT_DUE: &str = "
    WITH waiting AS (
        SELECT owed.*, status_hold.reason AS held_because,
            owed.attempts > 0 OR owed.owed_ms < :now - :fresh_ms AS is_late,
            max(
                owed.due_ms,
                iif(owed.notifier <> :status AND status.attempts < :attempts,
                    status.owed_ms + :patience_ms, 0),
                coalesce(hold.until_ms, 0)
            ) AS ready_ms
        FROM outbox AS owed
        LEFT JOIN outbox AS status ON status.build_id = owed.build_id
            AND status.notifier = :status AND status.event = 'ended'
        LEFT JOIN holds AS hold ON hold.notifier = owed.notifier
        LEFT JOIN holds AS status_hold ON status_hold.notifier = status.notifier
        WHERE owed.notifier = :notifier AND owed.due_ms IS NOT NULL)
    SELECT builds.*, waiting.*
    FROM waiting JOIN builds ON builds.id = build_id
    ORDER BY ready_ms > :now, ready_ms <= :now AND is_late, ready_ms
    LIMIT 1";

impl DueReport {
    /// The key of its row in the outbox.
    fn key(&self) -> (String, String, Event) {
        let id = self.build.request.id.to_string();
        (id, self.notifier.clone(), self.event)
    }
}

fn read_due(row: &Row<'_>, worker: WorkerId) -> rusqlite::Result<DueReport> {
    let mut build = records::read_build(row, worker)?;
    if build.status_problem.is_none() {
        build.status_problem = row.get("held_because")?;
    }
    let attempts = row.get("attempts")?;
    Ok(DueReport {
        build,
        notifier: row.get("notifier")?,
        event: row.get("event")?,
        attempts,
        owed_since: from_ms(row.get("owed_ms")?),
        is_late: row.get("is_late")?,
        maybe_sent: attempts > 0 || row.get("is_again")?,
    })
}

/// Returns the time that a report waits after so many attempts: what the other side asks for, but not so
/// little that it is asked all the time, and up to a quarter of the delay more, so that the workers of
/// one token do not all come back at once.
fn wait(id: BuildId, attempts: u32, asked: Option<Duration>) -> Duration {
    let delay = backoff(attempts);
    let jitter = delay - id.jittered(delay);
    asked.unwrap_or_default().clamp(delay, ASKED_MAX) + jitter
}

/// Returns the delay after this many attempts that failed before.
fn backoff(attempts: u32) -> Duration {
    let factor = 2u32.saturating_pow(attempts);
    DELAY_MIN.saturating_mul(factor).min(DELAY_MAX)
}

#[cfg(test)]
mod tests;
