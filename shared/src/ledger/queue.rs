//! The queue in `DATA_DIR`, as the records know it: they remember that one was there.

use std::convert::Infallible;
use std::time::Duration;

use rusqlite::{OptionalExtension, params};
use tokio::sync::watch;
use tokio::time::sleep;

use super::Result;
use super::database::Ledger;
use crate::standing::Standing;

/// Pushes that come together are recorded together.
const PAUSE: Duration = Duration::from_millis(20);
/// The time to wait after the records could not be written.
const TROUBLE_DELAY: Duration = Duration::from_secs(5);

impl Ledger {
    /// Returns the queue that was recorded last.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn queue(&self) -> Result<Option<Standing>> {
        self.with(|db| {
            let mut select = db.prepare_cached("SELECT id, accepted, waiting FROM queue")?;
            let found = select.query_row([], |row| {
                Ok(Standing {
                    id: row.get("id")?,
                    accepted: row.get("accepted")?,
                    waiting: row.get("waiting")?,
                })
            });
            Ok(found.optional()?)
        })
        .await
    }

    /// Records where the queue stands. That outlives the process at once, and a power cut from the next step
    /// of a build on: no push waits for the disk a second time.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn record_queue(&self, queue: Standing) -> Result<()> {
        self.with(move |db| {
            db.pragma_update(None, "synchronous", "NORMAL")?;
            let recorded = db.execute(
                "INSERT OR REPLACE INTO queue (number, id, accepted, waiting) VALUES (1, ?1, ?2, ?3)",
                params![queue.id, queue.accepted, queue.waiting],
            );
            db.pragma_update(None, "synchronous", "FULL")?;
            Ok(recorded.map(drop)?)
        })
        .await
    }

    /// Records where the queue stands whenever that changes.
    pub async fn follow_queue(&self, mut queue: watch::Receiver<Standing>) -> Infallible {
        loop {
            let now = queue.borrow_and_update().clone();
            if let Err(error) = self.record_queue(now).await {
                tracing::debug!(%error, "failed to record where the queue stands; trying again");
                sleep(TROUBLE_DELAY).await;
                continue;
            }
            sleep(PAUSE).await;
            if queue.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }
}
