//! What is known of every build, and what is still to be told: SQLite in `DATA_DIR`.
//!
//! A build's end and the reports that it owes are stored in one transaction, so that a finished
//! build can lose neither.

mod claims;
mod images;
mod leases;
mod outbox;
mod retention;
mod superseded;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rusqlite::{
    Connection, ErrorCode, OptionalExtension, Params, Row, TransactionBehavior, params,
};
use shared::build::{BuildId, BuildRequest, CommitSha};
use shared::message::Message;

use crate::disk::Reserve;
use crate::outcome::{Obstacle, Outcome};
pub(crate) use images::PulledImage;
pub(crate) use leases::LeaseState;
pub(crate) use outbox::{DueReport, Report, Setback};
pub(crate) use retention::EndedBuild;

const DURABLE: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;";

/// What each version of the database brought, in order. The database's `user_version` says how
/// many of them it has seen.
const MIGRATIONS: [&str; 10] = [
    FIRST,
    "ALTER TABLE builds ADD COLUMN hook_started_ms INTEGER",
    RETENTION,
    SUPERSEDED,
    DEALT_WITH,
    "ALTER TABLE builds ADD COLUMN claim TEXT",
    outbox::OUTBOX,
    retention::BY_END,
    "ALTER TABLE leases ADD COLUMN given_back INTEGER NOT NULL DEFAULT 0",
    ENDS,
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

/// A build stands here from when it was decided that a newer commit ends it.
const SUPERSEDED: &str = "
    CREATE TABLE superseded (
        build_id   TEXT PRIMARY KEY,
        commit_sha TEXT NOT NULL
    ) STRICT;
";

/// A push stands here that the webhook has missed, from when it was queued or found not to build
/// until GitHub has forgotten it.
const DEALT_WITH: &str = "
    CREATE TABLE dealt_with (
        build_id TEXT PRIMARY KEY,
        at_ms    INTEGER NOT NULL
    ) STRICT;
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

/// What [`read_build`] reads, of the table `builds`.
const BUILD: &str = "builds.*, EXISTS (
        SELECT 1 FROM leases
        WHERE leases.build_id = builds.id AND lost_ms IS NOT NULL AND NOT given_back
    ) AS lease_lost";

/// All that is known of one build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// What was asked for.
    pub request: BuildRequest,
    /// The commit; unknown while a manual trigger's name is not resolved.
    pub commit: Option<CommitSha>,
    /// When a worker first took it up.
    pub started_at: SystemTime,
    /// Whether its hook was started, or was about to be.
    pub hook_started: bool,
    /// How and when it ended.
    pub finished: Option<Finished>,
    /// Why its status could not be posted, if it could not.
    pub status_problem: Option<String>,
    /// Whether its log was removed, for its age or for want of room.
    pub log_removed: bool,
    /// Whether another worker took it over: then how it ended is not known here.
    pub taken_over: bool,
}

/// The end of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// How it ended.
    pub outcome: Outcome,
    /// When it ended.
    pub at: SystemTime,
}

impl Build {
    /// How long the build took, from the first lease to its end.
    pub fn duration(&self) -> Option<Duration> {
        let finished = self.finished.as_ref()?;
        Some(
            finished
                .at
                .duration_since(self.started_at)
                .unwrap_or_default(),
        )
    }
}

/// The records could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// SQLite says why.
    #[error("the build records: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A newer version of this program has written them.
    #[error("the build records are of a newer version of this program ({0})")]
    Newer(u32),
}

/// What is not noted must not happen: a hook whose start cannot be noted waits.
impl From<RecordError> for Obstacle {
    fn from(error: RecordError) -> Self {
        Self::Transient(error.to_string())
    }
}

type Result<T, E = RecordError> = std::result::Result<T, E>;

/// The store of all builds. Clones share it.
#[derive(Debug, Clone)]
pub struct Records {
    connection: Arc<Mutex<Connection>>,
    reserve: Reserve,
}

