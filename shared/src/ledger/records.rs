//! The table of builds: a row for each, written in one place.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, Type, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, named_params, params};

use super::entry::{Entry, Event, from_ms, now_ms, over_ms, to_ms};
use crate::build::{Build, BuildId, BuildState, CommitSha, Outcome, WorkerId};
use crate::message::Message;

/// Finds a build, as one of the workers knows it.
pub(super) fn find(
    db: &Connection,
    id: BuildId,
    worker: WorkerId,
) -> rusqlite::Result<Option<Build>> {
    let mut select = db.prepare_cached("SELECT * FROM builds WHERE id = ?1")?;
    let found = select.query_row([id.to_string()], |row| read_build(row, worker));
    found.optional()
}

/// Finds the entry of a build, as far as this worker has heard.
pub(super) fn find_entry(
    db: &Connection,
    id: BuildId,
    worker: WorkerId,
) -> rusqlite::Result<Option<Entry>> {
    let mut select = db.prepare_cached("SELECT * FROM builds WHERE id = ?1")?;
    let found = select.query_row([id.to_string()], |row| read_entry(row, worker));
    found.optional()
}

/// Writes a build, unless it has an end, which never changes. The reports that this worker owes of an
/// end of its own are owed with it; a beginning is reported only of what this worker has.
pub(super) fn write(
    transaction: &Transaction<'_>,
    entry: &Entry,
    worker: WorkerId,
) -> rusqlite::Result<()> {
    if upsert(transaction, entry)? == 0 {
        return Ok(());
    }
    let id = entry.id();
    if entry.state.outcome().is_some() && entry.writer == worker {
        transaction.execute(
            "UPDATE builds SET end_number = (SELECT MAX(end_number) + 1 FROM builds)
             WHERE id = ?1",
            [id.to_string()],
        )?;
        for notifier in &entry.owes {
            owe(transaction, id, notifier, Event::Ended, false)?;
        }
    }
    if entry.state.owner() != Some(worker) {
        // That one was sent is remembered until the build has ended.
        transaction.execute(
            "DELETE FROM outbox
             WHERE build_id = ?1 AND event = 'began' AND (due_ms IS NOT NULL OR ?2)",
            params![id.to_string(), entry.state.outcome().is_some()],
        )?;
    }
    Ok(())
}

/// Owes a report, unless it is owed already. That of a beginning is due now unless it was sent.
pub(super) fn owe(
    db: &Connection,
    id: BuildId,
    notifier: &str,
    event: Event,
    is_again: bool,
) -> rusqlite::Result<()> {
    db.execute(
        "INSERT INTO outbox (build_id, notifier, event, due_ms, owed_ms, is_again)
         VALUES (?1, ?2, ?3, ?4, ?4, ?5)
         ON CONFLICT DO UPDATE SET due_ms = min(due_ms, excluded.due_ms) WHERE event = 'began'",
        params![id.to_string(), notifier, event, now_ms(), is_again],
    )
    .map(drop)
}

fn upsert(transaction: &Transaction<'_>, entry: &Entry) -> rusqlite::Result<usize> {
    let request = entry.message.request();
    let outcome = entry.state.outcome();
    transaction.execute(
        "INSERT INTO builds (id, message, repo, ref_name, commit_sha, state, owner,
            claimed_ms, started_ms, ended_ms, outcome)
         VALUES (:id, :message, :repo, :ref_name, :commit, :state, :owner,
            :claimed_ms, :started_ms, :ended_ms, :outcome)
         ON CONFLICT (id) DO UPDATE SET
            commit_sha = coalesce(:commit, commit_sha), state = :state, owner = :owner,
            claimed_ms = :claimed_ms, started_ms = :started_ms, ended_ms = :ended_ms,
            outcome = :outcome
         WHERE state <> 'ended'",
        named_params! {
            ":id": request.id.to_string(),
            ":message": entry.message.encode(),
            ":repo": request.repo.as_str(),
            ":ref_name": request.ref_name(),
            ":commit": entry.commit.as_ref().map(CommitSha::as_str),
            ":state": name(&entry.state),
            ":owner": entry.state.owner().map(|worker| worker.to_string()),
            ":claimed_ms": entry.claimed_ms,
            ":started_ms": entry.started_ms,
            ":ended_ms": entry.ended_ms,
            ":outcome": outcome.map(to_json),
        },
    )
}

/// Finds the builds that a worker has and that have not ended: those with a started hook first, then the
/// oldest.
pub(super) fn unfinished(db: &Connection, worker: WorkerId) -> rusqlite::Result<Vec<Build>> {
    let mut select = db.prepare(
        "SELECT * FROM builds WHERE state IN ('claimed', 'started') AND owner = ?1
         ORDER BY state = 'claimed', claimed_ms, rowid",
    )?;
    let found = select.query_map([worker.to_string()], |row| read_build(row, worker))?;
    found.collect()
}

