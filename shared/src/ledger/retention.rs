//! The builds that are done with, so that their logs, and later their records, can go.

use std::time::SystemTime;

use rusqlite::{Row, params};

use super::Result;
use super::database::Ledger;
use super::entry::{from_ms, now_ms, over_ms, to_ms};
use super::records::unreadable;
use crate::build::BuildId;

/// A build of which a report is owed is not done with, nor is one that has not ended, unless it was
/// claimed before the time `?1`.
const DONE_WITH: &str = "NOT EXISTS (
        SELECT 1 FROM outbox WHERE build_id = id AND due_ms IS NOT NULL)
    AND (claimed_ms < ?1 OR state = 'ended')";

/// A build that is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedBuild {
    /// The build.
    pub id: BuildId,
    /// The time of its end, or of its claim if the end is not known here.
    pub at: SystemTime,
}

impl Ledger {
    /// Returns the builds that ended first of those that are done with and whose logs were not removed.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn oldest_with_log(&self, at_most: usize) -> Result<Vec<EndedBuild>> {
        self.with(move |db| {
            let mut oldest = db.prepare(&format!(
                "SELECT id, coalesce(ended_ms, claimed_ms) AS at_ms FROM builds
                 WHERE log_removed_ms IS NULL AND {DONE_WITH}
                 ORDER BY coalesce(ended_ms, claimed_ms) LIMIT ?2"
            ))?;
            let ended = oldest.query_map(params![over_ms(), at_most as i64], read_ended)?;
            Ok(ended.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// Records that the logs of these builds were removed.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn logs_removed(&self, builds: Vec<BuildId>) -> Result<()> {
        self.transact(move |transaction| {
            for build in &builds {
                transaction.execute(
                    "UPDATE builds SET log_removed_ms = ?2 WHERE id = ?1",
                    params![build.to_string(), now_ms()],
                )?;
            }
            Ok(())
        })
        .await
    }

    /// Forgets builds that ended before this time, are done with and have no log, some at a time;
    /// tells how many.
    ///
    /// # Errors
    /// See [`LedgerError`](super::LedgerError).
    pub async fn forget_before(&self, time: SystemTime, at_most: usize) -> Result<usize> {
        self.with(move |db| {
            let forgotten = db.execute(
                &format!(
                    "DELETE FROM builds WHERE id IN (
                        SELECT id FROM builds
                        WHERE coalesce(ended_ms, claimed_ms) < ?2
                            AND log_removed_ms IS NOT NULL AND {DONE_WITH}
                        LIMIT ?3)"
                ),
                params![over_ms(), to_ms(time), at_most as i64],
            );
            Ok(forgotten?)
        })
        .await
    }
}

fn read_ended(row: &Row<'_>) -> rusqlite::Result<EndedBuild> {
    let id: String = row.get("id")?;
    Ok(EndedBuild {
        id: id.parse().map_err(unreadable)?,
        at: from_ms(row.get("at_ms")?),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::database::tests::ledger;
    use super::super::entry::OVER_AFTER;
    use super::*;
    use crate::build::Outcome;
    use crate::build::samples::request;

    async fn ended(ledger: &Ledger, owes: &[&str]) -> BuildId {
        let request = request("main");
        ledger.claim(&request).await.expect("claimed");
        let ended = ledger.end(request.id, &Outcome::Passed, owes);
        ended.await.expect("ended");
        request.id
    }

    async fn with_log(ledger: &Ledger) -> Vec<BuildId> {
        let oldest = ledger.oldest_with_log(10).await.expect("read");
        oldest.into_iter().map(|build| build.id).collect()
    }

    async fn send_all(ledger: &Ledger) {
        while let super::super::NextReport::Due(due) = ledger.next_due("mail").await.expect("read")
        {
            ledger.report_done(&due).await.expect("done");
        }
    }

    #[tokio::test]
    async fn a_build_that_runs_or_owes_a_report_keeps_its_log() {
        let (_directory, ledger) = ledger();
        ledger.claim(&request("main")).await.expect("claimed");
        let owing = ended(&ledger, &["mail"]).await;
        assert_eq!(with_log(&ledger).await, []);
        send_all(&ledger).await;
        assert_eq!(with_log(&ledger).await, [owing]);
    }

    /// Does what the clock would do: the build was claimed so much longer ago.
    async fn claimed_ago(ledger: &Ledger, build: BuildId, ago: Duration) {
        let claimed = to_ms(SystemTime::now() - ago);
        let turned = ledger.execute(
            "UPDATE builds SET claimed_ms = ?2 WHERE id = ?1",
            (build.to_string(), claimed),
        );
        turned.await.expect("turned");
    }

    #[tokio::test]
    async fn a_build_that_went_to_another_worker_is_elsewhere_and_in_the_end_done_with() {
        let (_directory, ledger) = ledger();
        let is_elsewhere = async |id| {
            let build = ledger.find(id).await.expect("read");
            build.expect("known").is_elsewhere
        };
        let (lost, released) = (request("main"), request("main"));
        for request in [&lost, &released] {
            ledger.claim(request).await.expect("claimed");
        }
        ledger.leave(lost.id).await.expect("left");
        ledger.release(released.id).await.expect("released");
        assert!(is_elsewhere(lost.id).await);
        assert!(!is_elsewhere(released.id).await);
        // It comes back.
        ledger.claim(&lost).await.expect("claimed");
        assert!(!is_elsewhere(lost.id).await);
        ledger.leave(lost.id).await.expect("left");

        let owing = ended(&ledger, &["mail"]).await;
        for build in [lost.id, released.id, owing] {
            claimed_ago(&ledger, build, OVER_AFTER - Duration::from_secs(60)).await;
        }
        assert_eq!(with_log(&ledger).await, []);
        for build in [lost.id, released.id, owing] {
            claimed_ago(&ledger, build, OVER_AFTER + Duration::from_secs(60)).await;
        }
        assert!(is_elsewhere(released.id).await);
        assert!(!is_elsewhere(owing).await);
        let mut kept = with_log(&ledger).await;
        kept.sort_by_key(|id| *id != lost.id);
        assert_eq!(kept, [lost.id, released.id]);

        ledger.logs_removed(kept).await.expect("recorded");
        let forgotten = ledger.forget_before(SystemTime::now() - OVER_AFTER, 10);
        assert_eq!(forgotten.await.expect("done"), 2);
    }

    #[tokio::test]
    async fn only_a_build_without_a_log_is_forgotten() {
        let (_directory, ledger) = ledger();
        let build = ended(&ledger, &[]).await;
        let later = SystemTime::now() + Duration::from_secs(60);
        assert_eq!(ledger.forget_before(later, 10).await.expect("done"), 0);

        ledger.logs_removed(vec![build]).await.expect("recorded");
        assert_eq!(with_log(&ledger).await, []);
        let known = ledger.find(build).await.expect("read");
        assert!(known.is_some_and(|build| build.log_removed));

        let earlier = SystemTime::now() - Duration::from_secs(60);
        assert_eq!(ledger.forget_before(earlier, 10).await.expect("done"), 0);
        assert_eq!(ledger.forget_before(later, 10).await.expect("done"), 1);
        assert_eq!(ledger.find(build).await.expect("read"), None);
    }
}
