//! The way of one delivery: claim → run → end, then acknowledge, or return it to the queue.
//!
//! Read [`Job::work_on`] first.

use std::convert::Infallible;
use std::future::pending;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use runner::{Ended, Engine, EngineError, Obstacle, Secrets, Sink, Source, Spec, Stop, registry};
use shared::build::{Build, BuildError, BuildId, BuildRequest, CommitSha, Outcome, Revision};
use shared::build::{StopReason, log_path};
use shared::config::HookConfig;
use shared::forge::{Forge, ForgeError, Patience};
use shared::ledger::{Claim, Event, Ledger, LedgerError, STATUS};
use shared::queue::MAX_RECEIVES;

use crate::heartbeat::hold_claim;
use crate::housekeeping::Housekeeper;
use crate::notify::{Links, Notifiers};
use crate::slots::Slot;
use crate::supersede::Supersession;

/// The first wait before a commit is tried again; it doubles with every receive.
const RETRY_DELAY: Duration = Duration::from_secs(15);

/// How often an attempt makes a container anew whose hook has not begun.
const MAX_REMADE: u32 = 2;

/// Works on deliveries. Clones share everything.
#[derive(Debug, Clone)]
pub struct Job {
    pub(crate) engine: Engine,
    pub(crate) ledger: Ledger,
    pub(crate) forge: Forge,
    pub(crate) housekeeper: Housekeeper,
    pub(crate) supersession: Supersession,
    pub(crate) notifiers: Notifiers,
    pub(crate) links: Links,
    pub(crate) hook: HookConfig,
    /// The image to run in.
    pub(crate) image: String,
    /// The engine's socket on the engine's host.
    pub(crate) socket: PathBuf,
    pub(crate) data_dir: PathBuf,
    pub(crate) secrets: Secrets,
}

/// One attempt to work on a build.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) origin: Origin,
    /// How often its message was received, this time included.
    pub(crate) receives: u32,
    /// The place among the builds that run at once.
    pub(crate) slot: Slot,
    /// Ends the build.
    pub(crate) stop: Stop,
}

/// The reason for an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A message of the queue.
    Queue,
    /// A message that was received too often. A build whose hook has started is followed to its end
    /// all the same: the worker was interrupted, the build was not.
    DeadLetters,
    /// A build of an earlier process, whose message comes back by itself.
    EarlierProcess,
}

/// What is to become of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The build's end is stored.
    Acknowledge,
    /// It is to be received again, after this time.
    Return(Duration),
    /// Its lease is left to end by itself: the next start goes on with the build.
    Keep,
}

impl Job {
    /// Works on one delivery of a build that this worker claims, goes on with, or leaves alone.
    ///
    /// # Errors
    /// The ledger cannot be read or written; the delivery is to be returned.
    pub(crate) async fn work_on(
        &self,
        request: &BuildRequest,
        attempt: &Attempt,
    ) -> Result<Verdict, LedgerError> {
        let known = self.ledger.find(request.id).await?;
        let was_ours = known.is_some_and(|known| !known.is_elsewhere);
        let build = match self.ledger.claim(request).await? {
            Claim::Ours(build) => build,
            // Not a delivery: what this worker owes of it is owed already.
            Claim::Ended(_) if attempt.origin == Origin::EarlierProcess => {
                return Ok(Verdict::Acknowledge);
            }
            Claim::Ended(build) => return self.report_again(&build).await,
            Claim::Elsewhere { again_in } => {
                tracing::info!(build = %request.id, ?again_in, "skipping: claimed by another worker");
                return Ok(Verdict::Return(again_in));
            }
        };
        if attempt.origin == Origin::DeadLetters && !build.state.may_have_begun() {
            let met = self.ledger.last_problem(request.id).await?;
            let met = met.as_deref().unwrap_or("the worker was interrupted");
            return self.end(&build, gave_up(met)).await;
        }
        let built = match self.build_with_claim(&build, attempt).await {
            // It went away with the engine of the worker that had started the hook.
            Err(Obstacle::Final(BuildError::ContainerGone)) if !was_ours => {
                Ok(BuildError::WorkerLost.into())
            }
            // Without a store, another worker on this engine may have ended it.
            Err(Obstacle::Final(BuildError::ContainerGone))
                if attempt.origin == Origin::EarlierProcess && !self.ledger.has_store() =>
            {
                return self.leave(&build).await;
            }
            built => built,
        };
        self.conclude(&build, built, attempt).await
    }