/// Finds the outcome of the build of the same branch that ended before this one, and that tells how the
/// branch is doing.
pub(super) fn outcome_before(db: &Connection, build: &Build) -> rusqlite::Result<Option<Outcome>> {
    let request = &build.request;
    let mut select = db.prepare(
        "SELECT outcome FROM builds
         WHERE repo = ?1 AND ref_name IS ?2 AND id <> ?3 AND state = 'ended'
         ORDER BY end_number DESC",
    )?;
    let (repo, id) = (request.repo.as_str(), request.id.to_string());
    let mut outcomes = select.query_map(params![repo, request.ref_name(), id], |row| {
        from_json::<Outcome>(row, "outcome")
    })?;
    outcomes
        .find(|found| found.as_ref().map_or(true, Outcome::is_verdict_on_branch))
        .transpose()
}

/// Returns true if a build of one of these commits, on the same branch, was claimed before this one.
pub(super) fn came_before(
    db: &Connection,
    build: &Build,
    [one, other]: &[CommitSha; 2],
) -> rusqlite::Result<bool> {
    let request = &build.request;
    db.query_row(
        "SELECT EXISTS (
            SELECT 1 FROM builds
            WHERE repo = ?1 AND ref_name IS ?2 AND id <> ?3 AND commit_sha IN (?4, ?5)
              AND rowid < (SELECT rowid FROM builds WHERE id = ?3))",
        params![
            request.repo.as_str(),
            request.ref_name(),
            request.id.to_string(),
            one.as_str(),
            other.as_str()
        ],
        |row| row.get(0),
    )
}

/// Reads a row, for one of the workers.
pub(super) fn read_build(row: &Row<'_>, worker: WorkerId) -> rusqlite::Result<Build> {
    let entry = read_entry(row, worker)?;
    let claimed_at = from_ms(entry.claimed_ms);
    let has_ended = entry.state.outcome().is_some();
    let owner = entry.state.owner();
    let is_anothers = owner.is_some_and(|owner| owner != worker);
    Ok(Build {
        request: entry.message.into_request(),
        commit: entry.commit,
        state: entry.state,
        claimed_at,
        started_at: entry.started_ms.map(from_ms),
        ended_at: entry.ended_ms.map(from_ms),
        status_problem: row.get("status_problem")?,
        log_removed: row.get::<_, Option<i64>>("log_removed_ms")?.is_some(),
        is_elsewhere: !has_ended && (is_anothers || to_ms(claimed_at) < over_ms()),
    })
}

fn read_entry(row: &Row<'_>, worker: WorkerId) -> rusqlite::Result<Entry> {
    let message: String = row.get("message")?;
    let commit: Option<String> = row.get("commit_sha")?;
    Ok(Entry {
        message: Message::decode(&message).map_err(unreadable)?,
        commit: commit.and_then(|sha| sha.parse().ok()),
        state: read_state(row)?,
        claimed_ms: row.get("claimed_ms")?,
        started_ms: row.get("started_ms")?,
        ended_ms: row.get("ended_ms")?,
        writer: worker,
        owes: Vec::new(),
    })
}

fn read_state(row: &Row<'_>) -> rusqlite::Result<BuildState> {
    let state: String = row.get("state")?;
    let owner = || {
        let owner: String = row.get("owner")?;
        owner.parse::<WorkerId>().map_err(unreadable)
    };
    Ok(match state.as_str() {
        "claimed" => BuildState::Claimed { by: owner()? },
        "started" => BuildState::Started { by: owner()? },
        "ended" => BuildState::Ended(from_json(row, "outcome")?),
        // The table allows no other.
        _ => BuildState::Queued,
    })
}

fn name(state: &BuildState) -> &'static str {
    match state {
        BuildState::Queued => "queued",
        BuildState::Claimed { .. } => "claimed",
        BuildState::Started { .. } => "started",
        BuildState::Ended(_) => "ended",
    }
}

impl ToSql for Event {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Began => "began".into(),
            Self::Ended => "ended".into(),
        })
    }
}

impl FromSql for Event {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_str()? {
            "began" => Ok(Self::Began),
            "ended" => Ok(Self::Ended),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}

pub(super) fn to_json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data")
}

/// Reads a column that holds JSON.
pub(super) fn from_json<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    column: &str,
) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(unreadable)
}

pub(super) fn unreadable(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::super::database::tests::ledger;
    use super::super::entry::OVER_AFTER;
    use super::*;
    use crate::build::samples::request;

    #[tokio::test]
    async fn an_end_is_not_written_over() {
        let (_directory, ledger) = ledger();
        let worker = ledger.worker();
        let begun = Entry::new(request("main"), worker);
        let id = begun.id();
        let claimed = begun.clone().claim(worker, OVER_AFTER).expect("claimed");
        let ended = claimed.clone().end(worker, Outcome::Passed, None, vec![]);
        let entries = [ended.expect("ended"), claimed, begun];
        let written = ledger.transact(move |transaction| {
            for entry in &entries {
                write(transaction, entry, worker)?;
            }
            Ok(())
        });
        written.await.expect("written");
        let build = ledger.find(id).await.expect("read").expect("known");
        assert_eq!(build.outcome(), Some(&Outcome::Passed));
    }
}
