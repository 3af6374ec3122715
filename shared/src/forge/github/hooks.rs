//! Webhooks, and what became of their deliveries. GitHub remembers those of the last three days.

use std::fmt;
use std::time::SystemTime;

use http::HeaderMap;
use http::header::LINK;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use url::Url;

use super::{ForgeError, Github};
use crate::build::RepoName;
use crate::forge::patience::retried;

/// The largest page that GitHub serves.
const PER_PAGE: usize = 100;
/// Pages of deliveries that are read at most: 10,000 deliveries, or one every 26 s for three days.
const PAGES_MAX: usize = 100;

/// Whose a webhook is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HookOwner {
    /// A repository's.
    Repo(RepoName),
    /// An organization's, for all of its repositories.
    Organization(String),
}

/// A webhook.
#[derive(Debug, Deserialize)]
pub(super) struct Hook {
    /// GitHub's number of it.
    pub(super) id: u64,
    /// Whether anything is delivered to it.
    pub(super) active: bool,
    config: HookConfig,
}

#[derive(Debug, Deserialize)]
struct HookConfig {
    url: Option<String>,
}

/// One attempt to deliver one event.
#[derive(Debug, Deserialize)]
pub(super) struct Attempt {
    /// GitHub's number of it.
    pub(super) id: u64,
    /// What all attempts to deliver the same event have in common.
    pub(super) guid: String,
    /// When it was made.
    #[serde(deserialize_with = "rfc3339")]
    pub(super) delivered_at: SystemTime,
    /// What the webhook answered; a 5xx, or nothing that HTTP knows, if it could not be reached.
    pub(super) status_code: u32,
    /// The event's name.
    pub(super) event: String,
}

impl Attempt {
    /// True if the webhook has taken it.
    pub(super) fn succeeded(&self) -> bool {
        (200..300).contains(&self.status_code)
    }
}

/// One attempt with all that was sent.
#[derive(Debug, Deserialize)]
struct WholeAttempt {
    request: SentRequest,
}

#[derive(Debug, Deserialize)]
struct SentRequest {
    payload: Value,
}

impl Hook {
    /// The URL that it delivers to. It may carry a token.
    pub(super) fn url(&self) -> Option<&str> {
        self.config.url.as_deref()
    }
}

impl HookOwner {
    /// The path of an attempt to deliver to one of its webhooks.
    pub(super) fn path_of_attempt(&self, hook: u64, attempt: u64) -> String {
        format!("{}/{hook}/deliveries/{attempt}", self.path())
    }

    fn path(&self) -> String {
        match self {
            Self::Repo(repo) => format!("/repos/{repo}/hooks"),
            Self::Organization(name) => format!("/orgs/{name}/hooks"),
        }
    }
}

impl fmt::Display for HookOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repo(repo) => repo.fmt(f),
            Self::Organization(name) => write!(f, "the organization {name}"),
        }
    }
}

impl Github {
    /// Lists all webhooks of this owner; GitHub allows 20 for one event.
    pub(super) async fn hooks(&self, owner: &HookOwner) -> Result<Vec<Hook>, ForgeError> {
        let path = format!("{}?per_page={PER_PAGE}", owner.path());
        let (hooks, _) = self
            .read(&path, &format!("the webhooks of {owner}"))
            .await?;
        Ok(hooks)
    }

    /// Lists the attempts to deliver to a webhook since this time, the newest first.
    pub(super) async fn attempts(
        &self,
        owner: &HookOwner,
        hook: u64,
        since: SystemTime,
    ) -> Result<Vec<Attempt>, ForgeError> {
        let what = format!("the deliveries of a webhook of {owner}");
        let first_page = format!("{}/{hook}/deliveries?per_page={PER_PAGE}", owner.path());
        let mut attempts = Vec::new();
        let mut page = first_page.clone();
        for _ in 0..PAGES_MAX {
            let (newer, headers): (Vec<Attempt>, _) = self.read(&page, &what).await?;
            let reaches_back = newer.last().is_some_and(|last| last.delivered_at < since);
            attempts.extend(newer);
            match next_cursor(&headers) {
                Some(cursor) if !reaches_back => page = format!("{first_page}&cursor={cursor}"),
                _ => break,
            }
        }
        attempts.retain(|attempt| attempt.delivered_at >= since);
        Ok(attempts)
    }

    /// Reads the JSON that was sent in the attempt at this path.
    pub(super) async fn sent_payload(&self, path: &str, what: &str) -> Result<Value, ForgeError> {
        let (attempt, _): (WholeAttempt, _) = self.read(path, what).await?;
        Ok(attempt.request.payload)
    }

    /// Reads an answer and its headers; tries again a few times before GitHub is unavailable.
    async fn read<T: DeserializeOwned>(
        &self,
        path: &str,
        what: &str,
    ) -> Result<(T, HeaderMap), ForgeError> {
        retried(|| self.json_with_headers(path, what)).await
    }
}

/// Where the next page begins, escaped as GitHub has escaped it. Only that is taken from the link:
/// it may lead to a name of GitHub that is not ours, and the token goes nowhere else.
fn next_cursor(headers: &HeaderMap) -> Option<String> {
    let links = headers.get(LINK)?.to_str().ok()?;
    let next = links
        .split(',')
        .find(|link| link.contains(r#"rel="next""#))?;
    let (_, rest) = next.split_once('<')?;
    let (url, _) = rest.split_once('>')?;
    let url = Url::parse(url).ok()?;
    let pairs = url.query()?.split('&');
    let cursor = pairs
        .filter_map(|pair| pair.strip_prefix("cursor="))
        .next()?;
    Some(cursor.to_owned())
}

fn rfc3339<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_rfc3339_weak(text.trim_end_matches('Z')).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_next_page_is_asked_for_at_our_own_address() {
        let links = r#"<https://api.github.com/repositories/1/hooks/2/deliveries?per_page=100&cursor=v1_120%3D%3D>; rel="next", <https://x.example/?cursor=v0>; rel="prev""#;
        let headers = HeaderMap::from_iter([(LINK, links.parse().expect("a value"))]);
        assert_eq!(next_cursor(&headers).as_deref(), Some("v1_120%3D%3D"));
        let links = r#"<https://x.example/?cursor=v0>; rel="prev""#;
        let headers = HeaderMap::from_iter([(LINK, links.parse().expect("a value"))]);
        assert_eq!(next_cursor(&headers), None);
    }

    #[test]
    fn an_attempt_is_read_as_github_tells_it() {
        // The example of GitHub's documentation of a delivery that failed.
        let json = r#"{"id":12345678,"guid":"0b989ba4-242f-11e5-81e1-c7b6966d2516",
            "delivered_at":"2019-06-03T00:57:16Z","redelivery":false,"duration":0.27,
            "status":"failed to connect","status_code":502,"event":"issues","action":"opened",
            "installation_id":null,"repository_id":1,"throttled_at":null}"#;
        let attempt: Attempt = serde_json::from_str(json).expect("an attempt");
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_559_523_436);
        assert_eq!(attempt.delivered_at, at);
        assert!(!attempt.succeeded());
    }
}
