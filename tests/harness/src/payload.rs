//! Webhook payloads as GitHub sends them, and their signature.

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

/// GitHub's own example of a push to a branch; a test changes what it is about.
const REAL_PUSH: &str = include_str!("../../data/webhooks/push/5.json");

/// What a push is about; everything else of its payload is GitHub's example.
#[derive(Clone, Debug)]
pub struct Push<'a> {
    /// `owner/name`.
    pub repo: &'a str,
    /// The full name, such as `refs/heads/main`.
    pub reference: &'a str,
    /// The commit that the reference points to after the push.
    pub after: &'a str,
    /// The head commit's message.
    pub message: &'a str,
}

impl Push<'_> {
    /// The payload, to be sent as it is or to be changed further.
    pub fn payload(&self) -> Value {
        let mut payload: Value =
            serde_json::from_str(REAL_PUSH).expect("GitHub's example is valid JSON");
        let (owner, name) = self.repo.split_once('/').expect("repo is owner/name");
        payload["ref"] = json!(self.reference);
        payload["after"] = json!(self.after);
        payload["head_commit"]["id"] = json!(self.after);
        payload["head_commit"]["message"] = json!(self.message);
        payload["commits"] = json!([payload["head_commit"]]);
        payload["repository"]["name"] = json!(name);
        payload["repository"]["full_name"] = json!(self.repo);
        payload["repository"]["owner"]["login"] = json!(owner);
        payload["repository"]["owner"]["name"] = json!(owner);
        payload
    }
}

/// The value of `X-Hub-Signature-256` for this body: `sha256=` and 64 hex digits.
pub fn sign(secret: &str, body: &[u8]) -> String {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(body);
    let digest = mac.finalize().into_bytes();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_one_of_github_s_documentation() {
        // docs.github.com, "Validating webhook deliveries", "Testing the webhook payload validation".
        assert_eq!(
            sign("It's a Secret to Everybody", b"Hello, World!"),
            "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        );
    }
}
