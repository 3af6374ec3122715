//! Why a forge did not do what it was asked for.

use std::time::Duration;

/// Why a forge did not do what it was asked for. The text is fit for the commit's author.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForgeError {
    /// It will not do it, however often it is asked.
    #[error("GitHub answered {status} to {what}{hint}")]
    Refused {
        /// What was asked.
        what: String,
        /// The answer's status code.
        status: u16,
        /// What that code usually means here.
        hint: &'static str,
    },
    /// It gave a link that cannot be followed.
    #[error("the link that GitHub gave for {what} cannot be followed: {reason}")]
    BadLink {
        /// What was asked.
        what: String,
        /// The problem of the link.
        reason: String,
    },
    /// It may do it later.
    #[error("GitHub is not available for {what}: {reason}")]
    Unavailable {
        /// What was asked.
        what: String,
        /// The answer, or the lack of one.
        reason: String,
        /// When the forge wants to be asked again.
        retry_after: Option<Duration>,
        /// Whether the request may have been carried out all the same.
        ambiguous: bool,
    },
}

impl ForgeError {
    /// True if asking again can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// The time after which the forge wants to be asked again, if it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } => *retry_after,
            Self::Refused { .. } | Self::BadLink { .. } => None,
        }
    }

    /// True if the request may have been carried out all the same.
    pub(super) fn is_ambiguous(&self) -> bool {
        matches!(
            self,
            Self::Unavailable {
                ambiguous: true,
                ..
            }
        )
    }
}
