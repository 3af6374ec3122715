//! GitHub, as far as a build needs it: commit statuses, tarballs, which commit a name means, and the
//! pushes that it could not deliver.

mod answer;
mod hooks;
mod missed;

use std::io;
use std::time::Duration;

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

use self::answer::{Posted, no_answer, send};
use super::{CommitStatus, ForgeError, Patience};
use crate::build::{CommitSha, RefName, RepoName, Site};
use crate::config::{ConfigError, GithubConfig};

/// GitHub itself gives up on a request after 10 s.
const API_DEADLINE: Duration = Duration::from_secs(15);
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// A tarball may take long as a whole; silence of this length means that it is not coming.
const SILENCE_DEADLINE: Duration = Duration::from_secs(30);
/// The longest chain of redirects that is followed.
const REDIRECTS_MAX: usize = 5;
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
    /// Follows no redirect by itself: it would make a GET of a POST.
    poster: Client,
    api_url: String,
    site: Option<Site>,
    context: String,
}

impl Github {
    /// Prepares a client for the API at the configured address.
    pub(super) fn new(config: &GithubConfig) -> anyhow::Result<Self> {
        let tls = crate::net::tls::client_config(config.ca_bundle.as_deref())?;
        let headers = default_headers(config)?;
        let client = |redirects| {
            Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .user_agent(concat!("compose-ci/", env!("CARGO_PKG_VERSION")))
                .default_headers(headers.clone())
                .connect_timeout(CONNECT_DEADLINE)
                .read_timeout(SILENCE_DEADLINE)
                .redirect(redirects)
                .build()
                .context("building the client for GitHub")
        };
        Ok(Self {
            // The client drops the Authorization header when a redirect leads to another host.
            client: client(redirect::Policy::limited(REDIRECTS_MAX))?,
            poster: client(redirect::Policy::none())?,
            api_url: config.api_url.clone(),
            site: site_of(&config.api_url),
            context: config.status_context.clone(),
        })
    }

    pub(super) fn site(&self) -> Option<&Site> {
        self.site.as_ref()
    }

    pub(super) async fn post_status(
        &self,
        repo: &RepoName,
        commit: &CommitSha,
        status: &CommitStatus,
        maybe_posted: bool,
    ) -> Result<(), ForgeError> {
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
    ) -> Result<(), ForgeError> {
        let body = ContextStatus {
            context: self.context.clone(),
            status: status.clone(),
        };
        let path = format!("/repos/{repo}/statuses/{commit}");
        self.post(&path, &body, "the commit status").await
    }

    /// Posts to the API, also where that sends the request on: a repository that was renamed is found at
    /// another path.
    async fn post(&self, path: &str, body: &impl Serialize, what: &str) -> Result<(), ForgeError> {
        let mut url = format!("{}{path}", self.api_url);
        for _ in 0..=REDIRECTS_MAX {
            let request = self.poster.post(&url).timeout(API_DEADLINE).json(body);
            match answer::post(request, what).await? {
                Posted::Done => return Ok(()),
                Posted::SentOn(elsewhere) => url = elsewhere.into(),
            }
        }
        Err(ForgeError::Unavailable {
            what: what.to_owned(),
            reason: "it sends the request on and on".to_owned(),
            retry_after: None,
            ambiguous: false,
        })
    }

    /// Tells whether the newest status of ours on this commit is this one.
    async fn is_current(
        &self,
        repo: &RepoName,
        commit: &CommitSha,
        status: &CommitStatus,
    ) -> Result<bool, ForgeError> {
        let path = format!("/repos/{repo}/commits/{commit}/statuses?per_page=100");
        let statuses: Vec<ContextStatus> = self.json(&path, "the list of commit statuses").await?;
        let mut ours = statuses
            .iter()
            .filter(|known| known.context == self.context);
        Ok(ours.next().is_some_and(|newest| newest.status == *status))
    }

    /// Finds the commit that a branch, tag or short id means.
    pub(super) async fn commit(
        &self,
        repo: &RepoName,
        name: &RefName,
    ) -> Result<CommitSha, ForgeError> {
        self.commit_of(repo, name.as_str()).await
    }

