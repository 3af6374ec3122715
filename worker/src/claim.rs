//! Who runs a build, among several workers.
//!
//! Workers on several hosts share neither records nor an engine, and yet a hook must start at most
//! once among all of them. What they share are the queue and the commit's statuses. So a worker says
//! that it is about to start a hook before it does: its pending status names the build and the lease
//! under which it builds. GitHub keeps statuses in their order, and **who announced a build first
//! runs it**. Everybody looks before they do anything, and once more after their own announcement, so
//! of two that announce a build at once both see the same one to be first. Whoever posts a final
//! status has announced the build as well, and no two of them contradict each other.
//!
//! That a build was announced does not tell whether who did it is still at work. The queue does: a
//! worker holds on to its message for as long, and stops before that hold ends.
//!
//! - Who comes with **another message** of the build, because GitHub delivered the push twice, leaves
//!   it alone. Whoever holds the first message reports, or inherits.
//! - Who comes with **the same message** inherits: the worker before has lost it, and reports nothing
//!   any more. Its hook has run, or may have, so the build ends as interrupted. But a standard queue
//!   may hand out a copy of a message that another worker still holds. So it is first let go of for
//!   as long as a lease: a worker that lives extends it meanwhile, and it does not come back before
//!   that worker has settled or lost it; or it is told that the hold is not its own any more.
//!
//! A worker that announces a build and then cannot start the hook, because its engine refuses, gives
//! the message back. It may go on itself; if another worker gets the message first and last, the
//! build ends as interrupted, although nothing of the hook has run: nobody else can know that.
//!
//! With the local queue there is one worker, its records know all this, and none of it is done.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use shared::build::{BuildId, BuildRequest, CommitSha, CommitState};
use shared::forge::{CommitStatus, Forge, ForgeError, Patience};
use shared::queue::MAX_RECEIVES;
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::hold::LEASE;
use crate::outcome::Obstacle;
use crate::record::{RecordError, Records, Report};

/// What ends a build whose hook another worker has started, or may have.
const INTERRUPTED: &str =
    "interrupted: the hook was started by another worker, which has gone away";

/// The message may be a copy of one that another worker holds: see [the module](self).
const LET_GO: Obstacle = Obstacle::Elsewhere {
    again_in: Some(LEASE),
};

/// So many characters of a message's id tell the messages of one build apart.
const MESSAGE_CHARS: usize = 8;
/// So many digits tell the workers apart that a message came to.
const WORKER_DIGITS: usize = 4;

/// The right of one worker to one message, as it stands in a pending status: `3fa9c1d2-07d2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeaseName {
    message: String,
    worker: String,
}

/// Where a build stands, as its commit's statuses tell it to the holder of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nobody has announced it.
    Unclaimed,
    /// This lease was the first under which it was announced.
    Ours,
    /// It was announced by a worker that held the same message before.
    Inherited,
    /// It was announced by a worker that holds another message of the build, or held it.
    Elsewhere,
    /// It has a final status.
    Told,
}

/// Claims builds, for a worker that shares its queue with others.
#[derive(Debug, Clone)]
pub(crate) struct Claims {
    pub(crate) github: Forge,
    pub(crate) records: Records,
    /// Whether a hook may run again that was interrupted.
    pub(crate) rerun: bool,
}

/// The claim of a worker to a build.
#[derive(Debug)]
pub struct Claim<'a> {
    claims: &'a Claims,
    request: &'a BuildRequest,
    commit: &'a CommitSha,
    page: Option<String>,
    lease: LeaseName,
    receives: u32,
    /// Whether the worker before is known to be gone.
    inherits: bool,
    staked: OnceCell<()>,
}

impl LeaseName {
    /// A new name for the lease of a message.
    pub(crate) fn of(message_id: &str) -> Self {
        let message: String = message_id
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .take(MESSAGE_CHARS)
            .collect();
        let worker = Uuid::new_v4().simple().to_string();
        Self {
            message: message.to_ascii_lowercase(),
            worker: worker[..WORKER_DIGITS].to_owned(),
        }
    }

