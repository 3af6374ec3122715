//! The result of a run: the end of the build, or the reason why the hook could not be started, or not be
//! followed to its end.

use std::time::Duration;

use shared::build::{BuildError, Outcome, StopReason};

use crate::engine::EngineError;

/// The end of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// How it ended.
    pub outcome: Outcome,
    /// How long the hook ran, if that is known.
    pub ran_for: Option<Duration>,
}

impl<T: Into<Outcome>> From<T> for Ended {
    fn from(outcome: T) -> Self {
        Self {
            outcome: outcome.into(),
            ran_for: None,
        }
    }
}

/// Why a build has no outcome. Retry or fail is chosen where the cause is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// Another attempt would meet it as well: the build ends with this error.
    #[error(transparent)]
    Final(BuildError),
    /// Infrastructure broke; nothing of the hook has run, so the build may be tried again.
    #[error("{0}")]
    Transient(String),
    /// The engine's disk is full. Unless somebody makes room, the build ends with an error of these
    /// words.
    #[error("{0}")]
    DiskFull(String),
    /// The build image is not on the engine: the caller pulls it and calls again.
    #[error("the build image is not on the engine")]
    NoImage,
    /// The hook was to start before, and the engine has proof that it has not begun: the caller records
    /// that and calls again.
    #[error("the hook has not begun")]
    NotBegun,
    /// The hook was told to begin, and the engine has proof that it has not: the caller records that, and
    /// may call again.
    #[error("{0}")]
    NotStarted(String),
    /// Somebody else removed the container before the hook was told to begin, and so did not begin: the
    /// caller may call again.
    #[error("{0}")]
    Removed(String),
    /// The caller failed to record a step, and so the step was not taken. That says nothing of the build.
    #[error("{0}")]
    Unrecorded(String),
    /// The tarball broke off on its way: the caller may try again.
    #[error("the download of the tarball broke off")]
    SourceBroke,
    /// The lease was lost, or the worker stops: no outcome is this worker's to tell.
    #[error("stopped: {0:?}")]
    Stopped(StopReason),
}

impl From<EngineError> for Obstacle {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Gone(_) | EngineError::Failed(_) => Self::Transient(error.to_string()),
            // Somebody else has made something in between.
            EngineError::Conflict(_) => Self::Transient(error.to_string()),
            EngineError::NotFound(_) => Self::Removed(error.to_string()),
            EngineError::NoSpace(_) => Self::DiskFull(error.to_string()),
            _ => Self::Final(BuildError::Engine(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_may_do_it_later_is_asked_again() {
        let why = || "because".to_owned();
        for (error, again) in [
            (EngineError::Gone(why()), true),
            (EngineError::Failed(why()), true),
            (EngineError::Refused(why()), false),
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
