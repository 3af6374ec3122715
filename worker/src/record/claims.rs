//! The names under which this worker has claimed builds of a shared queue. One is noted before GitHub is
//! told: what stands there is then known to be this worker's own, whatever becomes of the answer.

use rusqlite::OptionalExtension;
use shared::build::BuildId;

use super::{Records, Result};

impl Records {
    /// The name under which this worker claimed a build, or was about to.
    pub(crate) async fn claim(&self, build: BuildId) -> Result<Option<String>> {
        self.with(move |db| {
            let sql = "SELECT claim FROM builds WHERE id = ?1";
            let claim = db.query_row(sql, [build.to_string()], |row| row.get(0));
            claim.optional().map(Option::flatten)
        })
        .await
    }

    /// Notes under which name this worker is about to claim a build.
    pub(crate) async fn note_claim(&self, build: BuildId, name: String) -> Result<()> {
        self.change(
            "UPDATE builds SET claim = ?2 WHERE id = ?1",
            (build.to_string(), name),
        )
        .await
    }

    /// Forgets a build of which another worker tells, unless its hook was started here, or is to be:
    /// then the message under which it was claimed comes back.
    pub(crate) async fn leave(&self, build: BuildId) -> Result<()> {
        self.change(
            "DELETE FROM builds
             WHERE id = ?1 AND finished_ms IS NULL AND hook_started_ms IS NULL AND claim IS NULL",
            [build.to_string()],
        )
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{records, request};
    use super::*;

    #[tokio::test]
    async fn a_claim_is_remembered_with_its_build() {
        let (directory, records) = records();
        let request = request("main");
        let id = request.id;
        records.begin(&request).await.expect("begun");
        assert_eq!(records.claim(id).await.expect("read"), None);
        let note = records.note_claim(id, "3fa9c1d2-07d2".into());
        note.await.expect("noted");
        drop(records);
        let again = Records::open(directory.path()).expect("opened");
        let claim = again.claim(id).await.expect("read");
        assert_eq!(claim.as_deref(), Some("3fa9c1d2-07d2"));
    }

    #[tokio::test]
    async fn a_build_is_left_to_another_worker_unless_its_hook_was_started_or_claimed_here() {
        let (_directory, records) = records();
        let (left, started, claimed) = (request("main"), request("main"), request("main"));
        for request in [&left, &started, &claimed] {
            records.begin(request).await.expect("begun");
        }
        records.hook_starts(started.id).await.expect("noted");
        let note = records.note_claim(claimed.id, "3fa9c1d2-07d2".into());
        note.await.expect("noted");
        for request in [&left, &started, &claimed] {
            records.leave(request.id).await.expect("left");
        }
        assert_eq!(records.find(left.id).await.expect("read"), None);
        assert!(records.find(started.id).await.expect("read").is_some());
        assert!(records.find(claimed.id).await.expect("read").is_some());
    }
}
