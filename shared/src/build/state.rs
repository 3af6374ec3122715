//! Where a build stands: `queued → claimed(by) → started → ended(outcome)`.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{BuildRequest, CommitSha, CommitState, InvalidName, Outcome};

/// The identity of a worker. It is kept in `DATA_DIR`, and so outlives the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(Uuid);

impl WorkerId {
    /// The owner of a build that another worker has whose name is not known.
    pub const UNKNOWN: Self = Self(Uuid::nil());
}

/// Where a build stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildState {
    /// No worker has it.
    Queued,
    /// A worker has it, and has not started its hook.
    Claimed {
        /// The worker.
        by: WorkerId,
    },
    /// The hook was started, or is about to be.
    Started {
        /// The worker that answers for it.
        by: WorkerId,
    },
    /// It has come to its end, which never changes.
    Ended(Outcome),
}

/// A step that a build cannot take from where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IllegalStep {
    /// Another worker has it.
    #[error("another worker has the build")]
    NotOurs,
    /// It has ended.
    #[error("the build has ended")]
    HasEnded,
    /// Its hook was started.
    #[error("the hook was started")]
    HasStarted,
}

impl BuildState {
    /// Whether the hook may have begun: from then on it is never started again without being asked to.
    pub fn may_have_begun(&self) -> bool {
        matches!(self, Self::Started { .. })
    }

    /// The worker that has it now.
    pub fn owner(&self) -> Option<WorkerId> {
        match self {
            Self::Claimed { by } | Self::Started { by } => Some(*by),
            Self::Queued | Self::Ended(_) => None,
        }
    }

    /// How it ended.
    pub fn outcome(&self) -> Option<&Outcome> {
        match self {
            Self::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// A worker takes it, or finds it to be its own already.
    ///
    /// # Errors
    /// It is another worker's, or has ended.
    pub fn claim(self, by: WorkerId) -> Result<Self, IllegalStep> {
        match self {
            Self::Queued => Ok(Self::Claimed { by }),
            own if own.owner() == Some(by) => Ok(own),
            Self::Ended(_) => Err(IllegalStep::HasEnded),
            _ => Err(IllegalStep::NotOurs),
        }
    }

    /// A worker takes it from one whose claim has ended.
    ///
    /// # Errors
    /// It has ended.
    pub fn take_over(self, by: WorkerId) -> Result<Self, IllegalStep> {
        match self {
            Self::Queued | Self::Claimed { .. } => Ok(Self::Claimed { by }),
            Self::Started { .. } => Ok(Self::Started { by }),
            Self::Ended(_) => Err(IllegalStep::HasEnded),
        }
    }

    /// Its worker gives it back before it has started the hook.
    ///
    /// # Errors
    /// It is not this worker's, or the hook was started.
    pub fn release(self, by: WorkerId) -> Result<Self, IllegalStep> {
        match self.renew(by)? {
            Self::Started { .. } => Err(IllegalStep::HasStarted),
            _ => Ok(Self::Queued),
        }
    }

    /// Its worker is about to start the hook, or to go on with it.
    ///
    /// # Errors
    /// It is not this worker's.
    pub fn start(self, by: WorkerId) -> Result<Self, IllegalStep> {
        self.renew(by)?;
        Ok(Self::Started { by })
    }

    /// Its worker has proof that the hook has not begun, although its start was recorded.
    ///
    /// # Errors
    /// It is not this worker's.
    pub fn did_not_start(self, by: WorkerId) -> Result<Self, IllegalStep> {
        self.renew(by)?;
        Ok(Self::Claimed { by })
    }

    /// Its worker knows how it ended.
    ///
    /// # Errors
    /// It is not this worker's.
    pub fn end(self, by: WorkerId, outcome: Outcome) -> Result<Self, IllegalStep> {
        self.renew(by)?;
        Ok(Self::Ended(outcome))
    }

    /// Its worker confirms that it has it.
    ///
    /// # Errors
    /// It is not this worker's.
    pub fn renew(self, by: WorkerId) -> Result<Self, IllegalStep> {
        match self {
            Self::Ended(_) => Err(IllegalStep::HasEnded),
            own if own.owner() == Some(by) => Ok(own),
            _ => Err(IllegalStep::NotOurs),
        }
    }
}

/// All that is known of one build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// What was asked for.
    pub request: BuildRequest,
    /// The commit; unknown while a manual trigger's name is not resolved.
    pub commit: Option<CommitSha>,
    /// Where it stands.
    pub state: BuildState,
    /// When a worker first claimed it.
    pub claimed_at: SystemTime,
    /// When its hook was started.
    pub started_at: Option<SystemTime>,
    /// When its hook ended, or when it was given up.
    pub ended_at: Option<SystemTime>,
    /// Why its status could not be posted, if it could not.
    pub status_problem: Option<String>,
    /// Whether its log was removed, for its age or for want of room.
    pub log_removed: bool,
    /// Whether another worker has it now: then how it goes is not known here.
    pub is_elsewhere: bool,
}

impl Build {
    /// How it ended, if it has.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.state.outcome()
    }

