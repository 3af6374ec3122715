//! The ledger, opened: SQLite in `DATA_DIR`, and the store beside it where several hosts share one.

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, ErrorCode, Params, Transaction, TransactionBehavior};
use tokio::time::sleep;

use super::migration::migrate;
use super::reserve::Reserve;
use super::store::Store;
use super::{LedgerError, Result};
use crate::build::WorkerId;
use crate::config::StoreConfig;
use crate::process::database::{Database, IDLE, damage};
use crate::process::worker_id;

const FILE: &str = "builds.db";
/// A small cache, in KiB, beside the kernel's: the memory does not grow with the records.
const DURABLE: &str =
    "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -512;";
/// Changes nothing, and writes a page.
const TOUCH: &str = "UPDATE queue SET id = id";

/// The ledger of all builds. Clones share it.
#[derive(Debug, Clone)]
pub struct Ledger {
    database: Arc<Mutex<Database>>,
    reserve: Reserve,
    pub(super) worker: WorkerId,
    pub(super) store: Option<Store>,
}

impl Ledger {
    /// Opens the ledger in this directory, which must exist, and that of the store, if there is one.
    ///
    /// # Errors
    /// The files cannot be opened, or are none of this program or of an older one; or the store does
    /// not keep what a ledger needs.
    pub async fn open(data_dir: &Path, store: Option<&StoreConfig>) -> anyhow::Result<Self> {
        let store = match store {
            None => None,
            Some(config) => {
                let store = Store::open(config).await?;
                store.probe().await?;
                Some(store)
            }
        };
        Self::with_store(data_dir, store)
    }

    /// As [`open`](Self::open), with a store that was opened, and probed, before.
    ///
    /// # Errors
    /// The files cannot be opened, or are none of this program or of an older one.
    pub fn with_store(data_dir: &Path, store: Option<Store>) -> anyhow::Result<Self> {
        let worker = worker_id::read_or_make(data_dir)?;
        let path = data_dir.join(FILE);
        let opened = Database::open(&path, configure, TOUCH, |connection| {
            migrate(connection, worker)
        });
        let database = opened.map_err(|error| unusable(&path, error))?;
        Ok(Self {
            database: Arc::new(Mutex::new(database)),
            reserve: Reserve::of(data_dir),
            worker,
            store,
        })
    }

    /// This worker's identity.
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// Returns true if builds are claimed in a store that several hosts share.
    pub fn has_store(&self) -> bool {
        self.store.is_some()
    }

    /// Looks whether steps can be recorded.
    ///
    /// # Errors
    /// Another program holds the database, or it cannot be read.
    pub async fn check(&self) -> Result<()> {
        self.transact(|transaction| {
            let sql = "SELECT count(*) FROM outbox";
            let _: i64 = transaction.query_row(sql, [], |row| row.get(0))?;
            Ok(())
        })
        .await
    }

    /// Keeps little in the database's log alone: what it holds is moved to the database whenever that has been
    /// left alone for a while.
    pub async fn checkpoint_when_idle(&self) -> Infallible {
        let mut seen = 0;
        loop {
            sleep(IDLE).await;
            let looked = self.with_database(move |database| {
                let changes = database.changes();
                let tried = (changes == seen).then(|| database.checkpoint());
                (changes, tried)
            });
            let (changes, tried) = looked.await;
            if let Some(Err(error)) = tried {
                tracing::debug!(%error, "failed to checkpoint the build records; trying again");
            }
            seen = changes;
        }
    }

    /// Executes one statement, and tells how many rows it has changed.
    pub(super) async fn execute(
        &self,
        sql: &'static str,
        values: impl Params + Clone + Send + 'static,
    ) -> Result<usize> {
        self.with(move |db| Ok(db.execute(sql, values.clone())?))
            .await
    }

    /// Works on the database in one transaction, which no other writer comes between.
    pub(super) async fn transact<T: Send + 'static>(
        &self,
        mut work: impl FnMut(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.with(move |db| {
            let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let done = work(&transaction)?;
            transaction.commit()?;
            Ok(done)
        })
        .await
    }

    /// Works on the database; on a full disk a second time, with the room that is kept for that.
    pub(super) async fn with<T: Send + 'static>(
        &self,
        mut work: impl FnMut(&mut Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let reserve = self.reserve.clone();
        self.with_database(move |database| {
            let connection = database.enter()?;
            let done = match work(connection) {
                Err(error) if lacks_room(&error) && reserve.release() => work(connection),
                done => done,
            };
            database.leave(match &done {
                Err(LedgerError::Sqlite(error)) => Some(error),
                _ => None,
            });
            done
        })
        .await
    }

    async fn with_database<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Database) -> T + Send + 'static,
    ) -> T {
        let database = Arc::clone(&self.database);
        let done = tokio::task::spawn_blocking(move || {
            // A panic in the middle of a transaction has rolled it back: the connection is sound.
            work(&mut database.lock().unwrap_or_else(PoisonError::into_inner))
        });
        done.await.expect("work on the ledger does not panic")
    }
}

fn configure(database: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(database)?;
    connection.execute_batch(DURABLE)?;
    Ok(connection)
}

fn unusable(database: &Path, error: LedgerError) -> anyhow::Error {
    if let LedgerError::Sqlite(error) = &error
        && let Some(damage) = damage(database, error)
    {
        return damage.into();
    }
    anyhow::Error::new(error).context(format!("DATA_DIR: {}", database.display()))
}

fn lacks_room(error: &LedgerError) -> bool {
    match error {
        LedgerError::Sqlite(error) => error.sqlite_error_code() == Some(ErrorCode::DiskFull),
        _ => false,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn ledger() -> (tempfile::TempDir, Ledger) {
        let directory = tempfile::tempdir().expect("directory");
        let ledger = open(directory.path());
        (directory, ledger)
    }

    pub(in super::super) fn open(data_dir: &Path) -> Ledger {
        Ledger::with_store(data_dir, None).expect("opened")
    }
}
