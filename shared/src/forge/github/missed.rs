//! Pushes that GitHub could not deliver. It does not try again by itself, but remembers them.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use super::hooks::{Attempt, HookOwner};
use super::{ForgeError, Github};
use crate::config::{RepoPattern, WebhookAddress};
use crate::forge::{LookupError, MissedPush};

/// How long GitHub remembers deliveries.
/// <https://docs.github.com/en/webhooks/testing-and-troubleshooting-webhooks/viewing-webhook-deliveries>
const REMEMBERED: Duration = Duration::from_secs(3 * 24 * 60 * 60);

impl Github {
    pub(in crate::forge) async fn missed_pushes(
        &self,
        repos: &RepoPattern,
        address: &WebhookAddress,
    ) -> Result<Vec<MissedPush>, LookupError> {
        let owner = &owner(repos);
        let since = SystemTime::now() - REMEMBERED;
        let mut missed = Vec::new();
        for hook in self.our_hooks(owner, address).await? {
            let attempts = self.attempts(owner, hook, since).await?;
            missed.extend(undelivered(attempts).into_iter().map(|first| MissedPush {
                path: owner.path_of_attempt(hook, first.id),
                delivery: first.guid,
            }));
        }
        Ok(missed)
    }

    pub(in crate::forge) async fn payload(&self, push: &MissedPush) -> Result<String, ForgeError> {
        let what = format!("the delivery {}", push.delivery);
        let payload = self.sent_payload(&push.path, &what).await?;
        Ok(payload.to_string())
    }

    /// Other services have webhooks, too, and what those miss is not for us.
    async fn our_hooks(
        &self,
        owner: &HookOwner,
        address: &WebhookAddress,
    ) -> Result<Vec<u64>, LookupError> {
        let hooks = self.hooks(owner).await;
        let hooks = hooks.map_err(|error| no_right(error, owner))?;
        let is_ours = |url: &str| address.leads_here(url);
        let ours = hooks
            .iter()
            .filter(|hook| hook.active && hook.url().is_some_and(is_ours));
        let ours: Vec<_> = ours.map(|hook| hook.id).collect();
        if ours.is_empty() {
            return Err(LookupError::NoWebhook(owner.to_string()));
        }
        Ok(ours)
    }
}

fn owner(repos: &RepoPattern) -> HookOwner {
    match repos {
        RepoPattern::One(repo) => HookOwner::Repo(repo.clone()),
        RepoPattern::OwnedBy(name) => HookOwner::Organization(name.clone()),
    }
}

fn no_right(error: ForgeError, owner: &HookOwner) -> LookupError {
    match error {
        // GitHub hides what a token may not see.
        ForgeError::Refused {
            status: status @ (403 | 404),
            ..
        } => LookupError::NoRight {
            owner: owner.to_string(),
            status,
            permission: permission(owner),
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

/// Of these attempts, newest first, the first for each push that none of them has delivered, the
/// oldest push first.
fn undelivered(attempts: Vec<Attempt>) -> Vec<Attempt> {
    let delivered = attempts.iter().filter(|attempt| attempt.succeeded());
    let mut dealt_with: HashSet<_> = delivered.map(|attempt| attempt.guid.clone()).collect();
    let mut pushes: Vec<_> = attempts.into_iter().rev().collect();
    pushes.retain(|attempt| attempt.event == "push" && dealt_with.insert(attempt.guid.clone()));
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
        let missed = undelivered(attempts).into_iter();
        let missed: Vec<_> = missed.map(|first| first.id).collect();
        assert_eq!(missed, [1, 2, 5]);
    }

    #[test]
    fn a_token_without_the_right_is_told_which_one_it_needs() {
        let refused = |owner: &HookOwner, status| {
            let what = "the webhooks".to_owned();
            let hint = "";
            let refused = ForgeError::Refused { what, status, hint };
            no_right(refused, owner).to_string()
        };
        let repo = HookOwner::Repo("octo/hello".parse().expect("a name"));
        let organization = HookOwner::Organization("octo".to_owned());
        let lines = [
            refused(&repo, 404),
            refused(&organization, 403),
            refused(&repo, 401),
        ];
        insta::assert_snapshot!(lines.join("\n"), @r#"
        GitHub answered 404 to the webhooks of octo/hello: GITHUB_TOKEN needs the permission to read them ("Webhooks: read", or read:repo_hook of a classic token)
        GitHub answered 403 to the webhooks of the organization octo: GITHUB_TOKEN needs the permission to read them (the organization's "Webhooks: read", or admin:org_hook of a classic token)
        GitHub answered 401 to the webhooks
        "#);
    }
}
