//! GitHub, as far as a build needs it: commit statuses, tarballs, which commit a name means, and the
//! pushes that it could not deliver.

mod hooks;
mod missed;

use std::time::{Duration, SystemTime};

use crate::build::{CommitSha, RefName, RepoName};
use crate::config::{ConfigError, GithubConfig};
use anyhow::Context;
use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use http::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, RETRY_AFTER};
use http::{HeaderValue, Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, RequestBuilder, Response, redirect};
use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use hooks::{Attempt, Hook, HookOwner};
pub use missed::{Access, LookupError, MissedPush, MissedPushes, REMEMBERED};

/// GitHub itself gives up on a request after 10 s.
const API_DEADLINE: Duration = Duration::from_secs(15);
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// A tarball may take long as a whole; silence of this length means that it is not coming.
const SILENCE_DEADLINE: Duration = Duration::from_secs(30);
/// What GitHub asks to wait after a secondary limit that names no time.
/// <https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api>
const SECONDARY_LIMIT_WAIT: Duration = Duration::from_secs(60);
/// Longer than this nobody waits inside one attempt to build; the commit goes back to the queue.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);

/// Everything in a path segment but what RFC 3986 calls unreserved.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A client of GitHub's API.
#[derive(Debug, Clone)]
pub struct Github {
    client: Client,
    api_url: String,
    context: String,
}

/// The state of a commit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The build is under way.
    Pending,
    /// It passed.
    Success,
    /// The hook failed, ran out of time or out of memory.
    Failure,
    /// Something other than the hook broke.
    Error,
}

/// What is said about a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitStatus {
    /// The colour of it.
    pub state: State,
    /// One line, 140 characters at most.
    pub description: Option<String>,
    /// Where the log is.
    pub target_url: Option<String>,
}

/// Why GitHub did not do what it was asked for. The text is fit for the commit's author.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GithubError {
    /// It will not do it, however often it is asked.
    #[error("GitHub answered {status} to {what}{hint}")]
    Refused {
        /// What was asked.
        what: String,
        /// The answer's status code.
        status: u16,
        /// What that code usually means here.
        hint: &'static str,
    },
    /// It may do it later.
    #[error("GitHub is not available for {what}: {reason}")]
    Unavailable {
        /// What was asked.
        what: String,
        /// The answer, or the lack of one.
        reason: String,
        /// When GitHub wants to be asked again.
        retry_after: Option<Duration>,
        /// Whether the request may have been carried out all the same.
        ambiguous: bool,
    },
}

impl GithubError {
    /// Whether asking again can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    fn is_ambiguous(&self) -> bool {
        matches!(
            self,
            Self::Unavailable {
                ambiguous: true,
                ..
            }
        )
    }

    /// When GitHub wants to be asked again, if it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } => *retry_after,
            Self::Refused { .. } => None,
        }
    }
}

impl Github {
    /// A client for the API at the configured address.
    ///
    /// # Errors
    /// The token is no header value, or the certificates cannot be used.
    pub fn new(config: &GithubConfig) -> anyhow::Result<Self> {
        let tls = crate::tls::client_config(config.ca_bundle.as_deref())?;
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(concat!("compose-ci/", env!("CARGO_PKG_VERSION")))
            .default_headers(default_headers(config)?)
            .connect_timeout(CONNECT_DEADLINE)
            .read_timeout(SILENCE_DEADLINE)
            // The client drops the Authorization header when a redirect leads to another host.
            .redirect(redirect::Policy::limited(5))
            .build()
            .context("building the client for GitHub")?;
        Ok(Self {
            client,
            api_url: config.api_url.clone(),
            context: config.status_context.clone(),
        })
    }

    /// Says something about a commit, once. An answer that was lost, now or in an earlier
    /// attempt (`maybe_posted`), is looked up before anything is posted again.
    ///
    /// # Errors
    /// See [`GithubError`].
    pub async fn post_status(
        &self,
        repo: &RepoName,
        commit: &CommitSha,
        status: &CommitStatus,
        maybe_posted: bool,
    ) -> Result<(), GithubError> {
        if maybe_posted && self.is_current(repo, commit, status).await? {
            return Ok(());
        }
        let posted = self.try_post_status(repo, commit, status).await;
        match posted {
            Err(error) if error.is_ambiguous() => match self.is_current(repo, commit, status).await
            {
                Ok(true) => Ok(()),
                _ => Err(error),
            },
            other => other,
        }
    }

