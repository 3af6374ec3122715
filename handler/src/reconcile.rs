//! Pushes that never came in: found at the forge, decided on as the webhook would have, and queued.
//!
//! They need no proof: the forge's API is asked over TLS, with our token, for what it tried to send
//! us. A push that is queued a second time, here or by another process, does no harm: it asks for the
//! same build, and the ledger knows that build.

use std::collections::HashSet;
use std::time::Duration;

use shared::build::{BuildId, BuildRequest};
use shared::config::{ReconcileConfig, RepoPattern, WebhookAddress};
use shared::forge::{FailureStreak, Forge, LookupError};
use shared::message::Message;
use shared::queue::Queue;
use tokio::time::timeout;

use crate::decide::{Decision, Policy, decide};
use crate::forge::{Delivery, Payload};

/// Knows where to look for missed pushes, what they lead to, and where to queue them.
#[derive(Debug)]
pub struct Reconciler {
    forge: Forge,
    address: WebhookAddress,
    repos: Vec<RepoPattern>,
    policy: Policy,
    status_context: String,
    queue: Queue,
    /// The pushes that this process has queued or ignored, as long as the forge lists them.
    dealt_with: HashSet<BuildId>,
}

/// What one look at the forge came to.
#[derive(Debug, Default)]
pub struct Findings {
    /// What was queued.
    pub queued: Vec<BuildRequest>,
    /// Why not all could be looked at, or queued.
    pub problems: Vec<anyhow::Error>,
    /// Every build that the forge told of.
    missed: HashSet<BuildId>,
}

impl Reconciler {
    /// Prepares the client.
    ///
    /// # Errors
    /// A setting cannot be used; the message names it.
    pub fn new(config: &ReconcileConfig, queue: Queue) -> anyhow::Result<Self> {
        let ReconcileConfig {
            address, webhook, ..
        } = config;
        Ok(Self {
            forge: Forge::github(&config.github)?,
            address: address.clone(),
            repos: webhook.repos.patterns().to_vec(),
            policy: Policy::new(webhook),
            status_context: webhook.status_context.clone(),
            queue,
            dealt_with: HashSet::new(),
        })
    }

    /// Looks once, and queues what was missed and is not `known`.
    pub async fn look(&mut self, known: impl AsyncFn(BuildId) -> anyhow::Result<bool>) -> Findings {
        let mut findings = Findings::default();
        self.look_at_all(known, &mut findings).await;
        findings
    }

    /// Looks as [`look`](Self::look) does, for this time at most. What was not queued by then waits for the next look.
    pub async fn look_within(
        &mut self,
        time: Duration,
        known: impl AsyncFn(BuildId) -> anyhow::Result<bool>,
    ) -> Findings {
        let mut findings = Findings::default();
        let look = self.look_at_all(known, &mut findings);
        let in_time = timeout(time, look).await.is_ok();
        if !in_time && findings.queued.is_empty() {
            let problem =
                anyhow::anyhow!("the time was over: GitHub, the queue or the store answers slowly");
            findings.problems.push(problem);
        }
        findings
    }

    async fn look_at_all(
        &mut self,
        known: impl AsyncFn(BuildId) -> anyhow::Result<bool>,
        findings: &mut Findings,
    ) {
        for repos in self.repos.clone() {
            // Boxed, or futures would lie deeper in one another than the compiler looks.
            if let Err(problem) = Box::pin(self.look_at(&repos, &known, findings)).await {
                findings.problems.push(problem);
            }
        }
        if findings.problems.is_empty() {
            self.dealt_with.retain(|id| findings.missed.contains(id));
        }
    }