    pub(super) async fn current_name(&self, repo: &RepoName) -> Result<RepoName, ForgeError> {
        let what = format!("the repository {repo}");
        let found: Repository = self.json(&format!("/repos/{repo}"), &what).await?;
        let name = found.full_name.parse();
        name.map_err(|_| ForgeError::Unavailable {
            what,
            reason: "the answer is no repository's name".into(),
            retry_after: None,
            ambiguous: false,
        })
    }

    pub(super) async fn head(
        &self,
        repo: &RepoName,
        branch: &RefName,
    ) -> Result<CommitSha, ForgeError> {
        self.commit_of(repo, &format!("heads/{branch}")).await
    }

    pub(super) async fn is_descendant(
        &self,
        repo: &RepoName,
        commit: &CommitSha,
        of: &CommitSha,
    ) -> Result<bool, ForgeError> {
        // The changed files stand on the first page only, and may be megabytes.
        let path = format!("/repos/{repo}/compare/{of}...{commit}?per_page=1&page=2");
        let what = format!("the comparison of two commits of {repo}");
        let comparison: Comparison = self.json(&path, &what).await?;
        Ok(comparison.status == "ahead")
    }

    pub(super) async fn message(
        &self,
        repo: &RepoName,
        commit: &CommitSha,
    ) -> Result<String, ForgeError> {
        let path = format!("/repos/{repo}/git/commits/{commit}");
        let what = format!("the commit {} of {repo}", commit.short());
        let found: GitCommit = self.json(&path, &what).await?;
        Ok(found.message)
    }

    pub(super) async fn tarball(
        &self,
        repo: &RepoName,
        commit: &CommitSha,
        patience: &mut Patience,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, ForgeError> {
        let what = format!("the tarball of {repo} at {}", commit.short());
        let url = format!("{}/repos/{repo}/tarball/{commit}", self.api_url);
        // No deadline for the whole: only silence ends a download.
        let ask = || send(self.client.get(&url), &what);
        let response = patience.outlast(ask).await?;
        // The address carries a token of its own.
        let hide_address = |error: reqwest::Error| io::Error::other(error.without_url());
        Ok(response.bytes_stream().map_err(hide_address))
    }

    async fn commit_of(&self, repo: &RepoName, name: &str) -> Result<CommitSha, ForgeError> {
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
        sha.trim().parse().map_err(|_| ForgeError::Unavailable {
            what,
            reason: "the answer is no commit id".into(),
            retry_after: None,
            ambiguous: false,
        })
    }

    async fn json<T: DeserializeOwned>(&self, path: &str, what: &str) -> Result<T, ForgeError> {
        let (answer, _) = self.json_with_headers(path, what).await?;
        Ok(answer)
    }

    async fn json_with_headers<T: DeserializeOwned>(
        &self,
        path: &str,
        what: &str,
    ) -> Result<(T, HeaderMap), ForgeError> {
        let response = send(self.api(Method::GET, path), what).await?;
        let headers = response.headers().clone();
        let answer = response.json().await;
        Ok((answer.map_err(|error| no_answer(what, error))?, headers))
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

#[derive(Debug, Deserialize)]
struct Repository {
    full_name: String,
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

/// GitHub's own site, or the host of an Enterprise server, if the API is at one of the two.
fn site_of(api_url: &str) -> Option<Site> {
    let url = match api_url {
        "https://api.github.com" => "https://github.com",
        _ => api_url.strip_suffix("/api/v3")?,
    };
    Some(Site {
        url: url.to_owned(),
        to_commit: "/commit/",
        to_ref: "/tree/",
    })
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

    #[test]
    fn people_see_repositories_where_the_api_is_not() {
        for (api, web) in [
            ("https://api.github.com", Some("https://github.com")),
            (
                "https://git.example.org/api/v3",
                Some("https://git.example.org"),
            ),
            ("http://127.0.0.1:9000", None),
        ] {
            let site = site_of(api);
            assert_eq!(site.map(|site| site.url).as_deref(), web);
        }
    }
}
