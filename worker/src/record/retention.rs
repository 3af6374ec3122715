//! Which builds are done with, so that their logs, and later their records, can go.

use std::time::{Duration, SystemTime};

use rusqlite::{Row, params};
use shared::build::BuildId;

use super::{Records, Result, from_ms, to_ms, unreadable};

/// A build that was taken up longer ago is over, if not here, then at another worker: SQS keeps no
/// message for more than 14 days.
const OVER_AFTER: Duration = Duration::from_secs(15 * 24 * 60 * 60);

/// The order in which builds are forgotten: by their end, or where that is not known by their start.
pub(super) const BY_END: &str = "
    DROP INDEX builds_by_end;
    CREATE INDEX builds_by_end ON builds (coalesce(finished_ms, started_ms));
";

/// A build of which a report is owed is not done with, nor is one that is unfinished, or of which a
/// lease is held, unless it was taken up before the time `?1`.
const DONE_WITH: &str = "NOT EXISTS (SELECT 1 FROM outbox WHERE build_id = id)
    AND (started_ms < ?1 OR finished_ms IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM leases WHERE build_id = id))";

/// Whether a build that was taken up then is over, although its end is not known here.
pub(super) fn is_over(started_at: SystemTime) -> bool {
    started_at.elapsed().unwrap_or_default() > OVER_AFTER
}

/// What was taken up before this time is over.
fn over_ms() -> i64 {
    to_ms(SystemTime::now() - OVER_AFTER)
}

/// A build that is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EndedBuild {
    pub(crate) id: BuildId,
    /// When it ended, or was taken up if its end is not known here.
    pub(crate) at: SystemTime,
}

impl Records {
    /// The builds that ended first of those that are done with and whose logs were not removed.
    pub(crate) async fn oldest_with_log(&self, at_most: usize) -> Result<Vec<EndedBuild>> {
        self.with(move |db| {
            let mut oldest = db.prepare(&format!(
                "SELECT id, coalesce(finished_ms, started_ms) AS at_ms FROM builds
                 WHERE log_removed_ms IS NULL AND {DONE_WITH}
                 ORDER BY coalesce(finished_ms, started_ms) LIMIT ?2"
            ))?;
            let ended = oldest.query_map(params![over_ms(), at_most as i64], read_ended)?;
            ended.collect()
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
                        WHERE coalesce(finished_ms, started_ms) < ?2
                            AND log_removed_ms IS NOT NULL AND {DONE_WITH}
                        LIMIT ?3)"
                ),
                params![over_ms(), to_ms(time), at_most as i64],
            )
        })
        .await
    }

    /// Forgets what became of the leases of builds that are over, and what superseded them.
    pub(crate) async fn forget_leases_and_superseded(&self) -> Result<()> {
        self.with(|db| {
            let over_ms = over_ms();
            let transaction = db.transaction()?;
            transaction.execute(
                "DELETE FROM leases WHERE lost_ms < ?1 OR EXISTS (
                    SELECT 1 FROM builds WHERE id = build_id AND started_ms < ?1)",
                [over_ms],
            )?;
            transaction.execute(
                "DELETE FROM superseded WHERE NOT EXISTS (
                    SELECT 1 FROM builds WHERE id = build_id AND started_ms >= ?1)",
                [over_ms],
            )?;
            transaction.commit()
        })
        .await
    }
}

fn read_ended(row: &Row<'_>) -> rusqlite::Result<EndedBuild> {
    let id: String = row.get("id")?;
    Ok(EndedBuild {
        id: id.parse().map_err(|error| unreadable(Box::new(error)))?,
        at: from_ms(row.get("at_ms")?),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{records, request};
    use super::super::{LeaseState, Report};
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

    /// Does what the clock would do: the build was taken up so much longer ago.
    async fn taken_up_ago(records: &Records, build: BuildId, ago: Duration) {
        let started = to_ms(SystemTime::now() - ago);
        let turned = records.change(
            "UPDATE builds SET started_ms = ?2 WHERE id = ?1",
            (build.to_string(), started),
        );
        turned.await.expect("turned");
    }

    #[tokio::test]
    async fn a_build_that_went_to_another_worker_is_taken_over_and_in_the_end_done_with() {
        let (_directory, records) = records();
        let taken_over = async |id| {
            let build = records.find(id).await.expect("read");
            build.expect("known").taken_over
        };
        let (lost, given_back) = (request("main"), request("main"));
        for request in [&lost, &given_back] {
            records.begin(request).await.expect("begun");
        }
        records.lose(lost.id).await.expect("lost");
        assert!(taken_over(lost.id).await);
        assert!(!taken_over(given_back.id).await);
        // It comes back.
        records.begin(&lost).await.expect("begun");
        assert!(!taken_over(lost.id).await);
        records.lose(lost.id).await.expect("lost");

        let owing = finished(&records, vec![Report::Status]).await;
        for build in [lost.id, given_back.id, owing] {
            taken_up_ago(&records, build, OVER_AFTER - Duration::from_secs(60)).await;
        }
        assert_eq!(with_log(&records).await, []);
        for build in [lost.id, given_back.id, owing] {
            taken_up_ago(&records, build, OVER_AFTER + Duration::from_secs(60)).await;
        }
        assert!(taken_over(given_back.id).await);
        assert!(!taken_over(owing).await);
        let mut kept = with_log(&records).await;
        kept.sort_by_key(|id| *id != lost.id);
        assert_eq!(kept, [lost.id, given_back.id]);

        records.logs_removed(kept).await.expect("noted");
        let forgotten = records.forget_before(SystemTime::now() - OVER_AFTER, 10);
        assert_eq!(forgotten.await.expect("done"), 2);
    }

    #[tokio::test]
    async fn the_leases_of_what_is_over_and_what_superseded_it_are_forgotten() {
        let (_directory, records) = records();
        let (old, new) = (request("main"), request("main"));
        let newer = "b".repeat(40).parse().expect("a commit");
        for request in [&old, &new] {
            let id = request.id;
            records.begin(request).await.expect("begun");
            records.hold(id, "token".into()).await.expect("held");
            records.supersede(id, &newer).await.expect("noted");
        }
        taken_up_ago(&records, old.id, OVER_AFTER * 2).await;
        let forgotten = records.forget_leases_and_superseded();
        forgotten.await.expect("forgotten");
        for (id, is_kept) in [(old.id, false), (new.id, true)] {
            let lease = records.lease(id).await.expect("read");
            assert_eq!(lease == LeaseState::Held, is_kept);
            let by = records.superseded_by(id).await.expect("read");
            assert_eq!(by.is_some(), is_kept);
        }
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