    async fn try_post_status(
        &self,
        repo: &RepoName,
        commit: &CommitSha,
        status: &CommitStatus,
    ) -> Result<(), GithubError> {
        let body = ContextStatus {
            context: self.context.clone(),
            status: status.clone(),
        };
        let request = self
            .api(Method::POST, &format!("/repos/{repo}/statuses/{commit}"))
            .json(&body);
        send(request, "the commit status").await.map(drop)
    }

    /// What was said about a commit under our name, the newest first. Of a commit with more than a
    /// hundred statuses, those of others included, the older ones are left out.
    ///
    /// # Errors
    /// See [`GithubError`]; asked once.
    pub async fn statuses(
        &self,
        repo: &RepoName,
        commit: &CommitSha,
    ) -> Result<Vec<CommitStatus>, GithubError> {
        const WHAT: &str = "the list of commit statuses";
        let path = format!("/repos/{repo}/commits/{commit}/statuses?per_page=100");
        let statuses: Vec<ContextStatus> = self.json(&path, WHAT).await?;
        let ours = statuses
            .into_iter()
            .filter(|known| known.context == self.context);
        Ok(ours.map(|known| known.status).collect())
    }

    /// Whether the newest status of ours on this commit is this one.
    async fn is_current(
        &self,
        repo: &RepoName,
        commit: &CommitSha,
        status: &CommitStatus,
    ) -> Result<bool, GithubError> {
        let statuses = self.statuses(repo, commit).await?;
        Ok(statuses.first() == Some(status))
    }

    /// Which commit a branch, tag or short id means.
    ///
    /// # Errors
    /// See [`GithubError`]; tried again a few times before it is unavailable.
    pub async fn resolve(&self, repo: &RepoName, name: &RefName) -> Result<CommitSha, GithubError> {
        retried(|| self.commit_of(repo, name.as_str())).await
    }

    /// The commit that a branch is at. GitHub may lag some seconds behind a push.
    ///
    /// # Errors
    /// See [`GithubError`]; asked once.
    pub async fn head(&self, repo: &RepoName, branch: &RefName) -> Result<CommitSha, GithubError> {
        self.commit_of(repo, &format!("heads/{branch}")).await
    }

    /// Whether one commit descends from another.
    ///
    /// # Errors
    /// See [`GithubError`]; asked once.
    pub async fn is_descendant(
        &self,
        repo: &RepoName,
        commit: &CommitSha,
        of: &CommitSha,
    ) -> Result<bool, GithubError> {
        // The changed files stand on the first page only, and may be megabytes.
        let path = format!("/repos/{repo}/compare/{of}...{commit}?per_page=1&page=2");
        let what = format!("the comparison of two commits of {repo}");
        let comparison: Comparison = self.json(&path, &what).await?;
        Ok(comparison.status == "ahead")
    }

    /// The message of a commit.
    ///
    /// # Errors
    /// See [`GithubError`]; asked once.
    pub async fn message(
        &self,
        repo: &RepoName,
        commit: &CommitSha,
    ) -> Result<String, GithubError> {
        let path = format!("/repos/{repo}/git/commits/{commit}");
        let what = format!("the commit {} of {repo}", commit.short());
        let found: GitCommit = self.json(&path, &what).await?;
        Ok(found.message)
    }

