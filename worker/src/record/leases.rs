//! The leases that this worker holds, so that its next start can go on with them.

use std::time::{Duration, SystemTime};

use rusqlite::OptionalExtension;
use shared::build::{BuildId, BuildRequest};

use super::{BUILD, Records, Result, from_ms, read_build, to_ms};

/// What became of a build's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseState {
    /// It is done with, or was never noted.
    None,
    /// This worker holds it, as far as it knows.
    Held,
    /// It ended this long ago while the build was worked on, or was given back: another worker may
    /// have taken over.
    Lost(Duration),
}

impl Records {
    /// Notes that this worker holds the lease with this token.
    pub(crate) async fn hold(&self, build: BuildId, token: String) -> Result<()> {
        self.change(
            "INSERT OR REPLACE INTO leases (build_id, token) VALUES (?1, ?2)",
            (build.to_string(), token),
        )
        .await
    }

    /// Notes that the lease of a build is settled.
    pub(crate) async fn let_go(&self, build: BuildId) -> Result<()> {
        self.change(
            "DELETE FROM leases WHERE build_id = ?1",
            [build.to_string()],
        )
        .await
    }

    /// Notes that a message of a shared queue is given back just now: another worker may get it. If the
    /// hook was started, only its container knows how it ended, and this worker waits for the message.
    pub(crate) async fn give_back(&self, build: BuildId) -> Result<()> {
        self.replace_lease(
            build,
            "INSERT INTO leases (build_id, lost_ms, given_back)
             SELECT id, ?2, 1 FROM builds WHERE id = ?1 AND hook_started_ms IS NULL",
        )
        .await
    }

    /// Notes that a build is left to another worker, if something is known of it here.
    pub(crate) async fn leave_lease(&self, build: BuildId) -> Result<()> {
        self.replace_lease(
            build,
            "INSERT INTO leases (build_id, lost_ms) SELECT id, ?2 FROM builds WHERE id = ?1",
        )
        .await
    }

    async fn replace_lease(&self, build: BuildId, by: &'static str) -> Result<()> {
        self.with(move |db| {
            let build = build.to_string();
            let transaction = db.transaction()?;
            transaction.execute("DELETE FROM leases WHERE build_id = ?1", [&build])?;
            transaction.execute(by, (&build, to_ms(SystemTime::now())))?;
            transaction.commit()
        })
        .await
    }

    /// Notes that the lease of a build was lost just now.
    pub(crate) async fn lose(&self, build: BuildId) -> Result<()> {
        self.change(
            "INSERT OR REPLACE INTO leases (build_id, lost_ms) VALUES (?1, ?2)",
            (build.to_string(), to_ms(SystemTime::now())),
        )
        .await
    }

    /// The builds whose leases an earlier process held when it ended, with the tokens.
    pub(crate) async fn held(&self) -> Result<Vec<(BuildRequest, String)>> {
        self.with(|db| {
            let mut held = db.prepare(&format!(
                "SELECT {BUILD}, token FROM leases JOIN builds ON builds.id = build_id
                 WHERE token IS NOT NULL"
            ))?;
            held.query_map([], |row| Ok((read_build(row)?.request, row.get("token")?)))?
                .collect()
        })
        .await
    }

    /// What became of a build's lease.
    pub(crate) async fn lease(&self, build: BuildId) -> Result<LeaseState> {
        let lost_ms: Option<Option<i64>> = self
            .with(move |db| {
                let sql = "SELECT lost_ms FROM leases WHERE build_id = ?1";
                db.query_row(sql, [build.to_string()], |row| row.get(0))
                    .optional()
            })
            .await?;
        Ok(match lost_ms {
            None => LeaseState::None,
            Some(None) => LeaseState::Held,
            Some(Some(ms)) => LeaseState::Lost(from_ms(ms).elapsed().unwrap_or_default()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{records, request};
    use super::*;

    #[tokio::test]
    async fn a_lease_is_held_until_it_is_let_go_or_lost() {
        let (_directory, records) = records();
        let request = request("main");
        let id = request.id;
        records.hold(id, "first".into()).await.expect("held");
        // Nothing is known of the build yet.
        assert_eq!(records.held().await.expect("read"), []);
        records.begin(&request).await.expect("begun");
        records.hold(id, "second".into()).await.expect("held");
        let held = records.held().await.expect("read");
        assert_eq!(held, [(request, "second".to_owned())]);
        assert_eq!(records.lease(id).await.expect("read"), LeaseState::Held);

        records.lose(id).await.expect("lost");
        assert_eq!(records.held().await.expect("read"), []);
        let lost = records.lease(id).await.expect("read");
        assert!(matches!(lost, LeaseState::Lost(_)), "{lost:?}");

        // Which is told of a build that somebody else works on, and not of one that waits.
        assert!(
            records
                .find(id)
                .await
                .expect("read")
                .expect("known")
                .taken_over
        );
        records.give_back(id).await.expect("given back");
        let waiting = records.find(id).await.expect("read").expect("known");
        assert!(!waiting.taken_over);
        let given_back = records.lease(id).await.expect("read");
        assert!(matches!(given_back, LeaseState::Lost(_)), "{given_back:?}");

        records.leave_lease(id).await.expect("left");
        assert!(
            records
                .find(id)
                .await
                .expect("read")
                .expect("known")
                .taken_over
        );
        let unknown = BuildId::random();
        records
            .leave_lease(unknown)
            .await
            .expect("nothing to leave");
        assert_eq!(
            records.lease(unknown).await.expect("read"),
            LeaseState::None
        );

        records.hook_starts(id).await.expect("noted");
        records.give_back(id).await.expect("given back");
        assert_eq!(records.lease(id).await.expect("read"), LeaseState::None);

        records.let_go(id).await.expect("let go");
        assert_eq!(records.lease(id).await.expect("read"), LeaseState::None);
    }
}
