//! Latest commit wins: which builds a newer push to their branch makes pointless.
//!
//! The order in which deliveries come in is not the order of the pushes, and a queue at SQS cannot be
//! searched, so it is GitHub that is asked where the branch is. GitHub may lag behind a push, and
//! a branch may be pushed back to an older commit: the build of the newest push must never be
//! taken for one that is superseded.

use std::time::Duration;

use runner::Stop;
use shared::build::{Build, CommitSha, GitRef, RefName, RepoName, StopReason, skip_mark};
use shared::forge::{Forge, ForgeError};
use shared::ledger::{Ledger, LedgerError};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::sleep;

/// How often the branch of a build that runs is looked at: some 100 requests an hour, of the 5,000
/// that GitHub allows a token.
const LOOK_INTERVAL: Duration = Duration::from_secs(40);
/// So long after a push GitHub surely tells of it.
const GITHUB_LAG_MAX: Duration = Duration::from_secs(30);
/// A build that misses some of so many pushes looks at its branch all the same.
const PUSHES_AT_ONCE: usize = 64;

/// Finds out which builds are superseded. Clones share what they know of pushes.
#[derive(Debug, Clone)]
pub(crate) struct Supersession {
    wanted: bool,
    forge: Forge,
    ledger: Ledger,
    pushes: broadcast::Sender<Branch>,
}

type Branch = (RepoName, RefName);

/// Why a build cannot be compared with its branch.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Forge(#[from] ForgeError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Supersession {
    /// Where it is not `wanted`, no build is ever found to be superseded.
    pub(crate) fn new(wanted: bool, forge: Forge, ledger: Ledger) -> Self {
        Self {
            wanted,
            forge,
            ledger,
            pushes: broadcast::Sender::new(PUSHES_AT_ONCE),
        }
    }

    /// Looks at the branch of a build that is about to begin or to be gone on with, and has the
    /// builds that run look at it as well. A build that a newer commit ends is asked to stop.
    ///
    /// # Errors
    /// The decision of an earlier process cannot be read.
    pub(crate) async fn at_start(
        &self,
        build: &Build,
        commit: &CommitSha,
        stop: &Stop,
    ) -> Result<(), LedgerError> {
        if let Some(decided) = self.ledger.stop_reason(build.request.id).await? {
            stop.request(decided);
        } else if let Some(branch) = self.branch_of(build) {
            // An error says that no other build runs.
            let _ = self.pushes.send(branch.clone());
            self.look(build, &branch, commit, stop).await;
        }
        Ok(())
    }

    /// Looks at the branch of a build that runs, whenever this worker hears of a push to it and every
    /// so often, until a newer commit is found or the build is asked to stop for another reason.
    pub(crate) async fn watch(&self, build: &Build, commit: &CommitSha, stop: &Stop) {
        let Some(branch) = self.branch_of(build) else {
            return;
        };
        let mut pushes = self.pushes.subscribe();
        let interval = build.request.id.jittered(LOOK_INTERVAL);
        let mut wait = interval;
        while stop.reason().is_none() {
            tokio::select! {
                () = sleep(wait) => {}
                () = push_to(&branch, &mut pushes) => {}
            }
            let asked_to_wait = self.look(build, &branch, commit, stop).await;
            wait = interval.max(asked_to_wait);
        }
    }

    /// The branch whose push asked for a build, if builds of it can be superseded.
    fn branch_of(&self, build: &Build) -> Option<Branch> {
        match &build.request.git_ref {
            Some(GitRef::Branch(name)) if self.wanted => {
                Some((build.request.repo.clone(), name.clone()))
            }
            _ => None,
        }
    }

    /// Asks a build to stop if there is a newer commit of its branch. Returns how long the forge wants
    /// to be left alone; while it cannot be asked, nothing is superseded.
    async fn look(
        &self,
        build: &Build,
        branch: &Branch,
        commit: &CommitSha,
        stop: &Stop,
    ) -> Duration {
        let id = build.request.id;
        match self.find_newer(build, branch, commit).await {
            Ok(None) => Duration::ZERO,
            Ok(Some(by)) => {
                tracing::info!(build = %id, repo = %build.request.repo, %by, "superseded");
                stop.request(StopReason::Superseded { by });
                Duration::ZERO
            }
            Err(error) => {
                tracing::warn!(build = %id, %error, "failed to look for a newer commit; the build goes on");
                match error {
                    LookError::Forge(error) => error.retry_after().unwrap_or_default(),
                    LookError::Ledger(_) => Duration::ZERO,
                }
            }
        }
    }

    async fn find_newer(
        &self,
        build: &Build,
        (repo, branch): &Branch,
        commit: &CommitSha,
    ) -> Result<Option<CommitSha>, LookError> {
        let head = self.forge.head(repo, branch).await?;
        if head == *commit || !self.is_newer(build, commit, &head).await? {
            return Ok(None);
        }
        // What does not build itself ends no build.
        if skip_mark(&self.forge.message(repo, &head).await?).is_some() {
            return Ok(None);
        }
        // Recorded first: after a restart it is known why the hook did not come to its end.
        let reason = StopReason::Superseded { by: head.clone() };
        self.ledger.request_stop(build.request.id, &reason).await?;
        Ok(Some(head))
    }

    /// Whether a branch's head that is not a build's commit was surely pushed after it.
    async fn is_newer(
        &self,
        build: &Build,
        commit: &CommitSha,
        head: &CommitSha,
    ) -> Result<bool, LookError> {
        let claimed_ago = build.claimed_at.elapsed().unwrap_or_default();
        if claimed_ago >= GITHUB_LAG_MAX {
            return Ok(true);
        }
        // The branch may have been at either of them before, and been pushed back to this commit.
        if self.ledger.came_before(build, [commit, head]).await? {
            return Ok(false);
        }
        let repo = &build.request.repo;
        Ok(self.forge.is_descendant(repo, head, commit).await?)
    }
}

/// Returns when there was a push to this branch, or there may have been.
async fn push_to(branch: &Branch, pushes: &mut broadcast::Receiver<Branch>) {
    loop {
        match pushes.recv().await {
            Ok(pushed) if pushed != *branch => {}
            Ok(_) | Err(RecvError::Lagged(_)) => return,
            Err(RecvError::Closed) => return std::future::pending().await,
        }
    }
}