impl Records {
    /// Opens the records in this directory, which must exist.
    ///
    /// # Errors
    /// The file cannot be opened, or is no database of this program or of an older one.
    pub fn open(data_dir: &Path) -> Result<Self> {
        let mut connection = Connection::open(data_dir.join("builds.db"))?;
        connection.execute_batch(DURABLE)?;
        migrate(&mut connection)?;
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
            reserve: Reserve::of(data_dir),
        })
    }

    /// What is known of a build.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub async fn find(&self, id: BuildId) -> Result<Option<Build>> {
        self.with(move |db| select_build(db, id).optional()).await
    }

    /// Notes that a build was taken up, and answers with what is known of it.
    pub(crate) async fn begin(&self, request: &BuildRequest) -> Result<Build> {
        let request = request.clone();
        self.with(move |db| {
            let transaction = db.transaction()?;
            transaction.execute(
                "INSERT INTO builds (id, message, repo, ref_name, commit_sha, started_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING",
                params![
                    request.id.to_string(),
                    Message::V2(request.clone()).encode(),
                    request.repo.as_str(),
                    request.ref_name(),
                    request.commit().map(CommitSha::as_str),
                    to_ms(SystemTime::now()),
                ],
            )?;
            // Whoever lost its lease before, or gave it back, has it again.
            transaction.execute(
                "DELETE FROM leases WHERE build_id = ?1 AND lost_ms IS NOT NULL",
                [request.id.to_string()],
            )?;
            let build = select_build(&transaction, request.id)?;
            transaction.commit()?;
            Ok(build)
        })
        .await
    }

    /// Notes which commit a name was found to mean.
    pub(crate) async fn set_commit(&self, id: BuildId, commit: &CommitSha) -> Result<()> {
        self.change(
            "UPDATE builds SET commit_sha = ?2 WHERE id = ?1",
            (id.to_string(), commit.to_string()),
        )
        .await
    }

    /// Notes that a build's hook is about to start.
    pub(crate) async fn hook_starts(&self, id: BuildId) -> Result<()> {
        self.change(
            "UPDATE builds SET hook_started_ms = ?2 WHERE id = ?1",
            (id.to_string(), to_ms(SystemTime::now())),
        )
        .await
    }

    /// Takes back that a hook starts: the engine knows better.
    pub(crate) async fn hook_did_not_start(&self, id: BuildId) -> Result<()> {
        self.change(
            "UPDATE builds SET hook_started_ms = NULL WHERE id = ?1",
            [id.to_string()],
        )
        .await
    }

    /// Stores how a build ended together with the reports that it owes.
    pub(crate) async fn finish(
        &self,
        id: BuildId,
        outcome: &Outcome,
        reports: Vec<Report>,
    ) -> Result<()> {
        let outcome = serde_json::to_string(outcome).expect("an outcome is plain data");
        self.with(move |db| {
            let now = to_ms(SystemTime::now());
            let transaction = db.transaction()?;
            transaction.execute(
                "UPDATE builds SET outcome = ?2, finished_ms = ?3,
                    end_number = (SELECT MAX(end_number) + 1 FROM builds) WHERE id = ?1",
                params![id.to_string(), outcome, now],
            )?;
            for &report in &reports {
                outbox::owe(&transaction, id, report, now)?;
            }
            transaction.commit()
        })
        .await
    }

    /// The outcome of the build of the same branch that finished before this one. One that was
    /// superseded says nothing of the branch.
    pub(crate) async fn outcome_before(&self, build: &Build) -> Result<Option<Outcome>> {
        let id = build.request.id.to_string();
        let repo = build.request.repo.as_str().to_owned();
        let ref_name = build.request.ref_name().map(str::to_owned);
        self.with(move |db| {
            db.query_row(
                "SELECT outcome FROM builds
                 WHERE repo = ?1 AND ref_name IS ?2 AND id <> ?3 AND finished_ms IS NOT NULL
                   AND json_type(outcome, '$.superseded') IS NULL
                 ORDER BY end_number DESC LIMIT 1",
                params![repo, ref_name, id],
                |row| from_json(row, 0),
            )
            .optional()
        })
        .await
    }

    async fn change(
        &self,
        sql: &'static str,
        values: impl Params + Clone + Send + 'static,
    ) -> Result<()> {
        self.with(move |db| db.execute(sql, values.clone()))
            .await
            .map(drop)
    }

    /// Works on the database; on a full disk a second time, with the room that is kept for that.
    async fn with<T: Send + 'static>(
        &self,
        mut work: impl FnMut(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let connection = Arc::clone(&self.connection);
        let reserve = self.reserve.clone();
        let done = tokio::task::spawn_blocking(move || {
            // A panic in the middle of a transaction has rolled it back: the connection is sound.
            let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            match work(&mut connection) {
                Err(error) if lacks_room(&error) && reserve.release() => work(&mut connection),
                done => done,
            }
        });
        Ok(done.await.expect("work on the records does not panic")?)
    }
}

