//! The status of a commit: pending while its build runs, and then how it ended.

use std::time::Duration;

use shared::build::Build;
use shared::forge::{CommitStatus, Forge, ForgeError};
use shared::ledger::{DueReport, Event, Ledger, Setback};
use shared::words;

use super::pace::Pace;
use super::{Links, Sent};

/// Statuses that are late leave at this pace, after a burst: 80 in the first minute. GitHub allows 80 requests
/// a minute that make something.
/// <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api>
pub(super) const LATE_PACE: Pace = Pace {
    burst: 40,
    interval: Duration::from_millis(1500),
};

/// Posts the statuses of commits.
#[derive(Debug)]
pub(crate) struct CommitStatuses {
    forge: Forge,
    links: Links,
}

impl CommitStatuses {
    pub(super) fn new(forge: Forge, links: Links) -> Self {
        Self { forge, links }
    }

    pub(super) async fn send(&self, due: &DueReport, ledger: &Ledger) -> Sent {
        let build = &due.build;
        let id = build.request.id;
        let Some(commit) = &build.commit else {
            return Sent::Refused("the build has no commit to report on".into());
        };
        if due.event == Event::Ended {
            match ledger.is_outdated(id).await {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!(build = %id, "skipping a status: a later build of the commit was reported");
                    return Sent::Done;
                }
                Err(error) => return Sent::later(error.to_string()),
            }
        }
        let repo = &build.request.repo;
        let Some(status) = self.status(build, due.event) else {
            return Sent::Done;
        };
        // A redelivery posts the end again: a person has asked for it. But among several hosts its message
        // may be a copy.
        let asked_for = due.event == Event::Ended && !ledger.has_store();
        let maybe_posted = due.attempts > 0 || (due.maybe_sent && !asked_for);
        let posted = self
            .forge
            .post_status(repo, commit, &status, maybe_posted)
            .await;
        match posted {
            Ok(()) => Sent::Done,
            Err(error) if is_final(&error, due.event) => Sent::Refused(error.to_string()),
            Err(error) => Sent::Later(Setback {
                reason: error.to_string(),
                asked: error.retry_after(),
            }),
        }
    }

    /// The status that tells of this event; nothing if it is overtaken.
    fn status(&self, build: &Build, event: Event) -> Option<CommitStatus> {
        let description = match (event, build.outcome()) {
            (Event::Began, None) => "building".to_owned(),
            (Event::Began, Some(_)) => return None,
            (Event::Ended, outcome) => {
                words::status_description(outcome?, build.duration().unwrap_or_default())
            }
        };
        Some(CommitStatus {
            state: build.commit_state(),
            description: Some(description),
            target_url: self.links.build_page(build.request.id),
        })
    }
}

/// Whether this very status is refused, whenever it is posted. Every other refusal concerns the token: one
/// that has expired, or was narrowed, is renewed some time, and until then only the end is worth waiting
/// for.
fn is_final(error: &ForgeError, event: Event) -> bool {
    let is_about_status = matches!(error, ForgeError::Refused { status: 422, .. });
    is_about_status || (event == Event::Began && !error.is_transient())
}
