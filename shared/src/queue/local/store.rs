//! The table of messages, and what can happen to one. Every function is one statement, and takes
//! the time as an argument; what is durable when is up to the caller's transaction.

use std::cell::Cell;
use std::fs::TryLockError;
use std::io;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, Row, Transaction, TransactionBehavior, named_params};

use crate::process::database::{Database, damage};
use crate::process::directory;
use crate::process::lock::FileLock;
use crate::queue::{MAX_RECEIVES, QueueError};
use crate::standing::Standing;

const DATABASE: &str = "queue.db";
const LOCK: &str = "queue.lock";

/// How long to wait for somebody who looks into the database with the sqlite3 shell.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// Where the log is cut back to after a checkpoint; SQLite would keep its largest size.
const WAL_KEPT_BYTES: i64 = 8 << 20;

/// The form of the tables, kept in the database's `user_version`: the number of these changes.
const MIGRATIONS: [&str; 2] = [SCHEMA, IDENTITY];

/// `AUTOINCREMENT` keeps the id of a settled message from a second life, in which its old lease
/// would hold again. A message is visible from `visible_at_ms` on; only one that was received can
/// be hidden, so these few have an index of their own and sends do not pay for it.
const SCHEMA: &str = "
    CREATE TABLE message (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        build TEXT NOT NULL,
        body TEXT NOT NULL,
        dead INTEGER NOT NULL DEFAULT 0,
        receives INTEGER NOT NULL DEFAULT 0,
        leased INTEGER NOT NULL DEFAULT 0,
        visible_at_ms INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE UNIQUE INDEX one_message_per_build ON message (build) WHERE dead = 0;
    CREATE INDEX by_age ON message (dead);
    CREATE INDEX received ON message (dead, visible_at_ms) WHERE receives > 0;
";

/// The queue's name, by which it is known from another one.
const IDENTITY: &str = "
    CREATE TABLE identity (id TEXT NOT NULL) STRICT;
    INSERT INTO identity VALUES (lower(hex(randomblob(16))));
";

/// Changes nothing, and writes a page.
const TOUCH: &str = "UPDATE identity SET id = id";

/// The open database. It locks its directory against other processes.
pub(super) struct Store {
    database: Database,
    standing: Standing,
    /// Released after the database is closed, since fields are dropped in order.
    _lock: FileLock,
}

/// Statements that become durable together.
pub(super) struct Group<'store> {
    transaction: Transaction<'store>,
    standing: &'store mut Standing,
    /// The number of the last message that was stored, if one was.
    stored: Cell<Option<i64>>,
    /// Messages that came less those that went.
    growth: Cell<i64>,
}

/// Which messages to receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Queue,
    DeadLetters,
}

/// One receive of one message: the next receive makes it stale.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    id: i64,
    pub(super) receives: u32,
}

/// A message that was received.
#[derive(Debug)]
pub(super) struct Leased {
    pub(super) ticket: Ticket,
    pub(super) body: String,
}

impl Store {
    /// Opens the queue in `data_dir`, which is made if it is missing. No lease of an earlier
    /// process holds any longer; how often a message was received is kept.
    pub(super) fn open(data_dir: &Path) -> Result<Self, QueueError> {
        directory::make_private(data_dir).map_err(|error| unusable(data_dir, &error))?;
        let lock = lock(data_dir)?;
        let path = data_dir.join(DATABASE);
        let (database, standing) = open(&path)?;
        directory::sync(data_dir).map_err(|error| unusable(data_dir, &error))?;
        Ok(Self {
            database,
            standing,
            _lock: lock,
        })
    }

    /// Where the queue stands.
    pub(super) fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Begins a group; after it, [`leave`](Self::leave) is to be called.
    pub(super) fn begin(&mut self) -> rusqlite::Result<Group<'_>> {
        let connection = self.database.enter()?;
        Ok(Group {
            transaction: connection.transaction_with_behavior(TransactionBehavior::Immediate)?,
            standing: &mut self.standing,
            stored: Cell::default(),
            growth: Cell::default(),
        })
    }

    /// The group has ended, well or not. Returns the number of rows that were ever changed.
    pub(super) fn leave(&mut self, met: Option<&rusqlite::Error>) -> u64 {
        self.database.leave(met);
        self.database.changes()
    }

    /// Leaves little in the database's log alone. Returns false if that has to be tried again.
    pub(super) fn checkpoint(&mut self) -> rusqlite::Result<bool> {
        self.database.checkpoint()
    }
}

