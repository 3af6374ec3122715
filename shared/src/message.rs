//! What travels through the queue: a tagged, versioned enum of small fields.
//!
//! A worker reads every version that a handler ever wrote, so a variant is never changed once it
//! was released; a new need is a new variant. Each version has its JSON in the tests.

use serde::{Deserialize, Serialize};

use crate::build::{BuildId, BuildRequest, ForgeKind, GitRef, RepoName, Revision};

/// One message of the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "version")]
pub enum Message {
    /// Build one commit of GitHub's.
    #[serde(rename = "1", with = "RequestV1")]
    V1(BuildRequest),
    /// Build one commit of the forge that is named.
    #[serde(rename = "2")]
    V2(BuildRequest),
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
            Self::V2(_) => "2",
        }
    }

    /// Reads a message of any version.
    ///
    /// # Errors
    /// The body is no JSON, of an unknown version, or carries a malformed name.
    pub fn decode(body: &str) -> Result<Self, UnreadableMessage> {
        // The error repeats parts of the body, and stands in one line of the service's log.
        serde_json::from_str(body)
            .map_err(|error| UnreadableMessage(error.to_string().replace(char::is_control, " ")))
    }

    /// What the message asks for, whatever its version.
    pub fn into_request(self) -> BuildRequest {
        match self {
            Self::V1(request) | Self::V2(request) => request,
        }
    }

    /// What the message asks for, whatever its version.
    pub fn request(&self) -> &BuildRequest {
        match self {
            Self::V1(request) | Self::V2(request) => request,
        }
    }
}

/// A request as version 1 holds it: every one was for GitHub.
#[derive(Serialize, Deserialize)]
#[serde(remote = "BuildRequest")]
struct RequestV1 {
    #[serde(skip, default = "github")]
    forge: ForgeKind,
    id: BuildId,
    repo: RepoName,
    revision: Revision,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    git_ref: Option<GitRef>,
}

fn github() -> ForgeKind {
    ForgeKind::Github
}

/// A message that no version of this program wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unreadable message: {0}")]
pub struct UnreadableMessage(String);

#[cfg(test)]
mod tests {
    use super::*;

    const V1_PUSH: &str = r#"{"version":"1","id":"67e55044-10b1-426f-9247-bb680e5fe0c8","repo":"octo/hello","revision":{"commit":"0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c"},"git_ref":{"branch":"main"}}"#;
    const V1_MANUAL: &str = r#"{"version":"1","id":"67e55044-10b1-426f-9247-bb680e5fe0c8","repo":"octo/hello","revision":{"name":"v1.0"}}"#;
    const V2_PUSH: &str = r#"{"version":"2","forge":"github","id":"67e55044-10b1-426f-9247-bb680e5fe0c8","repo":"octo/hello","revision":{"commit":"0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c"},"git_ref":{"branch":"main"}}"#;
    const V2_MANUAL: &str = r#"{"version":"2","forge":"github","id":"67e55044-10b1-426f-9247-bb680e5fe0c8","repo":"octo/hello","revision":{"name":"v1.0"}}"#;
    const SHA: &str = "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c";

    fn request(revision: &str, git_ref: Option<&str>) -> BuildRequest {
        BuildRequest {
            forge: ForgeKind::Github,
            id: "67e55044-10b1-426f-9247-bb680e5fe0c8"
                .parse()
                .expect("uuid"),
            repo: "octo/hello".parse().expect("repo"),
            revision: revision.parse().expect("revision"),
            git_ref: git_ref.map(|text| text.parse().expect("ref")),
        }
    }

    fn assert_is_written_as(golden: &str, message: &Message) {
        assert_eq!(message.encode(), golden);
        assert!(golden.contains(&format!(r#""version":"{}""#, message.version())));
        assert_eq!(Message::decode(golden).as_ref(), Ok(message));
    }

    #[test]
    fn version_1_is_written_and_read_as_ever() {
        let (push, manual) = (request(SHA, Some("refs/heads/main")), request("v1.0", None));
        assert_is_written_as(V1_PUSH, &Message::V1(push));
        assert_is_written_as(V1_MANUAL, &Message::V1(manual));
    }

    #[test]
    fn version_2_names_the_forge() {
        let (push, manual) = (request(SHA, Some("refs/heads/main")), request("v1.0", None));
        assert_is_written_as(V2_PUSH, &Message::V2(push));
        assert_is_written_as(V2_MANUAL, &Message::V2(manual));
    }

    #[test]
    fn the_largest_message_is_under_2_kib() {
        let name = "\"".repeat(255);
        let message = Message::V2(BuildRequest {
            forge: ForgeKind::Github,
            id: BuildId::random(),
            repo: format!("{0}/{0}/{0}", "x".repeat(84))
                .parse()
                .expect("repo"),
            revision: Revision::Name(name.parse().expect("name")),
            git_ref: Some(GitRef::Branch(name.parse().expect("name"))),
        });
        assert!(message.encode().len() < 2048, "{}", message.encode().len());
    }

    #[test]
    fn what_no_version_wrote_is_unreadable() {
        let hostile = V2_PUSH.replace("octo/hello", "../../etc");
        let of_nowhere = V2_PUSH.replace("github", "nowhere");
        for body in [
            "",
            "{}",
            r#"{"version":"99"}"#,
            "\u{0}",
            &hostile,
            &of_nowhere,
        ] {
            assert!(Message::decode(body).is_err(), "{body}");
        }
    }

    #[test]
    fn unreadable_message_is_explained_in_one_line() {
        let error = Message::decode(r#"{"version":"\n9\u0000"}"#).expect_err("unknown");
        insta::assert_snapshot!(error, @"unreadable message: unknown variant ` 9 `, expected `1` or `2` at line 1 column 22");
    }
}
