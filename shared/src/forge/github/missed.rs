//! Pushes that GitHub could not deliver. It does not try again by itself, but remembers them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::{Duration, SystemTime};

use super::{Attempt, ForgeError, Github, HookOwner};
use crate::config::{LookupConfig, RepoPattern, WebhookAddress};

/// How long GitHub remembers deliveries.
/// <https://docs.github.com/en/webhooks/testing-and-troubleshooting-webhooks/viewing-webhook-deliveries>
pub const REMEMBERED: Duration = Duration::from_secs(3 * 24 * 60 * 60);

/// Finds pushes that our webhook has missed, by what GitHub remembers.
#[derive(Debug)]
pub struct MissedPushes {
    github: Github,
    address: WebhookAddress,
    owners: Vec<HookOwner>,
}

/// A push that never reached the webhook.
#[derive(Debug)]
pub struct MissedPush {
    owner: HookOwner,
    hook: u64,
    /// The delivery's GUID, by which the build is known.
    pub guid: String,
    /// The first attempt to deliver it that GitHub remembers.
    pub first: Attempt,
    /// The last one, which may be the first.
    pub last: Attempt,
}

/// Why missed pushes cannot be found, or cannot be delivered again.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The token may not.
    #[error(
        "GitHub answered {status} to the webhooks of {owner}: GITHUB_TOKEN needs the permission to \
         {access} ({})", permission(.owner, .access)
    )]
    NoRight {
        /// Whose webhooks they are.
        owner: HookOwner,
        /// What was asked of them.
        access: Access,
        /// The answer's status code.
        status: u16,
    },
    /// Nothing there leads to us.
    #[error("no active webhook of {0} leads to WEBHOOK_URL")]
    NoWebhook(HookOwner),
    /// GitHub did not answer, or did not do this.
    #[error(transparent)]
    Github(#[from] ForgeError),
}

/// What a token may do with webhooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Look at them and at their deliveries.
    Read,
    /// Ask for a delivery.
    Write,
}

impl LookupError {
    /// When GitHub wants to be asked again, if it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Github(error) => error.retry_after(),
            _ => None,
        }
    }
}

impl MissedPushes {
    /// Prepares the client.
    ///
    /// # Errors
    /// A setting cannot be used; the message names it.
    pub fn new(config: &LookupConfig) -> anyhow::Result<Self> {
        let patterns = config.repos.patterns().iter();
        Ok(Self {
            github: Github::new(&config.github)?,
            address: config.address.clone(),
            owners: patterns.map(owner).collect(),
        })
    }

    /// Where webhooks of ours may be.
    pub fn owners(&self) -> &[HookOwner] {
        &self.owners
    }

    /// The pushes that this owner's webhook has missed, oldest first.
    ///
    /// # Errors
    /// See [`LookupError`].
    pub async fn find(&self, owner: &HookOwner) -> Result<Vec<MissedPush>, LookupError> {
        let since = SystemTime::now() - REMEMBERED;
        let mut missed = Vec::new();
        for hook in self.our_hooks(owner).await? {
            let attempts = self.github.attempts(owner, hook, since).await?;
            let pushes = missed_pushes(attempts).into_iter();
            missed.extend(pushes.map(|(first, last)| MissedPush {
                owner: owner.clone(),
                hook,
                guid: first.guid.clone(),
                first,
                last,
            }));
        }
        Ok(missed)
    }

    /// The JSON of the push.
    ///
    /// # Errors
    /// See [`LookupError`].
    pub async fn payload(&self, push: &MissedPush) -> Result<String, LookupError> {
        let payload = self
            .github
            .sent_payload(&push.owner, push.hook, push.first.id);
        Ok(payload.await?.to_string())
    }

    /// Has GitHub deliver the push again. It says yes before it does so.
    ///
    /// # Errors
    /// See [`LookupError`]; asked once.
    pub async fn redeliver(&self, push: &MissedPush) -> Result<(), LookupError> {
        let MissedPush { owner, hook, .. } = push;
        let asked = self.github.redeliver(owner, *hook, push.last.id).await;
        asked.map_err(|error| no_right(error, owner, Access::Write))
    }

    /// Other services have webhooks, too, and what those miss is not for us.
    async fn our_hooks(&self, owner: &HookOwner) -> Result<Vec<u64>, LookupError> {
        let hooks = self.github.hooks(owner).await;
        let hooks = hooks.map_err(|error| no_right(error, owner, Access::Read))?;
        let is_ours = |url: &str| self.address.leads_here(url);
        let ours = hooks
            .iter()
            .filter(|hook| hook.active && hook.url().is_some_and(is_ours));
        let ours: Vec<_> = ours.map(|hook| hook.id).collect();
        if ours.is_empty() {
            return Err(LookupError::NoWebhook(owner.clone()));
        }
        Ok(ours)
    }
}

fn owner(pattern: &RepoPattern) -> HookOwner {
    match pattern {
        RepoPattern::One(repo) => HookOwner::Repo(repo.clone()),
        RepoPattern::OwnedBy(name) => HookOwner::Organization(name.clone()),
    }
}

fn no_right(error: ForgeError, owner: &HookOwner, access: Access) -> LookupError {
    match error {
        // GitHub hides what a token may not see.
        ForgeError::Refused {
            status: status @ (403 | 404),
            ..
        } => LookupError::NoRight {
            owner: owner.clone(),
            access,
            status,
        },
        error => error.into(),
    }
}

/// After so many failures in a row it is not the push that is at fault.
const FAILURES_MAX: u32 = 3;

/// Tells a push that cannot be had from a GitHub that is away, while one push after the other is dealt
/// with: the first must not keep the others back for three days, and the second is not asked for each
/// of hundreds.
#[derive(Debug, Default)]
pub struct FailureStreak {
    failures: u32,
    succeeded: bool,
}

