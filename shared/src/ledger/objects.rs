//! The objects on the engine that a build's labels do not tell of: nameless volumes, which carry none, and
//! what containers outside the build used when it ended.

use rusqlite::params;

use super::Result;
use super::database::Ledger;
use crate::build::BuildId;

/// An object that the ledger knows beside the labels of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildObject {
    /// Its name on the engine.
    pub name: String,
    /// True if others used it when the build ended: it is not the build's any more.
    pub is_theirs: bool,
}

impl Ledger {
    /// Records that containers of a build's compose project use this nameless volume.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn volume_used(&self, build: BuildId, volume: &str) -> Result<()> {
        self.record_object(build, volume, false).await
    }

    /// Records that others used an object of a build when that ended.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn object_left(&self, build: BuildId, name: &str) -> Result<()> {
        self.record_object(build, name, true).await
    }

    /// Returns all objects that are recorded of a build.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn objects(&self, build: BuildId) -> Result<Vec<BuildObject>> {
        self.with(move |db| {
            let mut objects =
                db.prepare_cached("SELECT name, is_theirs FROM objects WHERE build_id = ?1")?;
            let read = objects.query_map([build.to_string()], |row| {
                Ok(BuildObject {
                    name: row.get("name")?,
                    is_theirs: row.get("is_theirs")?,
                })
            });
            Ok(read?.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// A build that is unknown by now has no objects: another worker ends it.
    async fn record_object(&self, build: BuildId, name: &str, is_theirs: bool) -> Result<()> {
        let name = name.to_owned();
        self.with(move |db| {
            db.execute(
                "INSERT INTO objects (build_id, name, is_theirs)
                 SELECT id, ?2, ?3 FROM builds WHERE id = ?1
                 ON CONFLICT DO UPDATE SET is_theirs = is_theirs OR excluded.is_theirs",
                params![build.to_string(), name, is_theirs],
            )?;
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::super::database::tests::ledger;
    use super::*;
    use crate::build::samples::request;

    #[tokio::test]
    async fn object_that_others_use_stays_theirs() {
        let (_directory, ledger) = ledger();
        let build = request("main");
        ledger.claim(&build).await.expect("claimed");
        let build = build.id;
        let object = |is_theirs| BuildObject {
            name: "data".into(),
            is_theirs,
        };
        ledger.volume_used(build, "data").await.expect("recorded");
        let objects = async || ledger.objects(build).await.expect("read");
        assert_eq!(objects().await, [object(false)]);
        ledger.object_left(build, "data").await.expect("recorded");
        ledger.volume_used(build, "data").await.expect("recorded");
        assert_eq!(objects().await, [object(true)]);
    }

    #[tokio::test]
    async fn unknown_build_has_no_objects() {
        let (_directory, ledger) = ledger();
        let build = BuildId::random();
        ledger.volume_used(build, "data").await.expect("ignored");
        assert_eq!(ledger.objects(build).await.expect("read"), []);
    }
}
