//! What the fake GitHub was told and asked, in order.

use std::time::SystemTime;

use serde::{Deserialize, Serialize, Serializer};

/// The four states that GitHub knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CommitState {
    /// Not decided yet.
    Pending,
    /// Good.
    Success,
    /// The commit's fault.
    Failure,
    /// Not the commit's fault.
    Error,
}

/// A commit status that was stored.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Counted from 1, in the order of arrival.
    pub id: usize,
    /// `owner/name`.
    pub repo: String,
    /// The full id of the commit.
    pub sha: String,
    /// As posted.
    pub state: CommitState,
    /// Where to read more.
    pub target_url: Option<String>,
    /// At most 140 characters.
    pub description: Option<String>,
    /// Whose status it is; `default` when the client names none.
    pub context: String,
    /// When it arrived.
    #[serde(serialize_with = "rfc3339")]
    pub created_at: SystemTime,
}

/// Which of GitHub's two servers was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// api.github.com.
    Api,
    /// codeload.github.com, which serves the tarballs and must never see the token.
    Codeload,
}

/// A request that arrived, answered or not.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where.
    pub host: Host,
    /// In capitals.
    pub method: String,
    /// As sent, still percent-encoded, without the query.
    pub path: String,
    /// Whether there was an `Authorization` header, right or wrong.
    pub had_authorization: bool,
}

/// Everything since the start.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) statuses: Vec<Status>,
    pub(super) requests: Vec<Request>,
}

impl Record {
    /// The statuses of one commit, oldest first.
    pub(super) fn of(&self, sha: &str) -> Vec<Status> {
        self.statuses
            .iter()
            .filter(|status| status.sha == sha)
            .cloned()
            .collect()
    }
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*time))
}
