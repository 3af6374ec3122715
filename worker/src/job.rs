//! The way of one delivery: pending status → build → report, then settle and clean up, or give back.
//!
//! Read [`Job::work_on`] first.

use std::time::Duration;

use shared::build::{BuildId, BuildRequest, CommitSha, Revision};
use shared::github::{CommitStatus, Github, State};
use shared::queue::MAX_RECEIVES;
use tokio::sync::SetOnce;
use tokio_util::sync::CancellationToken;

use crate::build::{Begun, Builder};
use crate::cleanup;
use crate::mail::Mailer;
use crate::outcome::{Obstacle, Outcome};
use crate::record::{Build, RecordError, Records, Report};
use crate::report::{Bell, Links};
use crate::supersede::Supersession;

/// The first wait before a commit is tried again; it doubles with every receive.
const RETRY_DELAY: Duration = Duration::from_secs(15);
/// The first wait before the pending status is posted again; it doubles as well.
const PENDING_RETRY_DELAY: Duration = Duration::from_secs(1);
/// How often what a build made is tried to be removed before it is left to the next sweep.
const CLEANUP_ATTEMPTS: u32 = 3;
const CLEANUP_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Works on deliveries. Clones share everything.
#[derive(Debug, Clone)]
pub struct Job {
    pub(crate) builder: Builder,
    pub(crate) records: Records,
    pub(crate) github: Github,
    pub(crate) supersession: Supersession,
    pub(crate) mailer: Mailer,
    pub(crate) links: Links,
    pub(crate) bell: Bell,
}

/// What is to become of the delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is done with: what it leads to is stored, and what it made can be removed.
    Settle,
    /// It is to be received again, after this time.
    GiveBack(Duration),
}

impl Job {
    /// Works on one delivery of a request that was received this often.
    ///
    /// # Errors
    /// The records cannot be read or written; the delivery is to be given back.
    pub async fn work_on(
        &self,
        request: &BuildRequest,
        receives: u32,
    ) -> Result<Verdict, RecordError> {
        let build = self.records.begin(request).await?;
        if build.finished.is_some() {
            return self.report_again(&build).await;
        }
        match self.attempt(&build, receives > 1).await? {
            Ok(outcome) => {
                self.finish(&build, &outcome).await?;
                Ok(Verdict::Settle)
            }
            Err(reason) if receives >= MAX_RECEIVES => self.give_up(request, &reason).await,
            Err(reason) => {
                tracing::warn!(build = %request.id, reason, receives, "cannot build now");
                let delay = RETRY_DELAY * 2u32.saturating_pow(receives.saturating_sub(1));
                Ok(Verdict::GiveBack(delay))
            }
        }
    }

    /// Ends a build that was received too often. One whose hook has started is followed to its
    /// end all the same: the worker was interrupted, the build was not.
    ///
    /// # Errors
    /// The records cannot be read or written; the delivery is to be given back.
    pub async fn give_up(
        &self,
        request: &BuildRequest,
        reason: &str,
    ) -> Result<Verdict, RecordError> {
        let build = self.records.begin(request).await?;
        if build.finished.is_some() {
            return self.report_again(&build).await;
        }
        let outcome = match self.builder.has_begun(&build).await {
            Begun::No => gave_up(reason),
            Begun::Yes => match self.attempt(&build, true).await? {
                Ok(outcome) => outcome,
                Err(reason) => return Ok(not_now(request.id, &reason)),
            },
            Begun::Unknown => return Ok(not_now(request.id, "the Docker engine does not answer")),
        };
        self.finish(&build, &outcome).await?;
        Ok(Verdict::Settle)
    }

    /// Whether a build's hook may have been started here, or it even has an end.
    pub(crate) async fn has_begun(&self, build: BuildId) -> bool {
        match self.records.find(build).await {
            Ok(Some(build)) if build.finished.is_some() => true,
            Ok(Some(build)) => self.builder.has_begun(&build).await != Begun::No,
            Ok(None) | Err(_) => false,
        }
    }

    /// Stops the hook of a build that this worker has no right to any more.
    pub(crate) async fn stop(&self, build: BuildId) {
        self.builder.stop(build).await;
    }

    /// Builds, unless there is a newer commit. The inner error is infrastructure that broke.
    async fn attempt(
        &self,
        build: &Build,
        maybe_announced: bool,
    ) -> Result<Result<Outcome, String>, RecordError> {
        let request = &build.request;
        let commit = match &build.commit {
            Some(known) => known.clone(),
            None => match self.resolve(request).await {
                Ok(commit) => {
                    self.records.set_commit(request.id, &commit).await?;
                    commit
                }
                Err(Obstacle::Permanent(reason) | Obstacle::DiskFull(reason)) => {
                    return Ok(Ok(Outcome::error(reason)));
                }
                Err(Obstacle::Transient(reason)) => return Ok(Err(reason)),
            },
        };
        let superseded_by = self.supersession.at_start(build, &commit).await?;
        if let Some(by) = superseded_by.get()
            && self.builder.has_begun(build).await == Begun::No
        {
            return Ok(Ok(Outcome::Superseded { by: by.clone() }));
        }
        let beside = self.build_and_announce(build, &commit, maybe_announced, &superseded_by);
        Ok(beside.await)
    }

