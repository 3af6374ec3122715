//! GitHub, as far as a build needs it: commit statuses, tarballs, which commit a name means, and the
//! pushes that it could not deliver.

mod answer;
mod patience;
mod hooks;
mod missed;

use std::time::Duration;

use crate::build::{CommitSha, RefName, RepoName};
use crate::config::{ConfigError, GithubConfig};
use anyhow::Context;
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use http::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderName};
use http::{HeaderValue, Method};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, RequestBuilder, redirect};
use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use answer::{no_answer, send};
pub use hooks::{Attempt, Hook, HookOwner};
pub use missed::{Access, FailureStreak, LookupError, MissedPush, MissedPushes, REMEMBERED};
pub use patience::{Patience, retried};

/// GitHub itself gives up on a request after 10 s.
const API_DEADLINE: Duration = Duration::from_secs(15);
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// A tarball may take long as a whole; silence of this length means that it is not coming.
const SILENCE_DEADLINE: Duration = Duration::from_secs(30);
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
        let tls = crate::net::tls::client_config(config.ca_bundle.as_deref())?;
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
    /// See [`GithubError`]; it is unavailable when [`Patience`] has ended.
    pub async fn resolve(&self, repo: &RepoName, name: &RefName) -> Result<CommitSha, GithubError> {
        let ask = || self.commit_of(repo, name.as_str());
        Patience::default().outlast(ask).await
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
    /// See [`GithubError`]; it is unavailable when patience has ended.
    pub async fn tarball(
        &self,
        repo: &RepoName,
        commit: &CommitSha,
        patience: &mut Patience,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + use<>, GithubError> {
        let what = format!("the tarball of {repo} at {}", commit.short());
        let url = format!("{}/repos/{repo}/tarball/{commit}", self.api_url);
        // No deadline for the whole: only silence ends a download.
        let ask = || send(self.client.get(&url), &what);
        let response = patience.outlast(ask).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_name_is_one_path_segment() {
        let encoded = utf8_percent_encode("feature/#1?x=ü", SEGMENT).to_string();
        assert_eq!(encoded, "feature%2F%231%3Fx%3D%C3%BC");
    }
}
