//! What travels through the queue: a tagged, versioned enum of small fields.
//!
//! A worker reads every version that a handler ever wrote, so a variant is never changed once it
//! was released; a new need is a new variant. Each version has its JSON in the tests.

use serde::{Deserialize, Serialize};

use crate::build::BuildRequest;

/// One message of the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "version")]
pub enum Message {
    /// Build one commit.
    #[serde(rename = "1")]
    V1(BuildRequest),
}

impl Message {
    /// The JSON that is stored in the queue, under 2 KiB.
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("a message has only string keys and string values")
    }

    /// The version, as it stands in the JSON.
    pub fn version(&self) -> &'static str {
        match self {
            Self::V1(_) => "1",
        }
    }

    /// Reads a message of any version.
    ///
    /// # Errors
    /// The body is no JSON, of an unknown version, or carries a malformed name.
    pub fn decode(body: &str) -> Result<Self, UnreadableMessage> {
        serde_json::from_str(body).map_err(|error| UnreadableMessage(error.to_string()))
    }

    /// What the message asks for, whatever its version.
    pub fn into_request(self) -> BuildRequest {
        match self {
            Self::V1(request) => request,
        }
    }

    /// What the message asks for, whatever its version.
    pub fn request(&self) -> &BuildRequest {
        match self {
            Self::V1(request) => request,
        }
    }
}

/// A message that no version of this program wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unreadable message: {0}")]
pub struct UnreadableMessage(String);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::{BuildId, GitRef, Revision};

    const V1_PUSH: &str = r#"{"version":"1","id":"67e55044-10b1-426f-9247-bb680e5fe0c8","repo":"octo/hello","revision":{"commit":"0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c"},"git_ref":{"branch":"main"}}"#;
    const V1_MANUAL: &str = r#"{"version":"1","id":"67e55044-10b1-426f-9247-bb680e5fe0c8","repo":"octo/hello","revision":{"name":"v1.0"}}"#;

    fn request(revision: &str, git_ref: Option<&str>) -> Message {
        Message::V1(BuildRequest {
            id: "67e55044-10b1-426f-9247-bb680e5fe0c8"
                .parse()
                .expect("uuid"),
            repo: "octo/hello".parse().expect("repo"),
            revision: revision.parse().expect("revision"),
            git_ref: git_ref.map(|text| text.parse().expect("ref")),
        })
    }

    #[test]
    fn version_1_is_written_and_read_as_ever() {
        let sha = "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c";
        for (golden, message) in [
            (V1_PUSH, request(sha, Some("refs/heads/main"))),
            (V1_MANUAL, request("v1.0", None)),
        ] {
            assert_eq!(message.encode(), golden);
            assert!(golden.contains(&format!(r#""version":"{}""#, message.version())));
            assert_eq!(Message::decode(golden), Ok(message));
        }
    }

    #[test]
    fn the_largest_message_is_under_2_kib() {
        let name = "\"".repeat(255);
        let message = Message::V1(BuildRequest {
            id: BuildId::random(),
            repo: format!("{0}/{0}", "x".repeat(100)).parse().expect("repo"),
            revision: Revision::Name(name.parse().expect("name")),
            git_ref: Some(GitRef::Branch(name.parse().expect("name"))),
        });
        assert!(message.encode().len() < 2048, "{}", message.encode().len());
    }

    #[test]
    fn what_no_version_wrote_is_unreadable() {
        let hostile = V1_PUSH.replace("octo/hello", "../../etc");
        for body in ["", "{}", r#"{"version":"99"}"#, "\u{0}", hostile.as_str()] {
            assert!(Message::decode(body).is_err(), "{body}");
        }
    }
}