    /// The state of its commit.
    pub fn commit_state(&self) -> CommitState {
        self.outcome()
            .map_or(CommitState::Pending, Outcome::commit_state)
    }

    /// How long the hook ran; of a build whose hook did not run, the time from the first claim to its end.
    pub fn duration(&self) -> Option<Duration> {
        let began_at = self.started_at.unwrap_or(self.claimed_at);
        let took = self.ended_at?.duration_since(began_at);
        Some(took.unwrap_or_default())
    }
}

impl WorkerId {
    /// A new identity.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for WorkerId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let id = Uuid::parse_str(text.trim()).map_err(|_| InvalidName::WorkerId)?;
        Ok(Self(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_takes_only_legal_steps() {
        use IllegalStep::{HasEnded, HasStarted, NotOurs};
        let (us, them) = (WorkerId::random(), WorkerId::random());
        let queued = || BuildState::Queued;
        let claimed = |by| BuildState::Claimed { by };
        let started = |by| BuildState::Started { by };
        let ended = || BuildState::Ended(Outcome::Passed);
        for (step, expected) in [
            (queued().claim(us), Ok(claimed(us))),
            (claimed(us).claim(us), Ok(claimed(us))),
            (started(us).claim(us), Ok(started(us))),
            (claimed(them).claim(us), Err(NotOurs)),
            (started(them).claim(us), Err(NotOurs)),
            (ended().claim(us), Err(HasEnded)),
            (claimed(them).take_over(us), Ok(claimed(us))),
            (started(them).take_over(us), Ok(started(us))),
            (ended().take_over(us), Err(HasEnded)),
            (claimed(us).release(us), Ok(queued())),
            (claimed(them).release(us), Err(NotOurs)),
            (started(us).release(us), Err(HasStarted)),
            (claimed(us).start(us), Ok(started(us))),
            (started(us).start(us), Ok(started(us))),
            (claimed(them).start(us), Err(NotOurs)),
            (queued().start(us), Err(NotOurs)),
            (ended().start(us), Err(HasEnded)),
            (started(us).did_not_start(us), Ok(claimed(us))),
            (started(them).did_not_start(us), Err(NotOurs)),
            (claimed(us).end(us, Outcome::Passed), Ok(ended())),
            (started(us).end(us, Outcome::Passed), Ok(ended())),
            (started(them).end(us, Outcome::Passed), Err(NotOurs)),
            (ended().end(us, Outcome::Passed), Err(HasEnded)),
        ] {
            assert_eq!(step, expected);
        }
    }

    #[test]
    fn only_a_started_hook_may_have_begun() {
        let by = WorkerId::random();
        assert!(!BuildState::Queued.may_have_begun());
        assert!(!BuildState::Claimed { by }.may_have_begun());
        assert!(BuildState::Started { by }.may_have_begun());
    }
}
