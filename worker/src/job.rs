//! The way of one delivery: pending status → build → report, then settle and clean up, or give back.
//!
//! Read [`Job::work_on`] first.

use std::time::Duration;

use shared::build::{BuildId, BuildRequest, CommitSha, CommitState, Revision};
use shared::forge::{CommitStatus, Forge};
use shared::queue::MAX_RECEIVES;
use tokio::sync::SetOnce;
use tokio_util::sync::CancellationToken;

use crate::build::{Begun, Builder};
use crate::claim::{Claim, Claims, Standing};
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
    pub(crate) github: Forge,
    pub(crate) claims: Claims,
    pub(crate) supersession: Supersession,
    pub(crate) mailer: Mailer,
    pub(crate) links: Links,
    pub(crate) bell: Bell,
}

/// How a request came to this worker.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// How often its message was received, this time included.
    pub receives: u32,
    /// The id of its message in a queue from which other workers receive as well.
    pub message_id: Option<String>,
}

/// What is to become of the delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is done with: what it leads to is stored, and what it made can be removed.
    Settle,
    /// It is done with, because the build is another worker's.
    Leave,
    /// It is to be received again, after this time.
    GiveBack(Duration),
}

impl Job {
    /// Works on one delivery of a request.
    ///
    /// # Errors
    /// The records cannot be read or written; the delivery is to be given back.
    pub async fn work_on(
        &self,
        request: &BuildRequest,
        receipt: &Receipt,
    ) -> Result<Verdict, RecordError> {
        let build = self.records.begin(request).await?;
        if build.finished.is_some() {
            return self.report_again(&build).await;
        }
        let attempted = self.attempt(&build, receipt).await;
        match self.conclude(&build, attempted).await? {
            Ok(verdict) => Ok(verdict),
            Err(reason) if receipt.receives >= MAX_RECEIVES => {
                self.give_up(request, &reason, receipt).await
            }
            Err(reason) => {
                let receives = receipt.receives;
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
        receipt: &Receipt,
    ) -> Result<Verdict, RecordError> {
        let build = self.records.begin(request).await?;
        if build.finished.is_some() {
            return self.report_again(&build).await;
        }
        let ended = match self.builder.has_begun(&build).await {
            Begun::No => self.end(&build, gave_up(reason), receipt).await,
            Begun::Yes => self.attempt(&build, receipt).await,
            Begun::Unknown => Err(Obstacle::Transient(
                "the Docker engine does not answer".into(),
            )),
        };
        let concluded = self.conclude(&build, ended).await?;
        Ok(concluded.unwrap_or_else(|reason| not_now(request.id, &reason)))
    }

    /// Whether this worker has claimed a build or started its hook, or the build even has an end.
    pub(crate) async fn has_begun(&self, build: BuildId) -> bool {
        if matches!(self.records.claim(build).await, Ok(Some(_))) {
            return true;
        }
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

    /// Builds, unless there is a newer commit, or another worker builds it.
    async fn attempt(&self, build: &Build, receipt: &Receipt) -> Result<Outcome, Obstacle> {
        let commit = self.commit(build).await?;
        let claim = self.claim(build, &commit, receipt).await?;
        let superseded_by = self.supersession.at_start(build, &commit).await?;
        let outcome = match superseded_by.get() {
            Some(by) if self.builder.has_begun(build).await == Begun::No => {
                Outcome::Superseded { by: by.clone() }
            }
            _ => {
                let maybe_announced = receipt.receives > 1;
                self.build_and_announce(
                    build,
                    &commit,
                    claim.as_ref(),
                    maybe_announced,
                    &superseded_by,
                )
                .await?
            }
        };
        self.sealed(outcome, claim.as_ref()).await
    }

    /// Ends a build with this outcome, although its hook was not started, unless another worker ends
    /// it.
    async fn end(
        &self,
        build: &Build,
        outcome: Outcome,
        receipt: &Receipt,
    ) -> Result<Outcome, Obstacle> {
        // Without a commit there are no statuses.
        let Some(commit) = &build.commit else {
            return Ok(outcome);
        };
        let claim = self.claim(build, commit, receipt).await?;
        self.sealed(outcome, claim.as_ref()).await
    }

    /// Looks whether a build is another worker's, and answers what makes sure of that later; nothing
    /// where there is no other worker.
    async fn claim<'a>(
        &'a self,
        build: &'a Build,
        commit: &'a CommitSha,
        receipt: &Receipt,
    ) -> Result<Option<Claim<'a>>, Obstacle> {
        let Some(message_id) = &receipt.message_id else {
            return Ok(None);
        };
        let request = &build.request;
        let page = self.links.build_page(request.id);
        let claim = self
            .claims
            .claim(request, commit, page, message_id, receipt.receives);
        let mut claim = claim.await?;
        if build.hook_started && self.builder.is_begun_here(request.id).await? {
            claim.hold();
            return Ok(Some(claim));
        }
        match claim.look().await? {
            // By a worker on this engine: how it ends can be seen here.
            Standing::Inherited if self.builder.is_begun_here(request.id).await? => claim.hold(),
            standing => claim.take(standing)?,
        }
        Ok(Some(claim))
    }

    /// The outcome, if this worker is the one to tell it.
    async fn sealed(
        &self,
        outcome: Outcome,
        claim: Option<&Claim<'_>>,
    ) -> Result<Outcome, Obstacle> {
        let Some(claim) = claim else {
            return Ok(outcome);
        };
        match claim.stake().await {
            // Nobody else can post a status either. The mail tells.
            Err(Obstacle::Permanent(_)) => Ok(outcome),
            staked => staked.map(|()| outcome),
        }
    }

    /// Builds, with a pending status beside it, until a newer commit makes that pointless.
    async fn build_and_announce(
        &self,
        build: &Build,
        commit: &CommitSha,
        claim: Option<&Claim<'_>>,
        maybe_announced: bool,
        superseded_by: &SetOnce<CommitSha>,
    ) -> Result<Outcome, Obstacle> {
        let request = &build.request;
        let page = self.links.build_page(request.id);
        tracing::info!(build = %request.id, repo = %request.repo, %commit, "building");

        // The final status must not be overtaken by the pending one: no new attempt to post it
        // begins once the build has ended, and one that is under way is waited for.
        let ended = CancellationToken::new();
        let building = async {
            let page = page.as_deref();
            let built = self
                .builder
                .build(request, commit, page, superseded_by, claim);
            let result = built.await;
            ended.cancel();
            result
        };
        let announce = async {
            // A claim is an announcement, and comes before the start.
            if claim.is_none() {
                self.announce(request, commit, maybe_announced, &ended)
                    .await;
            }
        };
        let watch = self.supersession.watch(build, commit, superseded_by);
        let watch = ended.run_until_cancelled(watch);
        let (result, (), _) = tokio::join!(building, announce, watch);
        result
    }

    /// The commit that was asked for, by name or by itself.
    async fn commit(&self, build: &Build) -> Result<CommitSha, Obstacle> {
        let request = &build.request;
        match (&build.commit, &request.revision) {
            (Some(commit), _) | (None, Revision::Commit(commit)) => Ok(commit.clone()),
            (None, Revision::Name(name)) => {
                let commit = self.github.resolve(&request.repo, name).await?;
                self.records.set_commit(request.id, &commit).await?;
                Ok(commit)
            }
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
            state: CommitState::Pending,
            description: Some("building".to_owned()),
            target_url: self.links.build_page(request.id),
        };
        let mut delay = PENDING_RETRY_DELAY;
        loop {
            // Whoever limits us hears of final statuses first.
            let released = self.records.wait_until_released(Report::Status);
            if ended.run_until_cancelled(released).await.is_none() {
                return;
            }
            let posted = self
                .github
                .post_status(&request.repo, commit, &status, maybe_posted)
                .await;
            let Err(error) = posted else { return };
            tracing::warn!(build = %request.id, %error, "cannot post the pending status");
            if !error.is_transient() {
                return;
            }
            let wait = error.retry_after().unwrap_or_default().max(delay);
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

    /// Settles how a build ended. The inner error is infrastructure that broke before the hook started.
    async fn conclude(
        &self,
        build: &Build,
        ended: Result<Outcome, Obstacle>,
    ) -> Result<Result<Verdict, String>, RecordError> {
        let outcome = match ended {
            Ok(outcome) => outcome,
            Err(Obstacle::Permanent(reason) | Obstacle::DiskFull(reason)) => Outcome::error(reason),
            Err(Obstacle::Transient(reason)) => return Ok(Err(reason)),
            Err(Obstacle::Elsewhere { again_in }) => {
                return self.leave(build, again_in).await.map(Ok);
            }
        };
        self.finish(build, &outcome).await?;
        Ok(Ok(Verdict::Settle))
    }

    /// Leaves a build to another worker, which tells of it.
    async fn leave(
        &self,
        build: &Build,
        again_in: Option<Duration>,
    ) -> Result<Verdict, RecordError> {
        let id = build.request.id;
        tracing::info!(build = %id, ?again_in, "another worker has begun it; left alone");
        // Nobody else knows what this worker has made, so it is remembered until that is gone.
        if let Err(error) = cleanup::remove_unused(&self.builder.engine, id).await {
            tracing::warn!(build = %id, %error, "cannot clean up");
            return Ok(Verdict::GiveBack(again_in.unwrap_or(RETRY_DELAY)));
        }
        self.records.leave(id).await?;
        Ok(again_in.map_or(Verdict::Leave, Verdict::GiveBack))
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
