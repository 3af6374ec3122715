//! The ledger of the images that this worker pulled. What is not in it is somebody else's.

use std::time::SystemTime;

use super::{Records, Result, from_ms, to_ms};

/// An image that this worker pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PulledImage {
    /// The name that it was pulled by.
    pub(crate) name: String,
    /// What that name meant then.
    pub(crate) id: String,
    /// When a build last used it.
    pub(crate) used_at: SystemTime,
}

impl Records {
    /// Notes that the worker pulled an image, for a build that begins.
    pub(crate) async fn image_pulled(&self, name: &str, id: String) -> Result<()> {
        self.change(
            "INSERT OR REPLACE INTO images (name, image_id, used_ms) VALUES (?1, ?2, ?3)",
            (name.to_owned(), id, to_ms(SystemTime::now())),
        )
        .await
    }

    /// Notes that a build begins that uses an image. One that the worker did not pull stays out of
    /// the ledger.
    pub(crate) async fn image_used(&self, name: &str) -> Result<()> {
        self.change(
            "UPDATE images SET used_ms = ?2 WHERE name = ?1",
            (name.to_owned(), to_ms(SystemTime::now())),
        )
        .await
    }

    /// Takes an image out of the ledger: it is gone, or not the worker's any more.
    pub(crate) async fn image_forgotten(&self, name: &str) -> Result<()> {
        self.change("DELETE FROM images WHERE name = ?1", [name.to_owned()])
            .await
    }

    /// All images that the worker pulled.
    pub(crate) async fn pulled_images(&self) -> Result<Vec<PulledImage>> {
        self.with(|db| {
            let mut images = db.prepare("SELECT name, image_id, used_ms FROM images")?;
            let read = images.query_map([], |row| {
                Ok(PulledImage {
                    name: row.get("name")?,
                    id: row.get("image_id")?,
                    used_at: from_ms(row.get("used_ms")?),
                })
            });
            read?.collect()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::records;

    #[tokio::test]
    async fn only_what_was_pulled_stands_in_the_ledger() {
        let (_directory, records) = records();
        records.image_used("debian:trixie").await.expect("noted");
        assert_eq!(records.pulled_images().await.expect("read"), []);

        let pulled = records.image_pulled("app:1", "sha256:00".into());
        pulled.await.expect("noted");
        let first = records.pulled_images().await.expect("read").remove(0);
        assert_eq!((&*first.name, &*first.id), ("app:1", "sha256:00"));
        records.image_used("app:1").await.expect("noted");
        let used = records.pulled_images().await.expect("read").remove(0);
        assert!(used.used_at >= first.used_at);

        records.image_forgotten("app:1").await.expect("noted");
        assert_eq!(records.pulled_images().await.expect("read"), []);
    }
}