    /// Builds, with a pending status beside it, until a newer commit makes that pointless.
    async fn build_and_announce(
        &self,
        build: &Build,
        commit: &CommitSha,
        maybe_announced: bool,
        superseded_by: &SetOnce<CommitSha>,
    ) -> Result<Outcome, String> {
        let request = &build.request;
        let page = self.links.build_page(request.id);
        tracing::info!(build = %request.id, repo = %request.repo, %commit, "building");

        // The final status must not be overtaken by the pending one: no new attempt to post it
        // begins once the build has ended, and one that is under way is waited for.
        let ended = CancellationToken::new();
        let building = async {
            let page = page.as_deref();
            let built = self.builder.build(request, commit, page, superseded_by);
            let result = built.await;
            ended.cancel();
            result
        };
        let announce = self.announce(request, commit, maybe_announced, &ended);
        let watch = self.supersession.watch(build, commit, superseded_by);
        let watch = ended.run_until_cancelled(watch);
        let (result, (), _) = tokio::join!(building, announce, watch);
        result
    }

    /// The commit that was asked for, by name or by itself.
    async fn resolve(&self, request: &BuildRequest) -> Result<CommitSha, Obstacle> {
        match &request.revision {
            Revision::Commit(sha) => Ok(sha.clone()),
            Revision::Name(name) => Ok(self.github.resolve(&request.repo, name).await?),
        }
    }

    /// Posts the pending status. It is worth a few attempts while the build runs, and no more.
    async fn announce(
        &self,
        request: &BuildRequest,
        commit: &CommitSha,
        mut maybe_posted: bool,
        ended: &CancellationToken,
    ) {
        let status = CommitStatus {
            state: State::Pending,
            description: Some("building".to_owned()),
            target_url: self.links.build_page(request.id),
        };
        let mut delay = PENDING_RETRY_DELAY;
        loop {
            let posted = self
                .github
                .post_status(&request.repo, commit, &status, maybe_posted)
                .await;
            let Err(error) = posted else { return };
            tracing::warn!(build = %request.id, %error, "cannot post the pending status");
            if !error.is_transient() {
                return;
            }
            let wait = error.retry_after().unwrap_or(delay);
            if ended
                .run_until_cancelled(tokio::time::sleep(wait))
                .await
                .is_none()
            {
                return;
            }
            maybe_posted = true;
            delay *= 2;
        }
    }

    /// Stores the outcome together with the reports that it owes.
    async fn finish(&self, build: &Build, outcome: &Outcome) -> Result<(), RecordError> {
        let id = build.request.id;
        tracing::info!(build = %id, repo = %build.request.repo, ?outcome, "finished");
        let previous = self.records.outcome_before(build).await?;
        let mut reports = vec![Report::Status];
        if self.mailer.wants(outcome, previous.as_ref()) {
            reports.push(Report::Mail);
        }
        self.records.finish(id, outcome, reports).await?;
        self.bell.ring();
        Ok(())
    }

    /// The redelivery of a finished build posts the stored result again and runs nothing.
    async fn report_again(&self, build: &Build) -> Result<Verdict, RecordError> {
        tracing::info!(build = %build.request.id, "finished before; reporting its result again");
        self.records
            .owe_again(build.request.id, Report::Status)
            .await?;
        self.bell.ring();
        Ok(Verdict::Settle)
    }

    /// Removes what a build made that is settled: until then another worker on this engine may have
    /// to look at it. What cannot be removed now is left to the next sweep.
    pub(crate) async fn clean_up(&self, id: BuildId) {
        if !self.builder.hook.garbage_collect {
            return;
        }
        for attempt in 1..=CLEANUP_ATTEMPTS {
            match cleanup::remove(&self.builder.engine, id).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(build = %id, %error, attempt, "cannot clean up"),
            }
            tokio::time::sleep(CLEANUP_RETRY_DELAY * attempt).await;
        }
    }
}

/// Of a build whose hook may have begun, and must not be told to have been given up.
fn not_now(build: BuildId, reason: &str) -> Verdict {
    tracing::warn!(%build, reason, "cannot follow a build to its end now");
    Verdict::GiveBack(RETRY_DELAY)
}

fn gave_up(reason: &str) -> Outcome {
    Outcome::error(format!("gave up after {MAX_RECEIVES} attempts ({reason})"))
}