    /// The name, as [`Display`](fmt::Display) writes it.
    fn parse(text: &str) -> Option<Self> {
        let (message, worker) = text.split_once('-')?;
        Some(Self {
            message: message.to_owned(),
            worker: worker.to_owned(),
        })
    }

    /// The lease under which a status announces a build.
    fn in_status(status: &CommitStatus) -> Option<Self> {
        let (_, name) = status.description.as_deref()?.split_once("(lease ")?;
        Self::parse(name.strip_suffix(')')?)
    }

    fn is_of_message(&self, other: &Self) -> bool {
        self.message == other.message
    }
}

impl fmt::Display for LeaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.message, self.worker)
    }
}

/// Where a build stands, by the statuses of its commit, the newest of which comes first.
fn standing(statuses: &[CommitStatus], build: BuildId, lease: &LeaseName) -> Standing {
    if is_told(statuses, build) {
        return Standing::Told;
    }
    let Some(first) = statuses.iter().rfind(|status| names(status, build)) else {
        return Standing::Unclaimed;
    };
    match LeaseName::in_status(first) {
        Some(first) if first == *lease => Standing::Ours,
        Some(first) if first.is_of_message(lease) => Standing::Inherited,
        // Without a lease, it is of a service whose queue is its own.
        Some(_) | None => Standing::Elsewhere,
    }
}

/// Whether one of these statuses is a final one of this build.
pub(crate) fn is_told(statuses: &[CommitStatus], build: BuildId) -> bool {
    statuses
        .iter()
        .any(|status| status.state != CommitState::Pending && names(status, build))
}

fn names(status: &CommitStatus, build: BuildId) -> bool {
    let id = build.to_string();
    [&status.description, &status.target_url]
        .into_iter()
        .flatten()
        .any(|text| text.contains(&id))
}

/// Whether the holder of a lease may build, by where the build stands and how often the message was
/// received. A hook that was interrupted runs again only where that is wanted (`rerun`).
fn admit(standing: Standing, receives: u32, rerun: bool) -> Result<(), Obstacle> {
    match standing {
        Standing::Unclaimed | Standing::Ours => Ok(()),
        Standing::Inherited if receives < MAX_RECEIVES => Err(LET_GO),
        Standing::Inherited if rerun => Ok(()),
        Standing::Inherited => Err(Obstacle::Permanent(INTERRUPTED.into())),
        Standing::Elsewhere | Standing::Told => Err(Obstacle::Elsewhere { again_in: None }),
    }
}

impl Claims {
    /// The claim of the holder of a message, which was received this often. Under the same message this
    /// worker always claims a build by the same name.
    ///
    /// # Errors
    /// The records cannot be read.
    pub(crate) async fn claim<'a>(
        &'a self,
        request: &'a BuildRequest,
        commit: &'a CommitSha,
        page: Option<String>,
        message_id: &str,
        receives: u32,
    ) -> Result<Claim<'a>, RecordError> {
        let lease = LeaseName::of(message_id);
        let known = self.records.claim(request.id).await?;
        let known = known.and_then(|name| LeaseName::parse(&name));
        Ok(Claim {
            claims: self,
            request,
            commit,
            page,
            lease: known
                .filter(|known| known.is_of_message(&lease))
                .unwrap_or(lease),
            receives,
            inherits: false,
            staked: OnceCell::new(),
        })
    }
}