    /// The tarball of a commit, as it comes in.
    ///
    /// # Errors
    /// See [`GithubError`]; tried again a few times before it is unavailable.
    pub async fn tarball(
        &self,
        repo: &RepoName,
        commit: &CommitSha,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + use<>, GithubError> {
        let what = format!("the tarball of {repo} at {}", commit.short());
        let url = format!("{}/repos/{repo}/tarball/{commit}", self.api_url);
        // No deadline for the whole: only silence ends a download.
        let response = retried(|| send(self.client.get(&url), &what)).await?;
        // The address carries a token of its own.
        let hide_address = |error: reqwest::Error| std::io::Error::other(error.without_url());
        Ok(response.bytes_stream().map_err(hide_address))
    }

    async fn commit_of(&self, repo: &RepoName, name: &str) -> Result<CommitSha, GithubError> {
        let what = format!("the commit {name} of {repo}");
        let path = format!(
            "/repos/{repo}/commits/{}",
            utf8_percent_encode(name, SEGMENT)
        );
        let request = self
            .api(Method::GET, &path)
            .header(ACCEPT, "application/vnd.github.sha");
        let response = send(request, &what).await?;
        let sha = response
            .text()
            .await
            .map_err(|error| no_answer(&what, error))?;
        sha.trim().parse().map_err(|_| GithubError::Unavailable {
            what,
            reason: "the answer is no commit id".into(),
            retry_after: None,
            ambiguous: false,
        })
    }

    async fn json<T: DeserializeOwned>(&self, path: &str, what: &str) -> Result<T, GithubError> {
        let response = send(self.api(Method::GET, path), what).await?;
        response
            .json()
            .await
            .map_err(|error| no_answer(what, error))
    }

    fn api(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.api_url))
            .timeout(API_DEADLINE)
    }
}

/// A commit status with the name under which it stands.
#[derive(Debug, Serialize, Deserialize)]
struct ContextStatus {
    context: String,
    #[serde(flatten)]
    status: CommitStatus,
}

/// How one commit stands to another: `ahead`, `behind`, `identical` or `diverged`.
#[derive(Debug, Deserialize)]
struct Comparison {
    status: String,
}

/// A commit as git knows it.
#[derive(Debug, Deserialize)]
struct GitCommit {
    message: String,
}

fn default_headers(config: &GithubConfig) -> Result<HeaderMap, ConfigError> {
    let bearer = format!("Bearer {}", config.token.expose_secret());
    let mut authorization = HeaderValue::try_from(bearer).map_err(|_| ConfigError {
        variable: "GITHUB_TOKEN",
        problem: "holds a character that no header can carry".to_owned(),
    })?;
    authorization.set_sensitive(true);
    Ok(HeaderMap::from_iter([
        (AUTHORIZATION, authorization),
        (
            ACCEPT,
            HeaderValue::from_static("application/vnd.github+json"),
        ),
        (
            HeaderName::from_static("x-github-api-version"),
            HeaderValue::from_static("2022-11-28"),
        ),
    ]))
}

/// Asks again, a few times and with growing waits, while GitHub is not available.
///
/// # Errors
/// Those of the last time.
pub async fn retried<T, F>(ask: impl FnMut() -> F) -> Result<T, GithubError>
where
    F: Future<Output = Result<T, GithubError>>,
{
    let patience = ExponentialBuilder::default()
        .with_min_delay(Duration::from_secs(1))
        .with_max_times(4)
        .with_jitter();
    ask.retry(patience)
        .when(|error| {
            let wait = error.retry_after().unwrap_or_default();
            error.is_transient() && wait <= RETRY_AFTER_MAX
        })
        .adjust(|error, delay| delay.map(|delay| error.retry_after().unwrap_or(delay)))
        .await
}

async fn send(request: RequestBuilder, what: &str) -> Result<Response, GithubError> {
    let response = request
        .send()
        .await
        .map_err(|error| no_answer(what, error))?;
    classify(response.status(), response.headers(), what)?;
    Ok(response)
}