fn lacks_room(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

fn migrate(db: &mut Connection) -> Result<()> {
    // Another process may do the same.
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let seen: u32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if seen > MIGRATIONS.len() as u32 {
        return Err(RecordError::Newer(seen));
    }
    for migration in &MIGRATIONS[seen as usize..] {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", MIGRATIONS.len() as u32)?;
    Ok(transaction.commit()?)
}

fn select_build(db: &Connection, id: BuildId) -> rusqlite::Result<Build> {
    let sql = format!("SELECT {BUILD} FROM builds WHERE id = ?1");
    db.query_row(&sql, [id.to_string()], read_build)
}

fn read_build(row: &Row<'_>) -> rusqlite::Result<Build> {
    let message: String = row.get("message")?;
    let message = Message::decode(&message).map_err(|error| unreadable(error.into()))?;
    let commit: Option<String> = row.get("commit_sha")?;
    let finished_ms: Option<i64> = row.get("finished_ms")?;
    let started_at = from_ms(row.get("started_ms")?);
    let is_elsewhere = row.get("lease_lost")? || retention::is_over(started_at);
    Ok(Build {
        request: message.into_request(),
        commit: commit.and_then(|sha| sha.parse().ok()),
        started_at,
        hook_started: row.get::<_, Option<i64>>("hook_started_ms")?.is_some(),
        finished: match finished_ms {
            None => None,
            Some(ms) => Some(Finished {
                outcome: from_json(row, row.as_ref().column_index("outcome")?)?,
                at: from_ms(ms),
            }),
        },
        status_problem: row.get("status_problem")?,
        log_removed: row.get::<_, Option<i64>>("log_removed_ms")?.is_some(),
        taken_over: finished_ms.is_none() && is_elsewhere,
    })
}

fn from_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    serde_json::from_str(text).map_err(|error| unreadable(error.into()))
}

fn unreadable(error: Box<dyn std::error::Error + Send + Sync>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error)
}

/// Milliseconds since 1970.
fn to_ms(time: SystemTime) -> i64 {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn from_ms(ms: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn request(branch: &str) -> BuildRequest {
        BuildRequest {
            forge: shared::build::ForgeKind::Github,
            id: BuildId::random(),
            repo: "octo/hello".parse().expect("repo"),
            revision: "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c"
                .parse()
                .expect("sha"),
            git_ref: Some(format!("refs/heads/{branch}").parse().expect("ref")),
        }
    }

    pub(super) fn records() -> (tempfile::TempDir, Records) {
        let directory = tempfile::tempdir().expect("directory");
        let records = Records::open(directory.path()).expect("opened");
        (directory, records)
    }

    #[tokio::test]
    async fn a_build_is_remembered_across_a_restart() {
        let (directory, records) = records();
        let request = request("main");
        records.begin(&request).await.expect("begun");
        let outcome = Outcome::Failed { exit_code: 2 };
        records
            .finish(request.id, &outcome, vec![])
            .await
            .expect("finished");
        drop(records);

        let again = Records::open(directory.path()).expect("opened");
        let build = again.begin(&request).await.expect("begun");
        assert_eq!(build.request, request);
        assert_eq!(build.finished.expect("finished").outcome, outcome);
    }

    #[tokio::test]
    async fn a_hook_that_was_started_is_remembered() {
        let (_directory, records) = records();
        let request = request("main");
        assert!(!records.begin(&request).await.expect("begun").hook_started);
        records.hook_starts(request.id).await.expect("noted");
        assert!(records.begin(&request).await.expect("begun").hook_started);
    }

    #[test]
    fn records_of_the_first_version_are_taken_over_and_those_of_a_newer_one_refused() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("builds.db");
        let old = Connection::open(&file).expect("opened");
        old.execute_batch(FIRST).expect("made");
        old.execute("INSERT INTO leases (build_id, token) VALUES ('a', 'b')", [])
            .expect("filled");
        drop(Records::open(directory.path()).expect("taken over"));
        drop(Records::open(directory.path()).expect("opened again"));

        old.pragma_update(None, "user_version", 99).expect("newer");
        let refused = Records::open(directory.path()).expect_err("refused");
        assert!(matches!(refused, RecordError::Newer(99)), "{refused}");
    }

    #[tokio::test]
    async fn the_commit_of_a_push_is_known_at_once_and_that_of_a_name_when_it_is_found() {
        let (_directory, records) = records();
        let pushed = request("main");
        let begun = records.begin(&pushed).await.expect("begun");
        assert_eq!(begun.commit.as_ref(), pushed.commit());
        assert!(begun.commit.is_some());

        let named = BuildRequest {
            forge: shared::build::ForgeKind::Github,
            id: BuildId::random(),
            revision: "main".parse().expect("name"),
            ..pushed.clone()
        };
        let begun = records.begin(&named).await.expect("begun");
        assert_eq!(begun.commit, None);
        let sha = pushed.commit().expect("a commit");
        records.set_commit(named.id, sha).await.expect("set");
        let again = records.begin(&named).await.expect("begun");
        assert_eq!(again.commit.as_ref(), Some(sha));
    }

    #[tokio::test]
    async fn the_outcome_before_is_that_of_the_same_branch_and_tells_of_it() {
        let (_directory, records) = records();
        let superseded = crate::render::tests::superseded();
        for (branch, outcome) in [
            ("main", Outcome::Passed),
            ("other", Outcome::error("x")),
            ("main", superseded),
        ] {
            let request = request(branch);
            records.begin(&request).await.expect("begun");
            records
                .finish(request.id, &outcome, vec![])
                .await
                .expect("finished");
        }
        let build = records.begin(&request("main")).await.expect("begun");
        let before = records.outcome_before(&build).await.expect("read");
        assert_eq!(before, Some(Outcome::Passed));
    }
}