impl Claim<'_> {
    /// Looks whether another worker has claimed the build, or ended it.
    ///
    /// # Errors
    /// GitHub is not available, for longer than patience lasts.
    pub(crate) async fn look(&self) -> Result<Standing, Obstacle> {
        let look = || self.standing();
        match Patience::default().outlast(look).await {
            Err(error) if !error.is_transient() => Ok(Standing::Unclaimed),
            standing => Ok(standing?),
        }
    }

    /// Takes a build that stands like this.
    ///
    /// # Errors
    /// It is another worker's; or its hook was interrupted.
    pub(crate) fn take(&mut self, standing: Standing) -> Result<(), Obstacle> {
        if standing == Standing::Ours {
            self.hold();
        }
        admit(standing, self.receives, self.claims.rerun)?;
        self.inherits = standing == Standing::Inherited;
        Ok(())
    }

    /// There is better proof than a status that the build is this worker's: its container.
    pub(crate) fn hold(&self) {
        // An error says that this is known.
        let _ = self.staked.set(());
    }

    /// Announces the build, unless that is done, and returns once it is sure that this worker was the
    /// first. Before that no hook may start, and no final status be posted.
    ///
    /// # Errors
    /// Another worker was first; or GitHub refuses, or is not available.
    pub(crate) async fn stake(&self) -> Result<(), Obstacle> {
        let staked = self.staked.get_or_try_init(|| self.try_to_stake());
        staked.await.map(drop)
    }

    async fn try_to_stake(&self) -> Result<(), Obstacle> {
        let Claims { records, rerun, .. } = self.claims;
        // Noted first: what GitHub stores is this worker's own, also if it does not live to see it.
        let name = self.lease.to_string();
        records.note_claim(self.request.id, name).await?;
        self.announce().await?;
        let look = || self.standing_once_listed();
        match Patience::default().outlast(look).await? {
            Standing::Inherited if self.inherits => Ok(()),
            // It holds a copy of this message, and has been quicker by a moment.
            Standing::Inherited => Err(LET_GO),
            standing => admit(standing, self.receives, *rerun),
        }
    }

    async fn standing(&self) -> Result<Standing, ForgeError> {
        let statuses = self.claims.github.statuses(&self.request.repo, self.commit);
        Ok(standing(&statuses.await?, self.request.id, &self.lease))
    }

    /// GitHub may take a moment until it lists a status that it has accepted.
    async fn standing_once_listed(&self) -> Result<Standing, ForgeError> {
        match self.standing().await? {
            Standing::Unclaimed => Err(ForgeError::Unavailable {
                what: "the list of commit statuses".into(),
                reason: "it lacks the pending status".into(),
                retry_after: None,
                ambiguous: false,
            }),
            standing => Ok(standing),
        }
    }

    async fn announce(&self) -> Result<(), ForgeError> {
        let (repo, commit) = (&self.request.repo, self.commit);
        let announcement = self.announcement();
        let records = &self.claims.records;
        records.wait_until_released(Report::Status).await;
        let maybe_posted = AtomicBool::new(false);
        let post = || {
            let maybe_posted = maybe_posted.swap(true, Ordering::Relaxed);
            let github = &self.claims.github;
            github.post_status(repo, commit, &announcement, maybe_posted)
        };
        Patience::default().outlast(post).await
    }

    fn announcement(&self) -> CommitStatus {
        let (build, lease) = (self.request.id, &self.lease);
        CommitStatus {
            state: CommitState::Pending,
            description: Some(match self.page {
                Some(_) => format!("building (lease {lease})"),
                None => format!("building {build} (lease {lease})"),
            }),
            target_url: self.page.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILD: &str = "5f9ef6b0-94f6-5a58-8b5e-3d1f0a3b6c1d";
    const PAGE: &str = "https://ci.example.org/builds/5f9ef6b0-94f6-5a58-8b5e-3d1f0a3b6c1d";

    fn status(state: CommitState, description: &str) -> CommitStatus {
        CommitStatus {
            state,
            description: Some(description.replace("<id>", BUILD)),
            target_url: None,
        }
    }

    fn on_page(status: CommitStatus) -> CommitStatus {
        CommitStatus {
            target_url: Some(PAGE.to_owned()),
            ..status
        }
    }

    fn pending(description: &str) -> CommitStatus {
        status(CommitState::Pending, description)
    }

    /// Where the build stands for a worker `07d2` with the message `3fa9c1d2`.
    fn standing_by(newest_first: &[CommitStatus]) -> Standing {
        let lease = LeaseName::parse("3fa9c1d2-07d2").expect("a name");
        standing(newest_first, BUILD.parse().expect("an id"), &lease)
    }

    #[test]
    fn who_announced_a_build_first_runs_it() {
        let ours = pending("building <id> (lease 3fa9c1d2-07d2)");
        let same_message = pending("building <id> (lease 3fa9c1d2-beef)");
        let other_message = pending("building <id> (lease 0badcafe-07d2)");
        let [before, after] = [Standing::Inherited, Standing::Ours];
        for (newest_first, expected) in [
            (vec![], Standing::Unclaimed),
            (vec![ours.clone()], Standing::Ours),
            (vec![same_message.clone()], before),
            (vec![other_message.clone()], Standing::Elsewhere),
            (vec![same_message.clone(), ours.clone()], after),
            (vec![ours.clone(), same_message.clone()], before),
            (vec![other_message.clone(), ours.clone()], after),
            (vec![ours, other_message], Standing::Elsewhere),
        ] {
            assert_eq!(standing_by(&newest_first), expected, "{newest_first:?}");
        }
    }

    #[test]
    fn a_status_names_its_build_in_its_words_or_by_its_page() {
        for (status, expected) in [
            (
                on_page(pending("building (lease 3fa9c1d2-07d2)")),
                Standing::Ours,
            ),
            (on_page(pending("building")), Standing::Elsewhere),
            (
                on_page(status(CommitState::Success, "passed in 3s")),
                Standing::Told,
            ),
            (
                status(CommitState::Success, "passed in 3s (<id>)"),
                Standing::Told,
            ),
            (
                status(CommitState::Success, "passed in 3s"),
                Standing::Unclaimed,
            ),
            (pending("building"), Standing::Unclaimed),
            (
                pending("building 133ffde0-0000-4000-8000-000000000000 (lease 3fa9c1d2-07d2)"),
                Standing::Unclaimed,
            ),
        ] {
            let statuses = [status];
            assert_eq!(standing_by(&statuses), expected, "{statuses:?}");
        }
    }

    #[test]
    fn a_final_status_ends_a_build_whatever_was_said_after_it() {
        let ours = pending("building <id> (lease 3fa9c1d2-07d2)");
        for state in [
            CommitState::Success,
            CommitState::Failure,
            CommitState::Error,
        ] {
            let end = status(state, "… (<id>)");
            for statuses in [[end.clone(), ours.clone()], [ours.clone(), end]] {
                assert_eq!(standing_by(&statuses), Standing::Told);
            }
        }
    }

    #[test]
    fn what_was_interrupted_is_told_by_the_last_to_receive_it_and_runs_again_where_that_is_wanted()
    {
        let interrupted = || Err(Obstacle::Permanent(INTERRUPTED.into()));
        let left = || Err(Obstacle::Elsewhere { again_in: None });
        for (standing, receives, rerun, expected) in [
            (Standing::Unclaimed, 1, false, Ok(())),
            (Standing::Unclaimed, 3, false, Ok(())),
            (Standing::Ours, 2, false, Ok(())),
            (Standing::Inherited, 1, false, Err(LET_GO)),
            (Standing::Inherited, 2, true, Err(LET_GO)),
            (Standing::Inherited, 3, false, interrupted()),
            (Standing::Inherited, 4, false, interrupted()),
            (Standing::Inherited, 3, true, Ok(())),
            (Standing::Elsewhere, 3, true, left()),
            (Standing::Told, 3, true, left()),
        ] {
            let told = format!("{standing:?} {receives} {rerun}");
            assert_eq!(admit(standing, receives, rerun), expected, "{told}");
        }
    }

    #[test]
    fn a_lease_is_named_after_its_message_and_its_worker() {
        let id = "3FA9C1D2-0c5e-4f6e-9d3a-1f2e3d4c5b6a";
        let (one, other) = (LeaseName::of(id), LeaseName::of(id));
        assert!(one.is_of_message(&other) && one != other, "{one} {other}");
        assert!(one.to_string().starts_with("3fa9c1d2-"), "{one}");
        assert_eq!(LeaseName::parse(&one.to_string()), Some(one.clone()));
        assert!(!one.is_of_message(&LeaseName::of("0badcafe")));
    }
}