impl Group<'_> {
    /// Makes all that was done durable: it has reached the disk when this returns.
    pub(super) fn commit(self) -> rusqlite::Result<()> {
        self.transaction.commit()?;
        self.standing.waiting += self.growth.get();
        self.standing.accepted = self.stored.get().unwrap_or(self.standing.accepted);
        Ok(())
    }

    /// Whether the database can be read.
    pub(super) fn check(&self) -> rusqlite::Result<()> {
        self.transaction
            .prepare_cached("SELECT 1 FROM message LIMIT 1")?
            .exists([])
            .map(drop)
    }

    /// Adds a message, unless one of the same build waits or is worked on.
    pub(super) fn send(&self, build: &str, body: &str) -> rusqlite::Result<()> {
        let rows = self
            .transaction
            .prepare_cached(
                "INSERT INTO message (build, body) VALUES (:build, :body) \
                 ON CONFLICT (build) WHERE dead = 0 DO NOTHING",
            )?
            .execute(named_params! { ":build": build, ":body": body })?;
        if rows == 1 {
            let stored = self.transaction.last_insert_rowid();
            self.stored.set(Some(stored));
            self.growth.set(self.growth.get() + 1);
        }
        Ok(())
    }

    /// Makes dead letters of the messages that would be received once too often.
    pub(super) fn bury(&self, now_ms: i64) -> rusqlite::Result<()> {
        self.transaction
            .prepare_cached(
                "UPDATE message SET dead = 1, leased = 0, visible_at_ms = 0 \
                 WHERE dead = 0 AND receives > 0 AND receives >= :max_receives \
                 AND visible_at_ms <= :now",
            )?
            .execute(named_params! { ":max_receives": MAX_RECEIVES, ":now": now_ms })
            .map(drop)
    }

    /// Leases the oldest visible messages, `max` at most, and hides them until `until_ms`.
    pub(super) fn lease(
        &self,
        source: Source,
        max: usize,
        now_ms: i64,
        until_ms: i64,
    ) -> rusqlite::Result<Vec<Leased>> {
        let mut leased = self
            .transaction
            .prepare_cached(
                "UPDATE message SET receives = receives + 1, leased = 1, visible_at_ms = :until \
                 WHERE id IN (SELECT id FROM message \
                 WHERE dead = :dead AND visible_at_ms <= :now ORDER BY id LIMIT :max) \
                 RETURNING id, receives, body",
            )?
            .query_map(
                named_params! {
                    ":until": until_ms,
                    ":dead": source == Source::DeadLetters,
                    ":now": now_ms,
                    ":max": i64::try_from(max).unwrap_or(i64::MAX),
                },
                read_leased,
            )?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        // RETURNING promises no order.
        leased.sort_unstable_by_key(|message| message.ticket.id);
        Ok(leased)
    }

    /// When the next hidden message of `source` can be received.
    pub(super) fn next_visible_ms(
        &self,
        source: Source,
        now_ms: i64,
    ) -> rusqlite::Result<Option<i64>> {
        self.transaction
            .prepare_cached(
                "SELECT min(visible_at_ms) FROM message \
                 WHERE dead = :dead AND receives > 0 AND visible_at_ms > :now",
            )?
            .query_one(
                named_params! { ":dead": source == Source::DeadLetters, ":now": now_ms },
                |row| row.get(0),
            )
    }

    /// Hides a leased message until `until_ms`. False if the lease is stale.
    pub(super) fn extend(
        &self,
        ticket: Ticket,
        now_ms: i64,
        until_ms: i64,
    ) -> rusqlite::Result<bool> {
        self.transaction
            .prepare_cached(
                "UPDATE message SET visible_at_ms = :until \
                 WHERE id = :id AND receives = :receives AND leased = 1 AND visible_at_ms > :now",
            )?
            .execute(named_params! {
                ":until": until_ms,
                ":id": ticket.id,
                ":receives": ticket.receives,
                ":now": now_ms,
            })
            .map(|rows| rows == 1)
    }

    /// Removes a leased message. False if the lease is stale.
    pub(super) fn settle(&self, ticket: Ticket, now_ms: i64) -> rusqlite::Result<bool> {
        let rows = self
            .transaction
            .prepare_cached(
                "DELETE FROM message \
                 WHERE id = :id AND receives = :receives AND leased = 1 AND visible_at_ms > :now",
            )?
            .execute(named_params! {
                ":id": ticket.id,
                ":receives": ticket.receives,
                ":now": now_ms,
            })?;
        if rows == 1 {
            self.growth.set(self.growth.get() - 1);
        }
        Ok(rows == 1)
    }

    /// Ends a lease; the message is hidden until `visible_at_ms`. False if the lease is stale.
    pub(super) fn give_back(
        &self,
        ticket: Ticket,
        now_ms: i64,
        visible_at_ms: i64,
    ) -> rusqlite::Result<bool> {
        self.transaction
            .prepare_cached(
                "UPDATE message SET leased = 0, visible_at_ms = :visible_at \
                 WHERE id = :id AND receives = :receives AND leased = 1 AND visible_at_ms > :now",
            )?
            .execute(named_params! {
                ":visible_at": visible_at_ms,
                ":id": ticket.id,
                ":receives": ticket.receives,
                ":now": now_ms,
            })
            .map(|rows| rows == 1)
    }

    /// Takes back a receive that reached nobody, as if it had not been.
    pub(super) fn undo_receive(&self, ticket: Ticket) -> rusqlite::Result<()> {
        self.transaction
            .prepare_cached(
                "UPDATE message SET receives = receives - 1, leased = 0, visible_at_ms = 0 \
                 WHERE id = :id AND receives = :receives AND leased = 1",
            )?
            .execute(named_params! { ":id": ticket.id, ":receives": ticket.receives })
            .map(drop)
    }
}

