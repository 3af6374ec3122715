//! The database's form, and the changes that each of its versions brought.

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::LedgerError;
use crate::build::WorkerId;

/// The placeholder of this worker's id in a migration.
const THIS_WORKER: &str = "<this worker>";

/// The changes of each version of the database, in order. The database's `user_version` says how
/// many of them it has seen.
const MIGRATIONS: [&str; 13] = [
    FIRST,
    "ALTER TABLE builds ADD COLUMN hook_started_ms INTEGER",
    RETENTION,
    SUPERSEDED,
    DEALT_WITH,
    "ALTER TABLE builds ADD COLUMN claim TEXT",
    HOLDS,
    BY_END,
    "ALTER TABLE leases ADD COLUMN given_back INTEGER NOT NULL DEFAULT 0",
    ENDS,
    STATES,
    OBJECTS,
    QUEUE,
];

const FIRST: &str = "
    CREATE TABLE IF NOT EXISTS builds (
        id             TEXT PRIMARY KEY,
        message        TEXT NOT NULL,
        repo           TEXT NOT NULL COLLATE NOCASE,
        ref_name       TEXT,
        commit_sha     TEXT,
        started_ms     INTEGER NOT NULL,
        finished_ms    INTEGER,
        outcome        TEXT,
        status_problem TEXT
    ) STRICT;
    CREATE INDEX IF NOT EXISTS builds_by_branch ON builds (repo, ref_name, finished_ms);
    CREATE TABLE IF NOT EXISTS outbox (
        build_id TEXT NOT NULL REFERENCES builds (id),
        kind     TEXT NOT NULL CHECK (kind IN ('status', 'mail')),
        due_ms   INTEGER NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (build_id, kind)
    ) STRICT;
    CREATE TABLE IF NOT EXISTS leases (
        build_id TEXT PRIMARY KEY,
        token    TEXT,
        lost_ms  INTEGER
    ) STRICT;
";

/// An image stands here from when the worker pulled it until it is removed, or found to be somebody
/// else's by now.
const RETENTION: &str = "
    ALTER TABLE builds ADD COLUMN log_removed_ms INTEGER;
    CREATE INDEX builds_by_end ON builds (finished_ms) WHERE finished_ms IS NOT NULL;
    CREATE TABLE images (
        name     TEXT PRIMARY KEY,
        image_id TEXT NOT NULL,
        used_ms  INTEGER NOT NULL
    ) STRICT;
";

const SUPERSEDED: &str = "
    CREATE TABLE superseded (
        build_id   TEXT PRIMARY KEY,
        commit_sha TEXT NOT NULL
    ) STRICT;
";

const DEALT_WITH: &str = "
    CREATE TABLE dealt_with (
        build_id TEXT PRIMARY KEY,
        at_ms    INTEGER NOT NULL
    ) STRICT;
";

/// The time since when a report is owed, and the time until which all of a kind are held back.
const HOLDS: &str = "
    ALTER TABLE outbox ADD COLUMN owed_ms INTEGER NOT NULL DEFAULT 0;
    UPDATE outbox SET owed_ms = due_ms;
    CREATE TABLE holds (
        kind     TEXT PRIMARY KEY,
        until_ms INTEGER NOT NULL,
        reason   TEXT NOT NULL
    ) STRICT;
    CREATE INDEX builds_by_commit ON builds (repo, commit_sha);
";

/// The order in which builds are forgotten: by their end, or where that is not known by their start.
const BY_END: &str = "
    DROP INDEX builds_by_end;
    CREATE INDEX builds_by_end ON builds (coalesce(finished_ms, started_ms));
";

/// Builds are numbered in the order in which they end: the clock may be set back.
const ENDS: &str = "
    ALTER TABLE builds ADD COLUMN end_number INTEGER NOT NULL DEFAULT 0;
    UPDATE builds SET end_number = ended.number FROM (
        SELECT id, row_number() OVER (ORDER BY finished_ms, rowid) AS number
        FROM builds WHERE finished_ms IS NOT NULL
    ) AS ended WHERE builds.id = ended.id;
    CREATE INDEX builds_by_end_number ON builds (end_number);
";

