//! Which builds are done with, so that their logs, and later their records, can go.

use std::time::SystemTime;

use rusqlite::{Row, params};
use shared::build::BuildId;

use super::{Records, Result, from_ms, to_ms, unreadable};

/// Neither an unfinished build nor one of which a report is owed, or a lease held, is done with.
const DONE_WITH: &str = "finished_ms IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM outbox WHERE build_id = id)
    AND NOT EXISTS (SELECT 1 FROM leases WHERE build_id = id)";

/// A build that is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EndedBuild {
    pub(crate) id: BuildId,
    pub(crate) at: SystemTime,
}

impl Records {
    /// The builds that ended first of those that are done with and whose logs were not removed.
    pub(crate) async fn oldest_with_log(&self, at_most: usize) -> Result<Vec<EndedBuild>> {
        self.with(move |db| {
            let mut oldest = db.prepare(&format!(
                "SELECT id, finished_ms FROM builds
                 WHERE log_removed_ms IS NULL AND {DONE_WITH}
                 ORDER BY finished_ms LIMIT ?1"
            ))?;
            oldest.query_map([at_most as i64], read_ended)?.collect()
        })
        .await
    }

    /// Notes that the logs of these builds were removed.
    pub(crate) async fn logs_removed(&self, builds: Vec<BuildId>) -> Result<()> {
        self.with(move |db| {
            let now = to_ms(SystemTime::now());
            let transaction = db.transaction()?;
            for build in &builds {
                transaction.execute(
                    "UPDATE builds SET log_removed_ms = ?2 WHERE id = ?1",
                    params![build.to_string(), now],
                )?;
            }
            transaction.commit()
        })
        .await
    }

    /// Forgets builds that ended before this time, are done with and have no log, some at a time;
    /// tells how many.
    pub(crate) async fn forget_before(&self, time: SystemTime, at_most: usize) -> Result<usize> {
        self.with(move |db| {
            db.execute(
                &format!(
                    "DELETE FROM builds WHERE id IN (
                        SELECT id FROM builds
                        WHERE finished_ms < ?1 AND log_removed_ms IS NOT NULL AND {DONE_WITH}
                        LIMIT ?2)"
                ),
                params![to_ms(time), at_most as i64],
            )
        })
        .await
    }
}

fn read_ended(row: &Row<'_>) -> rusqlite::Result<EndedBuild> {
    let id: String = row.get("id")?;
    Ok(EndedBuild {
        id: id.parse().map_err(|error| unreadable(Box::new(error)))?,
        at: from_ms(row.get("finished_ms")?),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Report;
    use super::super::tests::{records, request};
    use super::*;
    use crate::outcome::Outcome;

    async fn finished(records: &Records, reports: Vec<Report>) -> BuildId {
        let request = request("main");
        records.begin(&request).await.expect("begun");
        let id = request.id;
        records
            .finish(id, &Outcome::Passed, reports)
            .await
            .expect("finished");
        id
    }

    async fn with_log(records: &Records) -> Vec<BuildId> {
        let oldest = records.oldest_with_log(10).await.expect("read");
        oldest.into_iter().map(|build| build.id).collect()
    }

    #[tokio::test]
    async fn a_build_that_runs_or_is_held_or_owes_a_report_keeps_its_log() {
        let (_directory, records) = records();
        records.begin(&request("main")).await.expect("begun");
        let owing = finished(&records, vec![Report::Status]).await;
        let held = finished(&records, vec![]).await;
        records.hold(held, "token".into()).await.expect("held");
        assert_eq!(with_log(&records).await, []);

        let told = records.report_done(owing, Report::Status);
        told.await.expect("told");
        records.let_go(held).await.expect("let go");
        let mut kept = with_log(&records).await;
        kept.sort_by_key(|id| *id != owing);
        assert_eq!(kept, [owing, held]);
    }

    #[tokio::test]
    async fn only_a_build_without_a_log_is_forgotten() {
        let (_directory, records) = records();
        let build = finished(&records, vec![]).await;
        let later = SystemTime::now() + Duration::from_secs(60);
        assert_eq!(records.forget_before(later, 10).await.expect("done"), 0);

        records.logs_removed(vec![build]).await.expect("noted");
        assert_eq!(with_log(&records).await, []);
        let known = records.find(build).await.expect("read");
        assert!(known.is_some_and(|build| build.log_removed));

        let earlier = SystemTime::now() - Duration::from_secs(60);
        assert_eq!(records.forget_before(earlier, 10).await.expect("done"), 0);
        assert_eq!(records.forget_before(later, 10).await.expect("done"), 1);
        assert_eq!(records.find(build).await.expect("read"), None);
    }
}
