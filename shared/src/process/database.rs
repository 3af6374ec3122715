//! SQLite files in `DATA_DIR`: damage is found at the start, and a file that somebody has taken away at once.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, ffi};

use crate::config::ConfigError;

/// The files of a database that is open: SQLite would go on to write to a file that has no name any more.
#[derive(Debug)]
pub(crate) struct OpenFiles(Vec<(PathBuf, Identity)>);

/// The file system, and the file in it.
type Identity = (u64, u64);

impl OpenFiles {
    /// The database and its log. Both exist once a transaction was begun.
    pub(crate) fn of(database: &Path) -> Self {
        let log = PathBuf::from(format!("{}-wal", database.display()));
        let files = [database.to_owned(), log].into_iter();
        Self(
            files
                .filter_map(|path| Some((path.clone(), identity(&path)?)))
                .collect(),
        )
    }

    /// Looks whether they are still where they were.
    ///
    /// # Errors
    /// One was removed, or another one stands in its place.
    pub(crate) fn check(&self) -> rusqlite::Result<()> {
        let moved = self
            .0
            .iter()
            .find(|(path, known)| identity(path) != Some(*known));
        moved.map_or(Ok(()), |(path, _)| {
            let code = ffi::Error::new(ffi::SQLITE_READONLY_DBMOVED);
            let path = path.display();
            let problem = format!("{path} was removed or replaced; start the service again");
            Err(rusqlite::Error::SqliteFailure(code, Some(problem)))
        })
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// Reads all of a database.
///
/// # Errors
/// It is damaged.
pub(crate) fn check_whole(connection: &Connection) -> rusqlite::Result<()> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    match found.as_str() {
        "ok" => Ok(()),
        _ => {
            let code = ffi::Error::new(ffi::SQLITE_CORRUPT);
            Err(rusqlite::Error::SqliteFailure(code, Some(found)))
        }
    }
}

/// The error of a database that is damaged, or none at all: a person has to do something.
pub(crate) fn damage(database: &Path, error: &rusqlite::Error) -> Option<ConfigError> {
    let code = error.sqlite_error_code()?;
    let is_damaged = matches!(code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase);
    is_damaged.then(|| ConfigError {
        variable: "DATA_DIR",
        problem: format!(
            "{} is damaged ({}); put a sound copy in its place, or move it away with its -wal and -shm: \
             what only it knew is lost then",
            database.display(),
            error.to_string().replace('\n', " ")
        ),
    })
}
