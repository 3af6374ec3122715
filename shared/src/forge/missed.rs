//! Pushes that a forge could not deliver, and why they cannot be found.

use std::time::Duration;

use super::ForgeError;

/// After so many failures in a row it is not the push that is at fault.
const FAILURES_MAX: u32 = 3;

/// A push that never reached the webhook.
#[derive(Debug)]
pub struct MissedPush {
    /// What all attempts to deliver it have in common, and the build is known by.
    pub delivery: String,
    /// Where the API tells what was sent.
    pub(super) path: String,
}

/// Why missed pushes cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The token may not read webhooks.
    #[error(
        "GitHub answered {status} to the webhooks of {owner}: GITHUB_TOKEN needs the permission to \
         read them ({permission})"
    )]
    NoRight {
        /// Whose webhooks they are.
        owner: String,
        /// The answer's status code.
        status: u16,
        /// What the forge calls that permission.
        permission: &'static str,
    },
    /// None of this owner's webhooks leads to us.
    #[error("no active webhook of {0} leads to WEBHOOK_URL")]
    NoWebhook(String),
    /// The forge did not answer, or did not do this.
    #[error(transparent)]
    Forge(#[from] ForgeError),
}

impl LookupError {
    /// The time after which the forge wants to be asked again, if it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Forge(error) => error.retry_after(),
            Self::NoRight { .. } | Self::NoWebhook(_) => None,
        }
    }
}

/// Tells a push that cannot be had from a forge that is away, while one push after the other is dealt
/// with: the first must not keep the others back for three days, and the second is not asked for each
/// of hundreds.
#[derive(Debug, Default)]
pub struct FailureStreak(u32);

impl FailureStreak {
    /// Ends the streak: a push was had.
    pub fn succeeded(&mut self) {
        self.0 = 0;
    }

    /// Counts a push that could not be had. True if the others are no better off.
    pub fn failed(&mut self, error: &ForgeError) -> bool {
        self.0 += 1;
        error.retry_after().is_some() || self.0 >= FAILURES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_that_cannot_be_had_does_not_keep_the_others_back_and_a_forge_that_is_away_does() {
        let failed = |retry_after| ForgeError::Unavailable {
            what: "a delivery".to_owned(),
            reason: "it answered 500".to_owned(),
            retry_after,
            ambiguous: false,
        };
        let mut streak = FailureStreak::default();
        assert!(!streak.failed(&failed(None)) && !streak.failed(&failed(None)));
        streak.succeeded();
        assert!(!streak.failed(&failed(None)) && !streak.failed(&failed(None)));
        assert!(streak.failed(&failed(None)));

        let limited = failed(Some(Duration::from_secs(60)));
        assert!(FailureStreak::default().failed(&limited));
    }
}
