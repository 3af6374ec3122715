//! How a build ended, and why one that runs must end: the one source of what is reported.

use serde::{Deserialize, Serialize};

use super::CommitSha;

/// How a build ended. Every accepted push ends in exactly one of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The hook ran to its end and said so with exit code 0.
    Passed,
    /// The hook ran to its end with another exit code.
    Failed {
        /// The hook's exit code.
        exit_code: i64,
    },
    /// The hook was stopped after `BUILD_TIMEOUT`.
    TimedOut {
        /// The timeout in seconds.
        timeout_s: u64,
    },
    /// The kernel killed a process of the build container for want of memory.
    OutOfMemory {
        /// The container's limit, if it had one; else the host had no memory left.
        limit_bytes: Option<u64>,
    },
    /// A person ended it.
    Cancelled {
        /// The person's name, as the service knows it.
        by: String,
    },
    /// A newer commit of its branch ended it, or kept it from being begun.
    Superseded {
        /// The newer commit.
        by: CommitSha,
    },
    /// Something other than the hook broke.
    Error(BuildError),
}

/// What broke, in one line fit for the commit's author.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum BuildError {
    /// The container ended, and the wrapper around the hook left no mark of the hook's end.
    #[error("the hook was interrupted (container exit code {exit_code}, no end mark)")]
    NoEndMark {
        /// The exit code that the engine reports.
        exit_code: i64,
    },
    /// The container ended, and the directory is gone in which the wrapper leaves its marks.
    #[error(
        "the hook's end is not proven (container exit code {exit_code}, /.compose-ci was removed)"
    )]
    MarksRemoved {
        /// The exit code that the engine reports.
        exit_code: i64,
    },
    /// The hook was started, and its container is gone.
    #[error("interrupted: the hook was started, and its container is gone")]
    ContainerGone,
    /// The container went away while its hook ran.
    #[error("the build container was removed by somebody else")]
    ContainerRemoved,
    /// The engine was killed at the moment at which it started the hook.
    #[error("interrupted: the Docker engine was killed as it began")]
    EngineKilled,
    /// The engine went away while the hook ran, and did not come back in time.
    #[error("the Docker engine went away during the build")]
    EngineLost,
    /// The worker that had started the hook is gone, and with it whatever the hook came to.
    #[error("worker lost: the hook was started by another worker, which has gone away")]
    WorkerLost,
    /// A disk is full.
    #[error("{0}")]
    DiskFull(String),
    /// The log could not be written.
    #[error("the log of the build cannot be written")]
    LogLost,
    /// Another container has the name of the build.
    #[error("another container is named {name}")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The image to build in is not there.
    #[error("the build image {image} is not there and cannot be pulled")]
    NoImage {
        /// The image's name.
        image: String,
    },
    /// The forge refuses what a build needs of it.
    #[error("{0}")]
    Forge(String),
    /// The commit's tarball is not acceptable.
    #[error("{0}")]
    Tarball(String),
    /// The engine refuses what a build needs of it.
    #[error("{0}")]
    Engine(String),
    /// Every attempt to begin the build failed.
    #[error("gave up after {attempts} attempts ({last})")]
    GaveUp {
        /// How many attempts were made.
        attempts: u32,
        /// What the last one met.
        last: String,
    },
    /// Read from a record of an older version, which knew no more than the words.
    #[error("{0}")]
    Reason(String),
}

/// Why a build that runs must end before its hook does. The first reason counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// Its time is over.
    Deadline,
    /// A newer commit of its branch makes it pointless.
    Superseded {
        /// The newer commit.
        by: CommitSha,
    },
    /// A person asked for it.
    Cancelled {
        /// The person's name, as the service knows it.
        by: String,
    },
    /// The worker's right to the build is about to end, or has ended.
    LeaseLost,
    /// A disk is full.
    DiskFull {
        /// What is lacking where, in one line fit for the commit's author.
        lack: String,
    },
    /// The worker stops. The hook goes on; the next start adopts it.
    Shutdown,
}

/// The state of a commit, as forges tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CommitState {
    /// Its build is under way.
    Pending,
    /// It passed.
    Success,
    /// The hook failed, ran out of time or out of memory.
    Failure,
    /// Something other than the hook ended it.
    Error,
}

impl Outcome {
    /// The outcome with the words changed that an engine or a forge may have put into it.
    pub fn map_words(self, change: impl FnOnce(&str) -> String) -> Self {
        match self {
            Self::Error(error) => Self::Error(error.map_words(change)),
            own => own,
        }
    }

    /// The state of a commit whose build ended so.
    pub fn commit_state(&self) -> CommitState {
        match self {
            Self::Passed => CommitState::Success,
            Self::Failed { .. } | Self::TimedOut { .. } | Self::OutOfMemory { .. } => {
                CommitState::Failure
            }
            Self::Cancelled { .. } | Self::Superseded { .. } | Self::Error(_) => CommitState::Error,
        }
    }

    /// Whether the hook came to its own end.
    pub fn is_the_hooks_own(&self) -> bool {
        matches!(self, Self::Passed | Self::Failed { .. })
    }

    /// Whether it says something about the branch.
    pub fn is_verdict_on_branch(&self) -> bool {
        !matches!(self, Self::Superseded { .. } | Self::Cancelled { .. })
    }

    /// Whether the build passed.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Passed)
    }
}

impl From<BuildError> for Outcome {
    fn from(error: BuildError) -> Self {
        Self::Error(error)
    }
}

impl BuildError {
    fn map_words(self, change: impl FnOnce(&str) -> String) -> Self {
        match self {
            Self::DiskFull(words) => Self::DiskFull(change(&words)),
            Self::Forge(words) => Self::Forge(change(&words)),
            Self::Tarball(words) => Self::Tarball(change(&words)),
            Self::Engine(words) => Self::Engine(change(&words)),
            Self::GaveUp { attempts, last } => Self::GaveUp {
                attempts,
                last: change(&last),
            },
            Self::Reason(words) => Self::Reason(change(&words)),
            own => own,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_record_of_an_error_is_read() {
        let read: Outcome = serde_json::from_str(r#"{"error":{"reason":"words"}}"#).expect("read");
        assert_eq!(read, BuildError::Reason("words".into()).into());
        let read: Outcome = serde_json::from_str(r#""passed""#).expect("read");
        assert_eq!(read, Outcome::Passed);
    }

    #[test]
    fn every_outcome_survives_its_record() {
        for outcome in [
            Outcome::Failed { exit_code: 3 },
            Outcome::Cancelled { by: "jane".into() },
            BuildError::WorkerLost.into(),
            BuildError::NoEndMark { exit_code: 0 }.into(),
        ] {
            let json = serde_json::to_string(&outcome).expect("plain data");
            let read: Outcome = serde_json::from_str(&json).expect("read");
            assert_eq!(read, outcome, "{json}");
        }
    }
}
