//! SQLite files in `DATA_DIR`: damage is found at the start, and what somebody else does to the files at the
//! next use.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, ffi};

use crate::config::ConfigError;

/// A database that nothing has changed for this long is checkpointed.
pub(crate) const IDLE: Duration = Duration::from_secs(1);

/// An open database, whose files somebody may take away, damage and put back.
#[derive(Debug)]
pub(crate) struct Database {
    path: PathBuf,
    configure: fn(&Path) -> rusqlite::Result<Connection>,
    /// A statement that changes nothing but writes a page.
    touch: &'static str,
    connection: Connection,
    /// The database and its log. SQLite would go on to write to a file that has no name any more.
    files: Vec<(PathBuf, Identity)>,
    /// The database's file as this process has left it, or seen it damaged.
    left: Option<Stamp>,
    damage: Option<String>,
    /// The connection's changes at the last checkpoint.
    checkpointed: Option<u64>,
}

/// The file system, and the file in it.
type Identity = (u64, u64);

/// Seconds and nanoseconds of the last change, and the size in bytes.
type Stamp = (i64, i64, u64);

impl Database {
    /// Opens the database at `path`, and reads all of it before it is prepared. `touch` is a statement that
    /// changes nothing but writes a page.
    ///
    /// # Errors
    /// It is damaged, or cannot be opened or prepared.
    pub(crate) fn open<E: From<rusqlite::Error>>(
        path: &Path,
        configure: fn(&Path) -> rusqlite::Result<Connection>,
        touch: &'static str,
        prepare: impl FnOnce(&mut Connection) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut connection = configure(path)?;
        check_whole(&connection)?;
        prepare(&mut connection)?;
        let log = PathBuf::from(format!("{}-wal", path.display()));
        // Both exist, since a transaction was begun.
        let files = [path.to_owned(), log].into_iter();
        Ok(Self {
            files: files
                .filter_map(|path| Some((path.clone(), identity(&path)?)))
                .collect(),
            left: stamp(path),
            path: path.to_owned(),
            configure,
            touch,
            connection,
            damage: None,
            checkpointed: None,
        })
    }

    /// The connection, if the files are as they were left. [`leave`](Self::leave) is to be called after every
    /// use.
    ///
    /// # Errors
    /// One was removed, another one stands in its place, or somebody else has damaged the database.
    pub(crate) fn enter(&mut self) -> rusqlite::Result<&mut Connection> {
        self.check_names()?;
        let now = stamp(&self.path);
        if now != self.left {
            self.damage = self.open_again()?;
            self.left = now;
        }
        match &self.damage {
            None => Ok(&mut self.connection),
            Some(found) => {
                let path = self.path.display();
                let problem = format!("{path} is damaged ({found}); put a sound copy in its place");
                Err(failure(ffi::SQLITE_CORRUPT, problem))
            }
        }
    }

    /// Remembers the file as it is now. All of it is read again at the next use if what was done has met damage.
    pub(crate) fn leave(&mut self, met: Option<&rusqlite::Error>) {
        self.left = match met {
            Some(error) if is_damage(error) => None,
            _ => stamp(&self.path),
        };
    }

    /// The number of rows that this process has changed since it opened the database.
    pub(crate) fn changes(&self) -> u64 {
        self.connection.total_changes()
    }

    /// Moves what stands only in the log to the database, without waiting for anybody who reads it: whoever
    /// loses the log then loses little. A new log is begun at once: the next push would have to wait until
    /// its beginning is on the disk, some milliseconds. Returns false if that has to be tried again.
    ///
    /// # Errors
    /// The files are not as they were left, or cannot be written.
    pub(crate) fn checkpoint(&mut self) -> rusqlite::Result<bool> {
        let is_done = self.checkpointed == Some(self.changes());
        let touch = self.touch;
        let connection = self.enter()?;
        if is_done {
            return Ok(true);
        }
        let patience: u32 =
            connection.pragma_query_value(None, "busy_timeout", |row| row.get(0))?;
        connection.busy_timeout(Duration::ZERO)?;
        let tried = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
            row.get::<_, bool>("busy")
        });
        let touched = match tried {
            Ok(false) => connection.execute(touch, []).map(|_| true),
            busy => busy.map(|_| false),
        };
        connection.busy_timeout(Duration::from_millis(patience.into()))?;
        self.leave(touched.as_ref().err());
        let is_done = touched?;
        self.checkpointed = is_done.then(|| self.changes());
        Ok(is_done)
    }

    fn check_names(&self) -> rusqlite::Result<()> {
        let moved = self
            .files
            .iter()
            .find(|(path, known)| identity(path) != Some(*known));
        moved.map_or(Ok(()), |(path, _)| {
            let path = path.display();
            let problem = format!("{path} was removed or replaced; start the service again");
            Err(failure(ffi::SQLITE_READONLY_DBMOVED, problem))
        })
    }

    /// Somebody else has written the file: nothing that the connection remembers of it holds. Returns
    /// the damage that is found, if any.
    ///
    /// # Errors
    /// The database cannot be read now, damaged or not.
    fn open_again(&mut self) -> rusqlite::Result<Option<String>> {
        let opened = (self.configure)(&self.path).and_then(|connection| {
            check_whole(&connection)?;
            Ok(connection)
        });
        match opened {
            Ok(connection) => {
                self.connection = connection;
                self.checkpointed = None;
                Ok(None)
            }
            Err(error) if is_damage(&error) => Ok(Some(one_line(&error))),
            Err(error) => Err(error),
        }
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = fs::metadata(path).ok()?;
    Some((found.mtime(), found.mtime_nsec(), found.len()))
}

/// Reads all of a database.
///
/// # Errors
/// It is damaged.
fn check_whole(connection: &Connection) -> rusqlite::Result<()> {
    let found: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    match found.as_str() {
        "ok" => check_indexes(connection),
        _ => Err(failure(ffi::SQLITE_CORRUPT, found)),
    }
}

/// Reads the first page of each index: the check of the whole does not open those of empty tables.
fn check_indexes(connection: &Connection) -> rusqlite::Result<()> {
    let mut select = connection.prepare(
        "SELECT name, tbl_name, coalesce(substr(sql, nullif(instr(sql, ' WHERE '), 0)), '')
         FROM sqlite_schema WHERE type = 'index'",
    )?;
    let mut indexes = select.query([])?;
    while let Some(index) = indexes.next()? {
        let (name, table): (String, String) = (index.get(0)?, index.get(1)?);
        let condition: String = index.get(2)?;
        let first = format!("SELECT 1 FROM {table} INDEXED BY {name} {condition} LIMIT 1");
        connection.prepare(&first)?.exists([])?;
    }
    Ok(())
}

/// The error of a database that is damaged, or none at all: a person has to do something.
pub(crate) fn damage(database: &Path, error: &rusqlite::Error) -> Option<ConfigError> {
    is_damage(error).then(|| ConfigError {
        variable: "DATA_DIR",
        problem: format!(
            "{} is damaged ({}); put a sound copy in its place, or move it away with its -wal and -shm: \
             what only it knew is lost then",
            database.display(),
            one_line(error)
        ),
    })
}

fn is_damage(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(
        code,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

fn one_line(error: &rusqlite::Error) -> String {
    error.to_string().replace('\n', " ")
}

fn failure(code: i32, problem: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(problem))
}