impl FailureStreak {
    /// Notes that a push was dealt with.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.succeeded = true;
    }

    /// Notes that a push could not be had. True if the others are no better off.
    pub fn failed(&mut self, error: &LookupError) -> bool {
        self.failures += 1;
        let has_no_right = matches!(error, LookupError::NoRight { .. }) && !self.succeeded;
        has_no_right || error.retry_after().is_some() || self.failures >= FAILURES_MAX
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read them",
            Self::Write => "have them deliver again",
        })
    }
}

fn permission(owner: &HookOwner, access: &Access) -> &'static str {
    match (owner, access) {
        (HookOwner::Repo(_), Access::Read) => {
            "\"Webhooks: read\", or read:repo_hook of a classic token"
        }
        (HookOwner::Repo(_), Access::Write) => {
            "\"Webhooks: write\", or write:repo_hook of a classic token"
        }
        (HookOwner::Organization(_), Access::Read) => {
            "the organization's \"Webhooks: read\", or admin:org_hook of a classic token"
        }
        (HookOwner::Organization(_), Access::Write) => {
            "the organization's \"Webhooks: write\", or admin:org_hook of a classic token"
        }
    }
}

/// Of these attempts, newest first, the first and the last for each push that none of them has
/// delivered, the oldest push first.
fn missed_pushes(attempts: Vec<Attempt>) -> Vec<(Attempt, Attempt)> {
    let delivered = attempts.iter().filter(|attempt| attempt.succeeded());
    let delivered: HashSet<_> = delivered.map(|attempt| attempt.guid.clone()).collect();
    let mut pushes: Vec<(Attempt, Attempt)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for attempt in attempts.into_iter().rev() {
        if attempt.event != "push" || delivered.contains(&attempt.guid) {
            continue;
        }
        match places.get(&attempt.guid) {
            Some(&place) => pushes[place].1 = attempt,
            None => {
                places.insert(attempt.guid.clone(), pushes.len());
                pushes.push((attempt.clone(), attempt));
            }
        }
    }
    pushes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(id: u64, guid: &str, status_code: u32, event: &str) -> Attempt {
        Attempt {
            id,
            guid: guid.to_owned(),
            delivered_at: SystemTime::UNIX_EPOCH + Duration::from_secs(id),
            redelivery: false,
            status_code,
            event: event.to_owned(),
        }
    }

    #[test]
    fn a_push_is_missed_if_no_attempt_has_delivered_it() {
        let attempts = vec![
            attempt(9, "again", 503, "push"),
            attempt(8, "later", 202, "push"),
            attempt(7, "issue", 502, "issues"),
            attempt(6, "again", 401, "push"),
            attempt(5, "unreachable", 0, "push"),
            attempt(4, "later", 502, "push"),
            attempt(3, "ignored", 200, "push"),
            attempt(2, "late", 504, "push"),
            attempt(1, "again", 504, "push"),
        ];
        let missed = missed_pushes(attempts).into_iter();
        let missed: Vec<_> = missed.map(|(first, last)| (first.id, last.id)).collect();
        assert_eq!(missed, [(1, 9), (2, 2), (5, 5)]);
    }

    #[test]
    fn a_token_without_the_right_is_told_which_one_it_needs() {
        let refused = |owner: &HookOwner, access, status| {
            let what = "the webhooks".to_owned();
            let hint = "";
            let refused = ForgeError::Refused { what, status, hint };
            no_right(refused, owner, access).to_string()
        };
        let repo = HookOwner::Repo("octo/hello".parse().expect("a name"));
        let organization = HookOwner::Organization("octo".to_owned());
        let lines = [
            refused(&repo, Access::Read, 404),
            refused(&repo, Access::Write, 403),
            refused(&organization, Access::Read, 403),
            refused(&organization, Access::Write, 404),
            refused(&repo, Access::Read, 401),
        ];
        insta::assert_snapshot!(lines.join("\n"), @r#"
        GitHub answered 404 to the webhooks of octo/hello: GITHUB_TOKEN needs the permission to read them ("Webhooks: read", or read:repo_hook of a classic token)
        GitHub answered 403 to the webhooks of octo/hello: GITHUB_TOKEN needs the permission to have them deliver again ("Webhooks: write", or write:repo_hook of a classic token)
        GitHub answered 403 to the webhooks of the organization octo: GITHUB_TOKEN needs the permission to read them (the organization's "Webhooks: read", or admin:org_hook of a classic token)
        GitHub answered 404 to the webhooks of the organization octo: GITHUB_TOKEN needs the permission to have them deliver again (the organization's "Webhooks: write", or admin:org_hook of a classic token)
        GitHub answered 401 to the webhooks
        "#);
    }

    #[test]
    fn a_push_that_cannot_be_had_does_not_keep_the_others_back_and_a_github_that_is_away_does() {
        let failed = |retry_after| {
            LookupError::from(ForgeError::Unavailable {
                what: "a delivery".to_owned(),
                reason: "it answered 500".to_owned(),
                retry_after,
                ambiguous: false,
            })
        };
        let no_right = || LookupError::NoRight {
            owner: HookOwner::Organization("octo".parse().expect("a name")),
            access: Access::Write,
            status: 404,
        };
        let mut streak = FailureStreak::default();
        assert!(!streak.failed(&failed(None)) && !streak.failed(&failed(None)));
        streak.succeeded();
        assert!(!streak.failed(&failed(None)) && !streak.failed(&no_right()));
        assert!(streak.failed(&failed(None)));

        let at_once = |error| FailureStreak::default().failed(&error);
        assert!(at_once(failed(Some(Duration::from_secs(60)))) && at_once(no_right()));
    }
}