/// Whether an answer is one, a refusal, or a request to come again.
fn classify(status: StatusCode, headers: &HeaderMap, what: &str) -> Result<(), GithubError> {
    if status.is_success() {
        return Ok(());
    }
    let asked_to_wait = wait_in(headers);
    let limited = status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::FORBIDDEN && asked_to_wait.is_some();
    if limited || status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT {
        return Err(GithubError::Unavailable {
            what: what.to_owned(),
            reason: format!("it answered {}", status.as_u16()),
            retry_after: asked_to_wait.or(limited.then_some(SECONDARY_LIMIT_WAIT)),
            ambiguous: status.is_server_error(),
        });
    }
    Err(GithubError::Refused {
        what: what.to_owned(),
        status: status.as_u16(),
        hint: match status {
            StatusCode::UNAUTHORIZED => " (is GITHUB_TOKEN still valid?)",
            StatusCode::FORBIDDEN => " (may GITHUB_TOKEN do this?)",
            StatusCode::NOT_FOUND => " (does it exist, and may GITHUB_TOKEN see it?)",
            _ => "",
        },
    })
}

/// How long GitHub's headers ask to wait: `Retry-After`, or the reset of an exhausted limit.
fn wait_in(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    if let Some(retry_after) = text(RETRY_AFTER.as_str()) {
        let seconds = retry_after.parse().ok().map(Duration::from_secs);
        return seconds.or_else(|| {
            let date = httpdate::parse_http_date(retry_after).ok()?;
            Some(date.duration_since(SystemTime::now()).unwrap_or_default())
        });
    }
    if text("x-ratelimit-remaining")? != "0" {
        return None;
    }
    let reset = Duration::from_secs(text("x-ratelimit-reset")?.parse().ok()?);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()?;
    Some(reset.saturating_sub(now))
}

fn no_answer(what: &str, error: reqwest::Error) -> GithubError {
    let reason = if error.is_timeout() {
        "no answer in time"
    } else if error.is_connect() {
        "no connection"
    } else {
        "the connection broke"
    };
    tracing::debug!(
        error = format!("{:#}", anyhow::Error::new(error.without_url())),
        "GitHub: {what}"
    );
    GithubError::Unavailable {
        what: what.to_owned(),
        reason: reason.to_owned(),
        retry_after: None,
        ambiguous: reason != "no connection",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classified(status: u16, headers: &[(&'static str, &str)]) -> Result<(), GithubError> {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("value")))
            .collect();
        classify(
            StatusCode::from_u16(status).expect("code"),
            &headers,
            "the test",
        )
    }

    #[test]
    fn only_what_may_change_is_asked_again() {
        for (status, transient) in [
            (401, false),
            (403, false),
            (404, false),
            (422, false),
            (451, false),
            (408, true),
            (429, true),
            (500, true),
            (502, true),
            (503, true),
        ] {
            let error = classified(status, &[]).expect_err("no success");
            assert_eq!(error.is_transient(), transient, "{status}");
        }
        assert_eq!(classified(201, &[]), Ok(()));
    }

    #[test]
    fn a_403_that_asks_to_wait_is_a_limit() {
        let secondary = classified(403, &[("retry-after", "7")]).expect_err("limited");
        assert_eq!(secondary.retry_after(), Some(Duration::from_secs(7)));

        let exhausted = [
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "4102444800"),
        ];
        let primary = classified(403, &exhausted).expect_err("limited");
        assert!(primary.retry_after() > Some(Duration::from_secs(3600)));

        let plain = classified(403, &[("x-ratelimit-remaining", "12")]).expect_err("forbidden");
        assert!(!plain.is_transient());
    }

    #[test]
    fn a_limit_that_names_no_time_waits_a_minute() {
        let limited = classified(429, &[]).expect_err("limited");
        assert_eq!(limited.retry_after(), Some(SECONDARY_LIMIT_WAIT));
    }

    #[test]
    fn a_date_to_retry_after_is_understood() {
        let past = classified(503, &[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")]);
        assert_eq!(past.expect_err("down").retry_after(), Some(Duration::ZERO));
    }

    #[test]
    fn a_refusal_says_what_to_check() {
        let error = classified(404, &[]).expect_err("missing");
        insta::assert_snapshot!(error, @"GitHub answered 404 to the test (does it exist, and may GITHUB_TOKEN see it?)");
    }

    #[test]
    fn a_branch_name_is_one_path_segment() {
        let encoded = utf8_percent_encode("feature/#1?x=ü", SEGMENT).to_string();
        assert_eq!(encoded, "feature%2F%231%3Fx%3D%C3%BC");
    }
}