    /// Builds while the claim holds. A build whose claim is about to end is stopped.
    async fn build_with_claim(&self, build: &Build, attempt: &Attempt) -> Result<Ended, Obstacle> {
        let id = build.request.id;
        let building = Box::pin(self.build(build, attempt));
        if !self.ledger.has_store() {
            return building.await;
        }
        let holding = async {
            let lost = hold_claim(id, &self.ledger).await;
            tracing::error!(build = %id, ?lost, "lost the claim of a build; stopping its hook");
            attempt.stop.request(StopReason::LeaseLost);
            pending::<Infallible>().await
        };
        tokio::select! {
            built = building => built,
            never = holding => match never {},
        }
    }

    /// Builds the commit, unless there is a newer one, and watches what may end it meanwhile.
    async fn build(&self, build: &Build, attempt: &Attempt) -> Result<Ended, Obstacle> {
        let Attempt { slot, stop, .. } = attempt;
        match build.state.may_have_begun() {
            true => slot.take_if_free(),
            false => attempt.take_slot().await?,
        }
        let commit = self.commit(build, attempt).await?;
        let looked = self.supersession.at_start(build, &commit, stop);
        slot.lend_while(looked).await.map_err(unrecorded)?;
        let watching = async {
            tokio::join!(
                self.supersession.watch(build, &commit, stop),
                self.housekeeper.watch_room(stop),
                self.housekeeper.watch_volumes(build),
            )
            .2
        };
        tokio::select! {
            built = Box::pin(self.run(build, &commit, attempt)) => built,
            never = watching => match never {},
        }
    }

    /// Runs the build, as often as it takes to get past the obstacles that can be removed.
    async fn run(
        &self,
        build: &Build,
        commit: &CommitSha,
        attempt: &Attempt,
    ) -> Result<Ended, Obstacle> {
        const BROKE_OFF: &str = "the download of the tarball broke off";
        let Attempt { slot, stop, .. } = attempt;
        let id = build.request.id;
        let mut spec = self.spec(build, commit);
        let sink = Sink::file(log_path(&self.data_dir, id));
        let mut patience = Patience::default();
        let (mut made_room, mut pulled, mut remade) = (false, false, 0);
        if stop.reason().is_none() && !spec.may_have_begun {
            self.announce(build, attempt.receives > 1).await?;
            tracing::info!(build = %id, repo = %build.request.repo, %commit, "building");
        }
        loop {
            let source = self.tarball(&build.request, commit, &mut patience, attempt);
            let before_start = async || self.before_start(id, attempt).await;
            let ran = runner::run(&self.engine, &spec, source, &sink, stop, before_start);
            match Box::pin(ran).await {
                Err(Obstacle::DiskFull(lack)) if !made_room => {
                    tracing::warn!(build = %id, lack, "no room for a build; making some");
                    self.housekeeper.make_room().await;
                    made_room = true;
                }
                Err(Obstacle::NotBegun) => {
                    self.ledger.did_not_start(id).await.map_err(unrecorded)?;
                    spec.may_have_begun = false;
                }
                Err(Obstacle::NotStarted(why)) => {
                    self.ledger.did_not_start(id).await.map_err(unrecorded)?;
                    if remade == MAX_REMADE {
                        return Err(Obstacle::Transient(why));
                    }
                    tracing::warn!(build = %id, why, "the hook did not begin; making its container anew");
                    remade += 1;
                }
                Err(Obstacle::Removed(why)) if remade < MAX_REMADE => {
                    tracing::warn!(build = %id, why, "the container was removed; making it anew");
                    remade += 1;
                }
                Err(Obstacle::NoImage) if !pulled => {
                    slot.lend_while(self.pull()).await?;
                    pulled = true;
                }
                Err(Obstacle::NoImage) => return Err(self.no_image()),
                Err(Obstacle::SourceBroke) => {
                    if !slot.lend_while(patience.wait(BROKE_OFF, None)).await {
                        return Err(Obstacle::Transient(BROKE_OFF.into()));
                    }
                }
                ran => return ran,
            }
            attempt.take_slot().await?;
        }
    }

    fn spec(&self, build: &Build, commit: &CommitSha) -> Spec {
        Spec {
            request: build.request.clone(),
            commit: commit.clone(),
            build_url: self.links.build_page(build.request.id),
            hook: self.hook.clone(),
            image: self.image.clone(),
            socket: self.socket.clone(),
            secrets: self.secrets.clone(),
            may_have_begun: build.state.may_have_begun(),
        }
    }