    async fn look_at(
        &mut self,
        repos: &RepoPattern,
        known: impl AsyncFn(BuildId) -> anyhow::Result<bool>,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let mut streak = FailureStreak::default();
        for push in self.forge.missed_pushes(repos, &self.address).await? {
            let delivery = Delivery::of_missed_push(self.forge.kind(), &push.delivery);
            let id = delivery.build_id(&self.status_context);
            findings.missed.insert(id);
            if self.dealt_with.contains(&id) || known(id).await? {
                continue;
            }
            match self.forge.payload(&push).await {
                Ok(payload) => {
                    streak.succeeded();
                    self.deal_with(id, delivery, &payload, findings).await?;
                }
                Err(error) => {
                    let is_away = streak.failed(&error);
                    findings.problems.push(LookupError::from(error).into());
                    if is_away {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    async fn deal_with(
        &mut self,
        id: BuildId,
        delivery: Delivery<'_>,
        payload: &str,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        match decided(id, delivery, payload, &self.policy) {
            Ok(request) => findings.queued.push(self.enqueue(request).await?),
            Err(why) => tracing::info!(delivery = delivery.id, why, "ignored a missed push"),
        }
        self.dealt_with.insert(id);
        Ok(())
    }

    async fn enqueue(&self, request: BuildRequest) -> anyhow::Result<BuildRequest> {
        let message = Message::V2(request);
        self.queue.send(&message).await?;
        let request = message.into_request();
        let BuildRequest {
            id, repo, revision, ..
        } = &request;
        tracing::info!(build = %id, %repo, %revision, "queued a missed push");
        Ok(request)
    }
}

impl Findings {
    /// All problems in one line; empty if there was none.
    pub fn problems(&self) -> String {
        let lines = self.problems.iter().map(|problem| format!("{problem:#}"));
        lines.collect::<Vec<_>>().join("; ")
    }

    /// The time after which the forge wants to be asked again, if it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        let problems = self.problems.iter();
        let lookups = problems.filter_map(|problem| problem.downcast_ref());
        lookups.filter_map(LookupError::retry_after).max()
    }
}

/// The build that a push asks for, or why it leads to none, in one line.
fn decided(
    id: BuildId,
    delivery: Delivery<'_>,
    payload: &str,
    policy: &Policy,
) -> Result<BuildRequest, String> {
    let payload = Payload::of_forge(delivery, payload);
    let event = payload.event().map_err(|why| why.to_string())?;
    match decide(&event, policy, delivery.forge, id) {
        Ok(Decision::Build(request)) => Ok(request),
        Ok(Decision::Ignore(why)) => Err(why.to_string()),
        Err(why) => Err(why.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use shared::build::ForgeKind;
    use shared::config::WebhookConfig;

    use super::*;

    const GUID: &str = "72d3162e-cc78-11e3-81ab-4c9367dc0958";

    fn decided(git_ref: &str, repo: &str) -> Result<BuildRequest, String> {
        let policy = Policy::new(&WebhookConfig {
            token: None,
            secrets: vec![],
            repos: "octo/hello".parse().expect("a repository"),
            branches: "main".parse().expect("a branch"),
            status_context: "ci".to_owned(),
        });
        let sha = "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c";
        let json = format!(
            r#"{{"ref":"{git_ref}","after":"{sha}","repository":{{"full_name":"{repo}"}}}}"#
        );
        let delivery = Delivery::of_missed_push(ForgeKind::Github, GUID);
        super::decided(delivery.build_id("ci"), delivery, &json, &policy)
    }

    #[test]
    fn a_missed_push_asks_for_the_build_of_its_delivery() {
        let request = decided("refs/heads/main", "octo/hello").expect("a build");
        assert_eq!(request.id, BuildId::from_delivery(GUID, "ci"));
        assert_eq!(request.ref_name(), Some("main"));
    }

    #[test]
    fn what_the_webhook_would_not_build_is_not_built() {
        let why = |git_ref, repo| decided(git_ref, repo).expect_err("no build");
        let lines = [
            why("refs/heads/x", "octo/hello"),
            why("refs/heads/main", "octo/other"),
            why("x", "octo/hello"),
            why("\"", "octo/hello"),
        ];
        insta::assert_snapshot!(lines.join("\n"), @r#"
        x does not build: see BRANCHES
        octo/other is not configured here
        not a valid branch, tag or commit name
        the payload cannot be used: expected `,` or `}` at line 1 column 10
        "#);
    }
}
