//! The images that this worker pulled. Images that do not stand here belong to others.

use std::time::SystemTime;

use super::Result;
use super::database::Ledger;
use super::entry::{from_ms, now_ms};

/// An image that this worker pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledImage {
    /// The name that it was pulled by.
    pub name: String,
    /// The image's id at that time.
    pub id: String,
    /// The time of its last use by a build.
    pub used_at: SystemTime,
}

impl Ledger {
    /// Records that the worker pulled an image, for a build that begins.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn image_pulled(&self, name: &str, id: String) -> Result<()> {
        let sql = "INSERT OR REPLACE INTO images (name, image_id, used_ms) VALUES (?1, ?2, ?3)";
        let values = (name.to_owned(), id, now_ms());
        self.execute(sql, values).await.map(drop)
    }

    /// Records that a build begins that uses an image. One that the worker did not pull stays out of
    /// the ledger.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn image_used(&self, name: &str) -> Result<()> {
        let sql = "UPDATE images SET used_ms = ?2 WHERE name = ?1";
        let values = (name.to_owned(), now_ms());
        self.execute(sql, values).await.map(drop)
    }

    /// Takes an image out of the ledger: it is gone, or not the worker's any more.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn image_forgotten(&self, name: &str) -> Result<()> {
        let sql = "DELETE FROM images WHERE name = ?1";
        self.execute(sql, [name.to_owned()]).await.map(drop)
    }

    /// Returns all images that the worker pulled.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn pulled_images(&self) -> Result<Vec<PulledImage>> {
        self.with(|db| {
            let mut images = db.prepare("SELECT name, image_id, used_ms FROM images")?;
            let read = images.query_map([], |row| {
                Ok(PulledImage {
                    name: row.get("name")?,
                    id: row.get("image_id")?,
                    used_at: from_ms(row.get("used_ms")?),
                })
            });
            Ok(read?.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::super::database::tests::ledger;

    #[tokio::test]
    async fn only_what_was_pulled_stands_in_the_ledger() {
        let (_directory, ledger) = ledger();
        ledger.image_used("debian:trixie").await.expect("recorded");
        assert_eq!(ledger.pulled_images().await.expect("read"), []);

        let pulled = ledger.image_pulled("app:1", "sha256:00".into());
        pulled.await.expect("recorded");
        let first = ledger.pulled_images().await.expect("read").remove(0);
        assert_eq!((&*first.name, &*first.id), ("app:1", "sha256:00"));
        ledger.image_used("app:1").await.expect("recorded");
        let used = ledger.pulled_images().await.expect("read").remove(0);
        assert!(used.used_at >= first.used_at);

        ledger.image_forgotten("app:1").await.expect("recorded");
        assert_eq!(ledger.pulled_images().await.expect("read"), []);
    }
}
