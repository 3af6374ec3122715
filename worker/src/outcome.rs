//! How a build ended: the one source of what is reported.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::build::CommitSha;
use shared::forge::ForgeError;

use crate::disk::DiskFull;
use crate::engine::EngineError;

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
    /// A newer commit of its branch ended it, or kept it from being begun.
    Superseded {
        /// The newer commit.
        by: CommitSha,
    },
    /// Something other than the hook broke.
    Error {
        /// What broke, in one line fit for the commit's author.
        reason: String,
    },
}

/// Why a hook could not be started. Whether another attempt may help is chosen where the cause is
/// known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// It will be there next time as well: the build ends with an error. Fit for the commit's
    /// author.
    #[error("{0}")]
    Permanent(String),
    /// Infrastructure broke; nothing of the hook has run, so the commit is tried again.
    #[error("{0}")]
    Transient(String),
    /// A disk is full. If nothing can be removed that nobody needs, the build ends with an error.
    /// Fit for the commit's author.
    #[error("{0}")]
    DiskFull(String),
    /// Another worker has claimed the build, or ended it.
    #[error("the build is another worker's")]
    Elsewhere {
        /// When to see what became of it; never, if that worker will tell for sure.
        again_in: Option<Duration>,
    },
}

impl From<ForgeError> for Obstacle {
    fn from(error: ForgeError) -> Self {
        match error.is_transient() {
            true => Self::Transient(error.to_string()),
            false => Self::Permanent(error.to_string()),
        }
    }
}

impl From<EngineError> for Obstacle {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Gone(_) | EngineError::Failed(_) => Self::Transient(error.to_string()),
            // Somebody else has removed or made something in between, such as a `docker prune`.
            EngineError::NotFound(_) | EngineError::Conflict(_) => {
                Self::Transient(error.to_string())
            }
            EngineError::NoSpace(_) => Self::DiskFull(error.to_string()),
            _ => Self::Permanent(error.to_string()),
        }
    }
}

impl From<DiskFull> for Obstacle {
    fn from(full: DiskFull) -> Self {
        Self::DiskFull(full.to_string())
    }
}

/// What is known of a build container that came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// Whether the wrapper left the end mark of this very exit code.
    pub marked: bool,
    /// The exit code that the engine reports.
    pub exit_code: i64,
    /// Whether the engine saw the kernel kill a process of the container for want of memory.
    pub oom_killed: bool,
    /// Whether this worker stopped the container at the end of its time.
    pub timed_out: bool,
}

impl Outcome {
    /// Decides what an ended container means.
    ///
    /// Success needs the end mark: an engine that is stopped in the middle of a build reports
    /// exit code 0 as well. A build that lost a process to the OOM killer is never a success,
    /// even where the hook went on and ended with 0.
    pub fn of(ending: Ending, timeout: Duration, memory_bytes: Option<u64>) -> Self {
        match ending {
            Ending {
                timed_out: true, ..
            } => Self::TimedOut {
                timeout_s: timeout.as_secs(),
            },
            Ending {
                oom_killed: true, ..
            } => Self::OutOfMemory {
                limit_bytes: memory_bytes,
            },
            Ending {
                marked: false,
                exit_code,
                ..
            } => Self::error(format!(
                "the hook was interrupted (container exit code {exit_code}, no end mark)"
            )),
            Ending { exit_code: 0, .. } => Self::Passed,
            Ending { exit_code, .. } => Self::Failed { exit_code },
        }
    }

    /// An error with this reason.
    pub fn error(reason: impl Into<String>) -> Self {
        Self::Error {
            reason: reason.into(),
        }
    }

    /// Whether the hook came to its own end.
    pub(crate) fn is_the_hooks_own(&self) -> bool {
        matches!(self, Self::Passed | Self::Failed { .. })
    }

    /// Whether it tells how the branch is doing.
    pub fn is_verdict_on_branch(&self) -> bool {
        !matches!(self, Self::Superseded { .. })
    }

    /// Whether the build passed.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: Ending = Ending {
        marked: true,
        exit_code: 0,
        oom_killed: false,
        timed_out: false,
    };

    fn outcome(ending: Ending) -> Outcome {
        Outcome::of(ending, Duration::from_secs(60), Some(512))
    }

    #[test]
    fn the_exit_code_decides_between_passed_and_failed() {
        assert_eq!(outcome(CLEAN), Outcome::Passed);
        let failed = Ending {
            exit_code: 3,
            ..CLEAN
        };
        assert_eq!(outcome(failed), Outcome::Failed { exit_code: 3 });
    }

    #[test]
    fn exit_code_0_without_an_end_mark_is_an_error() {
        let interrupted = outcome(Ending {
            marked: false,
            ..CLEAN
        });
        assert!(
            matches!(interrupted, Outcome::Error { .. }),
            "{interrupted:?}"
        );
    }

    #[test]
    fn out_of_memory_is_no_success_even_with_exit_code_0() {
        let outcome = outcome(Ending {
            oom_killed: true,
            ..CLEAN
        });
        assert_eq!(
            outcome,
            Outcome::OutOfMemory {
                limit_bytes: Some(512)
            }
        );
    }

    #[test]
    fn a_stopped_hook_timed_out_whatever_it_answered() {
        let stopped = Ending {
            timed_out: true,
            ..CLEAN
        };
        assert_eq!(outcome(stopped), Outcome::TimedOut { timeout_s: 60 });
    }

    #[test]
    fn an_engine_that_may_do_it_later_is_asked_again() {
        let why = || "because".to_owned();
        for (error, again) in [
            (EngineError::Gone(why()), true),
            (EngineError::Failed(why()), true),
            (EngineError::Refused(why()), false),
            (EngineError::NotFound(why()), true),
            (EngineError::Conflict(why()), true),
        ] {
            let obstacle = Obstacle::from(error);
            assert_eq!(
                matches!(obstacle, Obstacle::Transient(_)),
                again,
                "{obstacle}"
            );
        }
    }
}