/// One state and one owner of a build. A build that an earlier version began and did not end is this
/// worker's, unless its lease was given back, or lost to another worker, whose name is not known. A build
/// that was begun more than 15 days ago has no message any more: a migration must not begin it anew.
///
/// A report of a build's beginning that was sent stays in the outbox without being due: it is owed
/// once.
const STATES: &str = "
    ALTER TABLE builds RENAME COLUMN started_ms TO claimed_ms;
    ALTER TABLE builds RENAME COLUMN hook_started_ms TO started_ms;
    ALTER TABLE builds RENAME COLUMN finished_ms TO ended_ms;
    ALTER TABLE builds ADD COLUMN state TEXT NOT NULL DEFAULT 'queued'
        CHECK (state IN ('queued', 'claimed', 'started', 'ended'));
    ALTER TABLE builds ADD COLUMN owner TEXT;
    ALTER TABLE builds ADD COLUMN stop TEXT;
    UPDATE builds SET state = CASE
        WHEN ended_ms IS NOT NULL THEN 'ended'
        WHEN started_ms IS NOT NULL THEN 'started'
        ELSE 'claimed'
    END;
    UPDATE builds SET state = 'queued'
        WHERE state = 'claimed' AND id IN (SELECT build_id FROM leases WHERE given_back);
    UPDATE builds SET owner = '<this worker>' WHERE state IN ('claimed', 'started');
    UPDATE builds SET owner = '00000000-0000-0000-0000-000000000000'
        WHERE owner IS NOT NULL AND (
            claimed_ms < (unixepoch() - 15 * 86400) * 1000
            OR id IN (SELECT build_id FROM leases WHERE lost_ms IS NOT NULL));
    UPDATE builds SET stop = json_object('superseded', json_object('by', superseded.commit_sha))
        FROM superseded WHERE build_id = id;

    ALTER TABLE outbox RENAME TO old_outbox;
    CREATE TABLE outbox (
        build_id TEXT NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
        notifier TEXT NOT NULL,
        event    TEXT NOT NULL CHECK (event IN ('began', 'ended')),
        due_ms   INTEGER,
        owed_ms  INTEGER NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        is_again INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (build_id, notifier, event)
    ) STRICT;
    INSERT INTO outbox (build_id, notifier, event, due_ms, owed_ms, attempts)
        SELECT build_id, kind, 'ended', due_ms, owed_ms, attempts FROM old_outbox;
    INSERT INTO outbox (build_id, notifier, event, owed_ms)
        SELECT id, 'status', 'began', claimed_ms FROM builds
        WHERE owner = '<this worker>' AND (state = 'started' OR claim IS NOT NULL);
    ALTER TABLE holds RENAME COLUMN kind TO notifier;
    ALTER TABLE builds DROP COLUMN claim;
    DROP TABLE old_outbox;
    DROP TABLE leases;
    DROP TABLE superseded;
    DROP TABLE dealt_with;
";

/// The objects on the engine that a build's labels do not tell of, and what its last attempt met.
const OBJECTS: &str = "
    ALTER TABLE builds ADD COLUMN last_problem TEXT;
    CREATE TABLE objects (
        build_id  TEXT NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
        name      TEXT NOT NULL,
        is_theirs INTEGER NOT NULL,
        PRIMARY KEY (build_id, name)
    ) STRICT;
";

/// The queue in `DATA_DIR`, as it stood last: at most one.
const QUEUE: &str = "
    CREATE TABLE queue (
        number   INTEGER PRIMARY KEY CHECK (number = 1),
        id       TEXT NOT NULL,
        accepted INTEGER NOT NULL,
        waiting  INTEGER NOT NULL
    ) STRICT;
";

/// Brings the database up to this program's version.
///
/// # Errors
/// It is of a newer version, or cannot be written.
pub(super) fn migrate(db: &mut Connection, worker: WorkerId) -> Result<(), LedgerError> {
    // Another process may do the same.
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let seen = version(&transaction)?;
    if seen > MIGRATIONS.len() as u32 {
        return Err(LedgerError::Newer(seen));
    }
    for migration in &MIGRATIONS[seen as usize..] {
        let migration = migration.replace(THIS_WORKER, &worker.to_string());
        transaction.execute_batch(&migration)?;
    }
    transaction.pragma_update(None, "user_version", MIGRATIONS.len() as u32)?;
    Ok(transaction.commit()?)
}

fn version(transaction: &Transaction<'_>) -> rusqlite::Result<u32> {
    transaction.pragma_query_value(None, "user_version", |row| row.get(0))
}

#[cfg(test)]
mod tests;
