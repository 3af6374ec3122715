//! The reports that are owed to the world, and when each of them is due.

use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension, Row, params};
use shared::build::BuildId;
use tokio::time::sleep;

use super::{BUILD, Build, Records, Result, from_ms, read_build, to_ms};

/// The first wait after a report that could not be sent; it doubles with every attempt.
const DELAY_MIN: Duration = Duration::from_secs(2);
/// The longest wait between two attempts, unless the other side asks for more.
const DELAY_MAX: Duration = Duration::from_secs(10 * 60);
/// The longest wait that the other side can ask for: GitHub counts requests by the hour.
const ASKED_MAX: Duration = Duration::from_secs(60 * 60);
/// A mail waits for the commit status, to tell if it could not be posted; so many failed attempts
/// are telling enough.
const STATUS_ATTEMPTS_BEFORE_MAIL: u32 = 4;
/// And so long it waits at most: while GitHub limits us, a status is not even attempted.
const STATUS_TIME_BEFORE_MAIL: Duration = Duration::from_secs(5 * 60);
/// What is owed for longer than this is late.
const FRESH: Duration = Duration::from_secs(60);

/// Since when a report is owed, and until when all of a kind are held back.
pub(super) const OUTBOX: &str = "
    ALTER TABLE outbox ADD COLUMN owed_ms INTEGER NOT NULL DEFAULT 0;
    UPDATE outbox SET owed_ms = due_ms;
    CREATE TABLE holds (
        kind     TEXT PRIMARY KEY,
        until_ms INTEGER NOT NULL,
        reason   TEXT NOT NULL
    ) STRICT;
    CREATE INDEX builds_by_commit ON builds (repo, commit_sha);
";

/// Something to tell the world about a finished build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// The commit status.
    Status,
    /// The mail.
    Mail,
}

impl Report {
    fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Mail => "mail",
        }
    }
}

/// A report that is due.
#[derive(Debug)]
pub(crate) struct DueReport {
    /// Of a mail that no longer waits for its status it tells why that is not posted.
    pub(crate) build: Build,
    /// How often it was tried before.
    pub(crate) attempts: u32,
    pub(crate) owed_since: SystemTime,
    /// It could not be sent as soon as it was owed.
    pub(crate) is_late: bool,
}

/// Why and for how long a report has to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setback {
    pub(crate) reason: String,
    /// How long the other side asks to be left alone, by reports of this kind altogether.
    pub(crate) asked: Option<Duration>,
}

impl Records {
    /// Owes a report again, as for the redelivery of a finished build.
    pub(crate) async fn owe_again(&self, id: BuildId, report: Report) -> Result<()> {
        self.with(move |db| owe(db, id, report, to_ms(SystemTime::now())))
            .await
    }

    /// Makes up for a clock that was ahead when reports were put off: none waits for that time, and none
    /// is owed since then. What was put off is due.
    pub(crate) async fn resume_reports(&self) -> Result<()> {
        self.with(move |db| {
            let now = to_ms(SystemTime::now());
            let transaction = db.transaction()?;
            transaction.execute(
                "UPDATE outbox SET due_ms = min(due_ms, ?1), owed_ms = min(owed_ms, ?1)",
                [now],
            )?;
            transaction.execute(
                "UPDATE holds SET until_ms = min(until_ms, ?1)",
                [now + ms(ASKED_MAX)],
            )?;
            transaction.commit()
        })
        .await
    }