/// A database error for the caller, in one line.
pub(super) fn unreachable(error: &rusqlite::Error) -> QueueError {
    QueueError::Unreachable(error.to_string().replace('\n', " "))
}

fn unusable(data_dir: &Path, error: &io::Error) -> QueueError {
    QueueError::Unreachable(format!("{}: {error}", data_dir.display()))
}

fn read_leased(row: &Row<'_>) -> rusqlite::Result<Leased> {
    Ok(Leased {
        ticket: Ticket {
            id: row.get("id")?,
            receives: row.get("receives")?,
        },
        body: row.get("body")?,
    })
}

fn lock(data_dir: &Path) -> Result<FileLock, QueueError> {
    FileLock::take(&data_dir.join(LOCK)).map_err(|error| match error {
        TryLockError::WouldBlock => QueueError::InUse(data_dir.display().to_string()),
        TryLockError::Error(error) => unusable(data_dir, &error),
    })
}

fn open(path: &Path) -> Result<(Database, Standing), QueueError> {
    let mut prepared = None;
    let opened = Database::open(path, configure, TOUCH, |connection| {
        prepared = prepare(connection)?;
        Ok(())
    });
    let database = opened.map_err(|error| match damage(path, &error) {
        Some(damage) => QueueError::Config(damage),
        None => unreachable(&error),
    })?;
    let newer = || QueueError::Unreachable(format!("{} is of a newer version", path.display()));
    Ok((database, prepared.ok_or_else(newer)?))
}

fn configure(database: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(database)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // In WAL mode anything less syncs at checkpoints only, and a power cut takes messages back.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_size_limit", WAL_KEPT_BYTES)?;
    Ok(connection)
}

/// 0 in a database that was just made.
fn schema_version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Makes what is missing, ends the leases of a dead process, and returns where the queue stands; nothing is
/// done to a queue of a newer version.
fn prepare(connection: &mut Connection) -> rusqlite::Result<Option<Standing>> {
    let opening = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let seen = schema_version(&opening)?;
    let Some(missing) = MIGRATIONS.get(seen as usize..) else {
        return Ok(None);
    };
    if !missing.is_empty() {
        opening.execute_batch(&missing.concat())?;
        opening.pragma_update(None, "user_version", MIGRATIONS.len() as u32)?;
    }
    // A leased message was received: to say so lets SQLite read the small index.
    opening.execute(
        "UPDATE message SET leased = 0, visible_at_ms = 0 WHERE leased = 1 AND receives > 0",
        [],
    )?;
    let standing = opening.query_row(
        "SELECT id,
            (SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'message'),
            (SELECT count(*) FROM message)
         FROM identity",
        [],
        |row| {
            Ok(Standing {
                id: row.get(0)?,
                accepted: row.get(1)?,
                waiting: row.get(2)?,
            })
        },
    )?;
    opening.commit()?;
    Ok(Some(standing))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel keeps what a killed process wrote: only a power cut would show the difference.
    #[test]
    fn a_commit_is_synced_to_the_disk() {
        let data_dir = tempfile::tempdir().expect("a temporary directory");
        let mut store = Store::open(data_dir.path()).expect("open");
        let database = store.database.enter().expect("entered");
        let synchronous = database.pragma_query_value(None, "synchronous", |row| row.get(0));
        let journal = database.pragma_query_value(None, "journal_mode", |row| row.get(0));
        assert_eq!(synchronous, Ok(2), "FULL");
        assert_eq!(journal, Ok("wal".to_owned()));
    }
}
