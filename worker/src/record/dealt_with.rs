//! The pushes that the webhook has missed and that were found and dealt with.

use std::time::SystemTime;

use shared::build::BuildId;

use super::{Records, Result, to_ms};

impl Records {
    /// Whether a build was taken up, or its push dealt with otherwise.
    ///
    /// # Errors
    /// See [`RecordError`](super::RecordError).
    pub async fn is_dealt_with(&self, build: BuildId) -> Result<bool> {
        self.with(move |db| {
            let sql = "SELECT EXISTS (SELECT 1 FROM builds WHERE id = ?1)
                           OR EXISTS (SELECT 1 FROM dealt_with WHERE build_id = ?1)";
            db.query_row(sql, [build.to_string()], |row| row.get(0))
        })
        .await
    }

    /// Notes that a missed push was dealt with.
    ///
    /// # Errors
    /// See [`RecordError`](super::RecordError).
    pub async fn deal_with(&self, build: BuildId) -> Result<()> {
        self.change(
            "INSERT OR REPLACE INTO dealt_with (build_id, at_ms) VALUES (?1, ?2)",
            (build.to_string(), to_ms(SystemTime::now())),
        )
        .await
    }

    /// Forgets what was dealt with before this time.
    ///
    /// # Errors
    /// See [`RecordError`](super::RecordError).
    pub async fn forget_dealt_with(&self, before: SystemTime) -> Result<()> {
        self.change("DELETE FROM dealt_with WHERE at_ms < ?1", [to_ms(before)])
            .await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{records, request};
    use super::*;

    #[tokio::test]
    async fn a_push_is_dealt_with_when_that_was_noted_or_its_build_begun() {
        let (_directory, records) = records();
        let is_known = async |id| records.is_dealt_with(id).await.expect("read");
        let (queued, begun) = (request("main"), request("main"));
        assert!(!is_known(queued.id).await);
        records.deal_with(queued.id).await.expect("noted");
        records.deal_with(queued.id).await.expect("noted again");
        assert!(is_known(queued.id).await);
        assert!(!is_known(begun.id).await);
        records.begin(&begun).await.expect("begun");
        assert!(is_known(begun.id).await);

        let forget = records.forget_dealt_with(SystemTime::now() + Duration::from_secs(1));
        forget.await.expect("forgotten");
        assert!(!is_known(queued.id).await);
        assert!(is_known(begun.id).await);
    }
}
