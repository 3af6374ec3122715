//! The ledger's entry of a build, and the steps that change it: the same in a row of SQLite and in an
//! object of the store.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::build::{BuildId, BuildRequest, BuildState, CommitSha, IllegalStep, Outcome, WorkerId};
use crate::message::Message;
use crate::process::millis;

/// The time for which a worker's claim to a build lasts that is not renewed. A worker may be cut off from the
/// store, or be restarted, for nearly that long without harm.
pub const CLAIM: Duration = Duration::from_secs(5 * 60);

/// The age at which a claimed build is over, if not here, then at another worker: SQS keeps no
/// message for more than 14 days.
pub(super) const OVER_AFTER: Duration = Duration::from_secs(15 * 24 * 60 * 60);

/// An event of a build that notifiers report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A worker works on it.
    Began,
    /// It has ended.
    Ended,
}

/// One build, as all workers know it. Times are in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The message that asked for it, of any version.
    #[serde(rename = "request")]
    pub(super) message: Message,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) commit: Option<CommitSha>,
    pub(super) state: BuildState,
    pub(super) claimed_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) started_ms: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ended_ms: Option<i64>,
    /// The worker that took the last step.
    pub(super) writer: WorkerId,
    /// The notifiers that this worker owes a report of the build's end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) owes: Vec<String>,
}

/// The result of a step.
#[derive(Debug)]
pub(super) enum Step {
    /// It was taken.
    Taken(Entry),
    /// It cannot be taken from where the build stands.
    Refused {
        why: IllegalStep,
        stands: Entry,
        /// The time since that was written.
        age: Duration,
    },
}

impl Step {
    /// Returns where the build stands now.
    pub(super) fn stands(&self) -> &Entry {
        match self {
            Self::Taken(entry) => entry,
            Self::Refused { stands, .. } => stands,
        }
    }
}

impl Entry {
    /// Makes the entry of a build that no worker has claimed yet.
    pub(super) fn new(request: BuildRequest, writer: WorkerId) -> Self {
        Self {
            commit: request.commit().cloned(),
            message: Message::V2(request),
            state: BuildState::Queued,
            claimed_ms: now_ms(),
            started_ms: None,
            ended_ms: None,
            writer,
            owes: Vec::new(),
        }
    }

    pub(super) fn id(&self) -> BuildId {
        self.message.request().id
    }

    /// Claims the build for a worker, or takes it over from one that has not written for too long.
    pub(super) fn claim(self, by: WorkerId, age: Duration) -> Result<Self, IllegalStep> {
        let state = match age < CLAIM {
            true => self.state.claim(by)?,
            false => self.state.take_over(by)?,
        };
        Ok(Self {
            state,
            writer: by,
            ..self
        })
    }

    /// Confirms that the build is still its worker's.
    pub(super) fn renew(self, by: WorkerId) -> Result<Self, IllegalStep> {
        Ok(Self {
            state: self.state.renew(by)?,
            writer: by,
            ..self
        })
    }

    /// Gives the build back before its hook was started.
    pub(super) fn release(self, by: WorkerId) -> Result<Self, IllegalStep> {
        Ok(Self {
            state: self.state.release(by)?,
            writer: by,
            ..self
        })
    }

    /// Adds the commit that the name in the request means.
    pub(super) fn set_commit(self, by: WorkerId, commit: CommitSha) -> Result<Self, IllegalStep> {
        let commit = Some(commit);
        Ok(Self {
            commit,
            ..self.renew(by)?
        })
    }

    /// Marks the hook as started, or as about to be.
    pub(super) fn start(self, by: WorkerId) -> Result<Self, IllegalStep> {
        Ok(Self {
            state: self.state.start(by)?,
            started_ms: self.started_ms.or_else(|| Some(now_ms())),
            writer: by,
            ..self
        })
    }

    /// Takes the mark back: the engine has proof that the hook has not begun.
    pub(super) fn did_not_start(self, by: WorkerId) -> Result<Self, IllegalStep> {
        Ok(Self {
            state: self.state.did_not_start(by)?,
            started_ms: None,
            writer: by,
            ..self
        })
    }

    /// Ends the build, whose hook ran for this long, and owes reports of that.
    pub(super) fn end(
        self,
        by: WorkerId,
        outcome: Outcome,
        ran_for: Option<Duration>,
        owes: Vec<String>,
    ) -> Result<Self, IllegalStep> {
        let hooks_end = self.started_ms.zip(ran_for);
        let hooks_end = hooks_end.map(|(began, time)| began.saturating_add(millis(time)));
        Ok(Self {
            state: self.state.end(by, outcome)?,
            ended_ms: Some(hooks_end.map_or_else(now_ms, |end| end.min(now_ms()))),
            writer: by,
            owes,
            ..self
        })
    }
}

pub(super) fn now_ms() -> i64 {
    to_ms(SystemTime::now())
}

/// Milliseconds since 1970.
pub(super) fn to_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    millis(since.unwrap_or_default())
}

pub(super) fn from_ms(ms: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms.unsigned_abs())
}

/// The time before which a claimed build is over.
pub(super) fn over_ms() -> i64 {
    to_ms(SystemTime::now() - OVER_AFTER)
}