    /// The report of this kind that is to be sent next, or how long none will be due. What is late
    /// waits for what is not.
    pub(crate) async fn next_due(
        &self,
        report: Report,
    ) -> Result<Result<DueReport, Option<Duration>>> {
        self.with(move |db| {
            let now = to_ms(SystemTime::now());
            let next = db
                .query_row(
                    &format!(
                        "WITH waiting AS (
                            SELECT owed.*, hold.reason AS held_because,
                                owed.attempts > 0 OR owed.owed_ms < ?2 - ?5 AS is_late,
                                max(
                                    owed.due_ms,
                                    iif(owed.kind = 'mail' AND status.attempts < ?3,
                                        status.owed_ms + ?4, 0),
                                    iif(owed.kind = 'status', coalesce(hold.until_ms, 0), 0)
                                ) AS ready_ms
                            FROM outbox AS owed
                            LEFT JOIN outbox AS status
                                ON status.build_id = owed.build_id AND status.kind = 'status'
                            LEFT JOIN holds AS hold ON hold.kind = status.kind
                            WHERE owed.kind = ?1)
                         SELECT {BUILD}, waiting.*
                         FROM waiting JOIN builds ON builds.id = build_id
                         ORDER BY ready_ms > ?2, ready_ms <= ?2 AND is_late, ready_ms
                         LIMIT 1"
                    ),
                    params![
                        report.as_str(),
                        now,
                        STATUS_ATTEMPTS_BEFORE_MAIL,
                        ms(STATUS_TIME_BEFORE_MAIL),
                        ms(FRESH)
                    ],
                    |row| Ok((read_due(row)?, row.get::<_, i64>("ready_ms")?)),
                )
                .optional()?;
            Ok(match next {
                Some((due, ready_ms)) if ready_ms <= now => Ok(due),
                Some((_, ready_ms)) => Err(Some(Duration::from_millis(ready_ms.abs_diff(now)))),
                None => Err(None),
            })
        })
        .await
    }

    /// An attempt to send a report begins. Should this process die over it, the next attempt knows
    /// that there was one.
    pub(crate) async fn report_begins(&self, id: BuildId, report: Report) -> Result<()> {
        self.change(
            "UPDATE outbox SET attempts = attempts + 1 WHERE build_id = ?1 AND kind = ?2",
            (id.to_string(), report.as_str()),
        )
        .await
    }

    /// A report was sent, or will never be: it is owed no more.
    pub(crate) async fn report_done(&self, id: BuildId, report: Report) -> Result<()> {
        self.change(
            "DELETE FROM outbox WHERE build_id = ?1 AND kind = ?2",
            (id.to_string(), report.as_str()),
        )
        .await
    }

    /// A report could not be sent: it is due again after a time that grows with the `attempts` that were
    /// made before. If the other side asks for a time, it is at least that, and for all reports of the
    /// kind.
    pub(crate) async fn report_later(
        &self,
        id: BuildId,
        report: Report,
        attempts: u32,
        setback: Setback,
    ) -> Result<()> {
        let until = to_ms(SystemTime::now() + wait(id, attempts, setback.asked));
        self.with(move |db| {
            let transaction = db.transaction()?;
            transaction.execute(
                "UPDATE outbox SET due_ms = ?3 WHERE build_id = ?1 AND kind = ?2",
                params![id.to_string(), report.as_str(), until],
            )?;
            if setback.asked.is_some() {
                transaction.execute(
                    "INSERT OR REPLACE INTO holds (kind, until_ms, reason) VALUES (?1, ?2, ?3)",
                    params![report.as_str(), until, setback.reason],
                )?;
            }
            transaction.commit()
        })
        .await
    }

    /// Returns when reports of this kind are not held back, or that cannot be known.
    pub(crate) async fn wait_until_released(&self, report: Report) {
        while let Ok(Some(wait)) = self.held_for(report).await {
            sleep(wait).await;
        }
    }

    /// For how long reports of this kind are held back altogether.
    async fn held_for(&self, report: Report) -> Result<Option<Duration>> {
        self.with(move |db| {
            let sql = "SELECT until_ms FROM holds WHERE kind = ?1";
            let until: Option<i64> = db
                .query_row(sql, [report.as_str()], |row| row.get(0))
                .optional()?;
            let left_ms = until.unwrap_or(0) - to_ms(SystemTime::now());
            let left = u64::try_from(left_ms).ok().map(Duration::from_millis);
            Ok(left.filter(|left| !left.is_zero()))
        })
        .await
    }

    /// Whether a build of the same commit that ended later was told already: what this one has to tell
    /// would stand in front of it.
    pub(crate) async fn is_outdated(&self, id: BuildId) -> Result<bool> {
        self.with(move |db| {
            db.query_row(
                "SELECT EXISTS (
                    SELECT 1 FROM builds AS one JOIN builds AS later
                        ON later.repo = one.repo AND later.commit_sha = one.commit_sha
                        AND later.end_number > one.end_number
                    WHERE one.id = ?1 AND NOT EXISTS (
                        SELECT 1 FROM outbox WHERE build_id = later.id AND kind = 'status'))",
                [id.to_string()],
                |row| row.get(0),
            )
        })
        .await
    }

    /// Notes why the status could not be posted, for the mail to tell; nothing once it could.
    pub(crate) async fn set_status_problem(
        &self,
        id: BuildId,
        problem: Option<String>,
    ) -> Result<()> {
        self.change(
            "UPDATE builds SET status_problem = ?2 WHERE id = ?1",
            (id.to_string(), problem),
        )
        .await
    }
}

/// Owes a report, unless it is owed already.
pub(super) fn owe(
    db: &Connection,
    id: BuildId,
    report: Report,
    now_ms: i64,
) -> rusqlite::Result<()> {
    db.execute(
        "INSERT INTO outbox (build_id, kind, due_ms, owed_ms) VALUES (?1, ?2, ?3, ?3)
         ON CONFLICT DO NOTHING",
        params![id.to_string(), report.as_str(), now_ms],
    )
    .map(drop)
}

fn read_due(row: &Row<'_>) -> rusqlite::Result<DueReport> {
    let mut build = read_build(row)?;
    if build.status_problem.is_none() {
        build.status_problem = row.get("held_because")?;
    }
    Ok(DueReport {
        build,
        attempts: row.get("attempts")?,
        owed_since: from_ms(row.get("owed_ms")?),
        is_late: row.get("is_late")?,
    })
}

/// How long a report waits that was attempted this often before: what the other side asks for, but not
/// so little that it is asked all the time, and up to a quarter of the delay more, so that
/// the workers of one token do not all come back at once.
fn wait(id: BuildId, attempts: u32, asked: Option<Duration>) -> Duration {
    let delay = backoff(attempts);
    let jitter = delay - id.jittered(delay);
    asked.unwrap_or_default().clamp(delay, ASKED_MAX) + jitter
}

/// How long to wait after this many attempts that failed before.
fn backoff(attempts: u32) -> Duration {
    let factor = 2u32.saturating_pow(attempts);
    DELAY_MIN.saturating_mul(factor).min(DELAY_MAX)
}

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
