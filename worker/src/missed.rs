//! Pushes that GitHub could not deliver. It does not try again by itself, but remembers them.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use shared::build::BuildId;
use shared::config::{ReconcileConfig, RepoPattern, WebhookAddress};
use shared::github::{Attempt, Github, GithubError, HookOwner};

use crate::record::{RecordError, Records};

/// How long GitHub remembers deliveries.
/// <https://docs.github.com/en/webhooks/testing-and-troubleshooting-webhooks/viewing-webhook-deliveries>
const REMEMBERED: Duration = Duration::from_secs(3 * 24 * 60 * 60);

/// Finds pushes that our webhook has missed, each of them until it was dealt with.
#[derive(Debug)]
pub struct MissedPushes {
    github: Github,
    records: Records,
    address: WebhookAddress,
    owners: Vec<HookOwner>,
}

/// A push that never reached the webhook.
#[derive(Debug)]
pub struct MissedPush {
    owner: HookOwner,
    hook: u64,
    attempt: u64,
    /// The delivery's GUID, which makes the build's id.
    pub guid: String,
}

/// Why missed pushes cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The token may not.
    #[error(
        "GitHub answered {status} to the webhooks of {owner}: GITHUB_TOKEN needs the permission to \
         read them ({})", permission(.owner)
    )]
    NoRight {
        /// Whose webhooks they are.
        owner: HookOwner,
        /// The answer's status code.
        status: u16,
    },
    /// Nothing there leads to us.
    #[error("no active webhook of {0} leads to WEBHOOK_URL")]
    NoWebhook(HookOwner),
    /// GitHub did not answer, or did not do this.
    #[error(transparent)]
    Github(#[from] GithubError),
    /// It is not known which of them were dealt with.
    #[error(transparent)]
    Records(#[from] RecordError),
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
    /// Prepares the client. The records are those of the worker that `DATA_DIR` belongs to.
    ///
    /// # Errors
    /// A setting cannot be used; the message names it.
    pub fn new(config: &ReconcileConfig, records: Records) -> anyhow::Result<Self> {
        let patterns = config.webhook.repos.patterns().iter();
        Ok(Self {
            github: Github::new(&config.github)?,
            records,
            address: config.address.clone(),
            owners: patterns.map(owner).collect(),
        })
    }

    /// Where webhooks of ours may be.
    pub fn owners(&self) -> &[HookOwner] {
        &self.owners
    }

    /// The pushes that this owner's webhook has missed and that were not dealt with, oldest first.
    ///
    /// # Errors
    /// See [`LookupError`].
    pub async fn find(&self, owner: &HookOwner) -> Result<Vec<MissedPush>, LookupError> {
        let since = SystemTime::now() - REMEMBERED;
        self.records.forget_dealt_with(since).await?;
        let mut missed = Vec::new();
        for hook in self.our_hooks(owner).await? {
            let attempts = self.github.attempts(owner, hook, since).await?;
            for Attempt { id, guid, .. } in missed_pushes(attempts) {
                if !self.records.is_dealt_with(build(&guid)).await? {
                    missed.push(MissedPush {
                        owner: owner.clone(),
                        hook,
                        attempt: id,
                        guid,
                    });
                }
            }
        }
        Ok(missed)
    }

    /// The JSON of the push.
    ///
    /// # Errors
    /// See [`GithubError`].
    pub async fn payload(&self, push: &MissedPush) -> Result<String, GithubError> {
        let payload = self
            .github
            .sent_payload(&push.owner, push.hook, push.attempt);
        Ok(payload.await?.to_string())
    }

    /// Notes that the push is queued, or will never be.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub async fn dealt_with(&self, push: &MissedPush) -> Result<(), RecordError> {
        self.records.deal_with(build(&push.guid)).await
    }

    /// Other services have webhooks, too, and what those miss is not for us.
    async fn our_hooks(&self, owner: &HookOwner) -> Result<Vec<u64>, LookupError> {
        let hooks = self.github.hooks(owner).await;
        let hooks = hooks.map_err(|error| no_right(error, owner))?;
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

fn build(guid: &str) -> BuildId {
    BuildId::from_delivery(guid)
}

fn no_right(error: GithubError, owner: &HookOwner) -> LookupError {
    match error {
        // GitHub hides what a token may not see.
        GithubError::Refused {
            status: status @ (403 | 404),
            ..
        } => LookupError::NoRight {
            owner: owner.clone(),
            status,
        },
        error => error.into(),
    }
}

fn permission(owner: &HookOwner) -> &'static str {
    match owner {
        HookOwner::Repo(_) => "\"Webhooks: read\", or read:repo_hook of a classic token",
        HookOwner::Organization(_) => {
            "the organization's \"Webhooks: read\", or admin:org_hook of a classic token"
        }
    }
}

/// Of these attempts, newest first, one for each push that no attempt has delivered, oldest first.
fn missed_pushes(attempts: Vec<Attempt>) -> Vec<Attempt> {
    let delivered = attempts.iter().filter(|attempt| attempt.succeeded());
    let mut known: HashSet<_> = delivered.map(|attempt| attempt.guid.clone()).collect();
    let oldest_first = attempts.into_iter().rev();
    oldest_first
        .filter(|attempt| attempt.event == "push" && known.insert(attempt.guid.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(id: u64, guid: &str, status_code: u32, event: &str) -> Attempt {
        Attempt {
            id,
            guid: guid.to_owned(),
            delivered_at: SystemTime::UNIX_EPOCH + Duration::from_secs(id),
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
        ];
        let missed: Vec<_> = missed_pushes(attempts).iter().map(|a| a.id).collect();
        assert_eq!(missed, [2, 5, 6]);
    }

    #[test]
    fn a_token_without_the_right_is_told_which_one_it_needs() {
        let refused = |owner: &HookOwner, status| {
            let what = "the webhooks".to_owned();
            let hint = "";
            no_right(GithubError::Refused { what, status, hint }, owner).to_string()
        };
        let repo = HookOwner::Repo("octo/hello".parse().expect("a name"));
        let organization = HookOwner::Organization("octo".to_owned());
        insta::assert_snapshot!(refused(&repo, 404), @r#"GitHub answered 404 to the webhooks of octo/hello: GITHUB_TOKEN needs the permission to read them ("Webhooks: read", or read:repo_hook of a classic token)"#);
        insta::assert_snapshot!(refused(&organization, 403), @r#"GitHub answered 403 to the webhooks of the organization octo: GITHUB_TOKEN needs the permission to read them (the organization's "Webhooks: read", or admin:org_hook of a classic token)"#);
        insta::assert_snapshot!(refused(&repo, 401), @"GitHub answered 401 to the webhooks");
    }
}
