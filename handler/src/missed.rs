//! Pushes that never came in, read from GitHub's API instead.
//!
//! They need no proof: the API is asked over TLS, with our token, for what it tried to send us.

use shared::build::{BuildId, BuildRequest, ForgeKind};
use shared::config::WebhookConfig;

use crate::decide::{Decision, Policy, decide};
use crate::forge::{Delivery, Payload};

/// Decides about missed pushes as the webhook would have.
#[derive(Debug)]
pub struct MissedDeliveries {
    policy: Policy,
    status_context: String,
}

/// Why a push leads to no build, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoBuild(String);

impl MissedDeliveries {
    /// Decides by the webhook's settings.
    pub fn new(config: &WebhookConfig) -> Self {
        Self {
            policy: Policy::new(config),
            status_context: config.status_context.clone(),
        }
    }

    /// The build that the push of this delivery asks for. It is the same as if it had come in.
    pub fn build_id(&self, guid: &str) -> BuildId {
        BuildId::from_delivery(guid, &self.status_context)
    }

    /// What the push of this delivery asks for.
    ///
    /// # Errors
    /// The push is to be ignored, or cannot be used.
    pub fn decide(&self, guid: &str, json: &str) -> Result<BuildRequest, NoBuild> {
        let no_build = |why: &dyn ToString| NoBuild(why.to_string());
        let delivery = Delivery::of_missed_push(ForgeKind::Github, guid);
        let payload = Payload::of_forge(delivery, json);
        let event = payload.event().map_err(|why| no_build(&why))?;
        let id = delivery.build_id(&self.status_context);
        match decide(&event, &self.policy, delivery.forge, id) {
            Ok(Decision::Build(request)) => Ok(request),
            Ok(Decision::Ignore(why)) => Err(no_build(&why)),
            Err(why) => Err(no_build(&why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUID: &str = "72d3162e-cc78-11e3-81ab-4c9367dc0958";

    fn decided(git_ref: &str, repo: &str) -> Result<BuildRequest, String> {
        let missed = MissedDeliveries::new(&WebhookConfig {
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
        missed.decide(GUID, &json).map_err(|why| why.to_string())
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
