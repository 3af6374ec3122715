//! The records of a service: how its builds ended, and which reports it had not recorded as sent when
//! it was killed. The next process sends those again.

use std::collections::HashSet;

use harness::OneBox;
use rusqlite::{Connection, OpenFlags};
use shared::build::Outcome;

use crate::world::Build;

/// The reports that killed processes had not recorded as sent.
#[derive(Debug, Default)]
pub(crate) struct Unsent {
    results: HashSet<String>,
    mails: HashSet<String>,
}

impl Unsent {
    /// Looks at the data of a service that was just killed.
    pub(crate) fn look_at(&mut self, killed: &OneBox) {
        let ended = "SELECT id FROM builds WHERE ended_ms > 0";
        let ended: HashSet<_> = builds(killed, "builds.db", ended).into_iter().collect();
        let queued = queued(killed).into_iter();
        self.results
            .extend(queued.filter(|build| ended.contains(build)));
        let mails = "SELECT build_id FROM outbox WHERE notifier = 'mail' AND attempts > 0";
        self.mails.extend(builds(killed, "builds.db", mails));
    }

    /// Whether a build had ended and its message was not acknowledged: it comes back, and the result is
    /// reported once more.
    pub(crate) fn has_result_of(&self, build: &Build) -> bool {
        self.results.contains(&build.id)
    }

    /// Whether a build's mail may have left, and stood there as one to be sent.
    pub(crate) fn has_mail_of(&self, build: &Build) -> bool {
        self.mails.contains(&build.id)
    }
}

/// The builds whose messages are in the queue.
pub(crate) fn queued(killed: &OneBox) -> Vec<String> {
    builds(killed, "queue.db", "SELECT build FROM message")
}

/// The recorded end of a build.
pub(crate) fn outcome(service: &OneBox, build: &str) -> Option<Outcome> {
    let ended = format!("SELECT outcome FROM builds WHERE id = '{build}' AND outcome NOT NULL");
    let outcome = builds(service, "builds.db", &ended).pop()?;
    Some(serde_json::from_str(&outcome).expect("an outcome"))
}

/// The builds that the service has claimed and not ended.
pub(crate) fn unfinished(service: &OneBox) -> Vec<String> {
    let unfinished = "SELECT id FROM builds WHERE state IN ('claimed', 'started')";
    builds(service, "builds.db", unfinished)
}

/// The builds that a statement finds in one of the databases. It only looks: what recovers the database is the next process.
pub(crate) fn builds(killed: &OneBox, database: &str, statement: &str) -> Vec<String> {
    let path = killed.data_dir().join(database);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let database = Connection::open_with_flags(path, flags).expect("the service has made it");
    let mut statement = database.prepare(statement).expect("its tables are known");
    let builds = statement.query_map([], |row| row.get(0));
    let builds = builds.and_then(Iterator::collect);
    builds.expect("all of them are text")
}