    /// The commit's tarball, which the build waits for without its slot.
    fn tarball<'a>(
        &'a self,
        request: &'a BuildRequest,
        commit: &'a CommitSha,
        patience: &'a mut Patience,
        attempt: &'a Attempt,
    ) -> Source<'a> {
        let open = async move {
            self.housekeeper.check_room().await?;
            let opened = self.forge.tarball(&request.repo, commit, patience);
            let slot = &attempt.slot;
            let tarball = slot.lend_while(opened).await.map_err(obstacle)?;
            attempt.take_slot().await?;
            Ok(slot.clone().lend_between(Box::pin(tarball)).boxed())
        };
        Source::Tarball {
            open: open.boxed(),
            commit,
        }
    }

    /// Has the build's slot, and records that its hook starts, before it does.
    async fn before_start(&self, build: BuildId, attempt: &Attempt) -> Result<(), Obstacle> {
        attempt.take_slot().await?;
        self.ledger.start(build).await.map_err(unrecorded)
    }

    /// Pulls the build image, and records that it is this worker's.
    async fn pull(&self) -> Result<(), Obstacle> {
        let image = &self.image;
        let login = registry::login_for(image, self.hook.registry.as_ref());
        let pulled = self.engine.pull(image, login).await;
        pulled.map_err(|error| match error {
            EngineError::Gone(_) | EngineError::NoSpace(_) => error.into(),
            _ => {
                tracing::warn!(image, %error, "failed to pull the build image");
                self.no_image()
            }
        })?;
        if let Some(id) = self.engine.image_id(image).await? {
            let recorded = self.ledger.image_pulled(image, id).await;
            recorded.map_err(unrecorded)?;
        }
        Ok(())
    }

    fn no_image(&self) -> Obstacle {
        let image = self.image.clone();
        Obstacle::Final(BuildError::NoImage { image })
    }

    /// The commit that was asked for, by name or by itself.
    async fn commit(&self, build: &Build, attempt: &Attempt) -> Result<CommitSha, Obstacle> {
        let request = &build.request;
        match (&build.commit, &request.revision) {
            (Some(commit), _) | (None, Revision::Commit(commit)) => Ok(commit.clone()),
            (None, Revision::Name(name)) => {
                let resolved = self.forge.resolve(&request.repo, name);
                let resolved = attempt.slot.lend_while(resolved).await;
                let commit = resolved.map_err(obstacle)?;
                attempt.take_slot().await?;
                let recorded = self.ledger.set_commit(request.id, &commit).await;
                recorded.map_err(unrecorded)?;
                Ok(commit)
            }
        }
    }

    /// Owes the pending status, once, and records which image the build uses.
    async fn announce(&self, build: &Build, maybe_announced: bool) -> Result<(), Obstacle> {
        let recorded = self.ledger.image_used(&self.image).await;
        recorded.map_err(unrecorded)?;
        let id = build.request.id;
        let owed = self.ledger.owe(id, STATUS, Event::Began, maybe_announced);
        owed.await.map_err(unrecorded)?;
        self.notifiers.ring();
        Ok(())
    }

    /// Ends the build, or returns it for another attempt.
    async fn conclude(
        &self,
        build: &Build,
        built: Result<Ended, Obstacle>,
        attempt: &Attempt,
    ) -> Result<Verdict, LedgerError> {
        match built {
            Ok(ended) => {
                let outcome = self.housekeeper.explain(ended.outcome).await;
                self.end(build, Ended { outcome, ..ended }).await
            }
            Err(Obstacle::Final(error)) => self.end(build, error).await,
            Err(Obstacle::DiskFull(lack)) => self.end(build, BuildError::DiskFull(lack)).await,
            Err(Obstacle::Stopped(StopReason::LeaseLost)) => self.leave(build).await,
            // No attempt: the build has met nothing.
            Err(Obstacle::Unrecorded(error)) => Err(LedgerError::Unrecorded(error)),
            Err(Obstacle::Stopped(_)) => self.put_off(build, Duration::ZERO).await,
            Err(obstacle) => {
                self.try_again(build, &obstacle.to_string(), attempt.receives)
                    .await
            }
        }
    }

    /// Returns a build that met trouble, or ends it if it did so too often.
    async fn try_again(
        &self,
        build: &Build,
        reason: &str,
        receives: u32,
    ) -> Result<Verdict, LedgerError> {
        let id = build.request.id;
        if receives >= MAX_RECEIVES && !self.may_have_begun(id).await? {
            return self.end(build, gave_up(reason)).await;
        }
        tracing::warn!(build = %id, reason, receives, "failed to build; trying again");
        self.ledger.attempt_met(id, reason).await?;
        let delay = RETRY_DELAY * 2u32.saturating_pow(receives.min(MAX_RECEIVES).saturating_sub(1));
        self.put_off(build, delay).await
    }

    /// Stores the outcome together with the reports that it owes.
    async fn end(&self, build: &Build, ended: impl Into<Ended>) -> Result<Verdict, LedgerError> {
        let id = build.request.id;
        let Ended { outcome, ran_for } = ended.into();
        let outcome = outcome.map_words(|words| self.secrets.mask(words));
        let previous = self.ledger.outcome_before(build).await?;
        let owes = self.notifiers.wanting(&outcome, previous.as_ref());
        match self.ledger.end_after(id, &outcome, ran_for, &owes).await {
            Err(LedgerError::ClaimLost) => return self.leave(build).await,
            stored => stored?,
        }
        tracing::info!(build = %id, repo = %build.request.repo, ?outcome, "finished");
        self.notifiers.ring();
        Ok(Verdict::Acknowledge)
    }

    /// Returns a build that has not begun, for any worker to take. One whose hook runs is this worker's
    /// to go on with.
    async fn put_off(&self, build: &Build, again_in: Duration) -> Result<Verdict, LedgerError> {
        let id = build.request.id;
        if self.may_have_begun(id).await? {
            return Ok(match again_in.is_zero() {
                true => Verdict::Keep,
                false => Verdict::Return(again_in),
            });
        }
        match self.ledger.release(id).await {
            Ok(()) => {
                // Another worker cannot remove what this one has prepared.
                self.housekeeper.remove_prepared(id).await;
                Ok(Verdict::Return(again_in))
            }
            Err(LedgerError::ClaimLost) => self.leave(build).await,
            // An answer was lost: the ledger knows of a start that did not come about.
            Err(LedgerError::Illegal(_)) => Ok(Verdict::Return(again_in)),
            Err(error) => Err(error),
        }
    }

    async fn may_have_begun(&self, build: BuildId) -> Result<bool, LedgerError> {
        let known = self.ledger.find(build).await?;
        Ok(known.is_some_and(|build| build.state.may_have_begun()))
    }

    /// Leaves a build to the worker that has it now, or will.
    async fn leave(&self, build: &Build) -> Result<Verdict, LedgerError> {
        let id = build.request.id;
        self.ledger.leave(id).await?;
        if self.ledger.has_store() {
            self.housekeeper.remove(id).await;
        }
        Ok(Verdict::Return(RETRY_DELAY))
    }

    /// The delivery of an ended build reports the stored outcome again and runs nothing.
    async fn report_again(&self, build: &Build) -> Result<Verdict, LedgerError> {
        tracing::info!(build = %build.request.id, "finished before; reporting its result again");
        let id = build.request.id;
        self.ledger.owe(id, STATUS, Event::Ended, true).await?;
        self.notifiers.ring();
        Ok(Verdict::Acknowledge)
    }
}

impl Attempt {
    /// Takes the slot in turn, unless the build is asked to stop meanwhile.
    async fn take_slot(&self) -> Result<(), Obstacle> {
        tokio::select! {
            biased;
            () = self.slot.take() => Ok(()),
            reason = self.stop.requested() => Err(Obstacle::Stopped(reason.clone())),
        }
    }
}

fn gave_up(last: &str) -> Outcome {
    Outcome::Error(BuildError::GaveUp {
        attempts: MAX_RECEIVES,
        last: last.to_owned(),
    })
}

/// A step that cannot be recorded is not taken.
fn unrecorded(error: LedgerError) -> Obstacle {
    match error {
        LedgerError::ClaimLost => Obstacle::Stopped(StopReason::LeaseLost),
        error => Obstacle::Unrecorded(error.to_string()),
    }
}

/// A forge that is away may come back; one that refuses will refuse again.
fn obstacle(error: ForgeError) -> Obstacle {
    match error.is_transient() {
        true => Obstacle::Transient(error.to_string()),
        false => Obstacle::Final(BuildError::Forge(error.to_string())),
    }
}
