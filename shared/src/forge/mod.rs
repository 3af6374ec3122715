//! The forge: where commits come from, where their statuses go, and what remembers the pushes that
//! it could not deliver.
//!
//! [`Forge`] is all that the other parts see. What only one forge does lies in that forge's folder.

mod error;
mod patience;
mod missed;
mod github;

use std::io;

use bytes::Bytes;
use futures_util::Stream;
use serde::{Deserialize, Serialize};

use crate::build::{CommitSha, CommitState, ForgeKind, RefName, RepoName, Site};
use crate::config::{GithubConfig, RepoPattern, WebhookAddress};

pub use self::error::ForgeError;
pub use self::github::Github;
pub use self::missed::{FailureStreak, LookupError, MissedPush};
pub use self::patience::Patience;

/// A client of a forge's API. Clones share its connections.
#[derive(Debug, Clone)]
pub enum Forge {
    /// GitHub, or an Enterprise server.
    Github(Github),
}

/// What is said about a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitStatus {
    /// The colour of it.
    pub state: CommitState,
    /// One line, 140 characters at most.
    pub description: Option<String>,
    /// Where the log is.
    pub target_url: Option<String>,
}

impl Forge {
    /// Prepares a client for GitHub's API at the configured address.
    ///
    /// # Errors
    /// The token is no header value, or the certificates cannot be used.
    pub fn github(config: &GithubConfig) -> anyhow::Result<Self> {
        Github::new(config).map(Self::Github)
    }

    /// The kind of forge, as builds name it.
    pub fn kind(&self) -> ForgeKind {
        match self {
            Self::Github(_) => ForgeKind::Github,
        }
    }

    /// The site that belongs to the API, as far as it is known.
    pub fn site(&self) -> Option<&Site> {
        match self {
            Self::Github(github) => github.site(),
        }
    }

    /// Posts a status, once. An answer that was lost, now or in an earlier attempt
    /// (`maybe_posted`), is looked up before anything is posted again.
    ///
    /// # Errors
    /// See [`ForgeError`].
    pub async fn post_status(
        &self,
        repo: &RepoName,
        commit: &CommitSha,
        status: &CommitStatus,
        maybe_posted: bool,
    ) -> Result<(), ForgeError> {
        match self {
            Self::Github(github) => {
                let posted = github.post_status(repo, commit, status, maybe_posted);
                posted.await
            }
        }
    }

    /// Finds the commit that a branch, tag or short id means.
    ///
    /// # Errors
    /// See [`ForgeError`]; it is unavailable when [`Patience`] has ended.
    pub async fn resolve(&self, repo: &RepoName, name: &RefName) -> Result<CommitSha, ForgeError> {
        let ask = async || match self {
            Self::Github(github) => github.commit(repo, name).await,
        };
        Patience::default().outlast(ask).await
    }

    /// Finds the name that a repository has by now, if it was renamed.
    ///
    /// # Errors
    /// See [`ForgeError`]; it is unavailable when [`Patience`] has ended.
    pub async fn current_name(&self, repo: &RepoName) -> Result<RepoName, ForgeError> {
        let ask = async || match self {
            Self::Github(github) => github.current_name(repo).await,
        };
        Patience::default().outlast(ask).await
    }

    /// Finds the commit that a branch is at. The forge may lag some seconds behind a push.
    ///
    /// # Errors
    /// See [`ForgeError`]; asked once.
    pub async fn head(&self, repo: &RepoName, branch: &RefName) -> Result<CommitSha, ForgeError> {
        match self {
            Self::Github(github) => github.head(repo, branch).await,
        }
    }

    /// Tells whether one commit descends from another.
    ///
    /// # Errors
    /// See [`ForgeError`]; asked once.
    pub async fn is_descendant(
        &self,
        repo: &RepoName,
        commit: &CommitSha,
        of: &CommitSha,
    ) -> Result<bool, ForgeError> {
        match self {
            Self::Github(github) => github.is_descendant(repo, commit, of).await,
        }
    }

    /// Reads the message of a commit.
    ///
    /// # Errors
    /// See [`ForgeError`]; asked once.
    pub async fn message(&self, repo: &RepoName, commit: &CommitSha) -> Result<String, ForgeError> {
        match self {
            Self::Github(github) => github.message(repo, commit).await,
        }
    }

    /// Downloads the tarball of a commit: a stream of what comes in.
    ///
    /// # Errors
    /// See [`ForgeError`]; it is unavailable when patience has ended.
    pub async fn tarball(
        &self,
        repo: &RepoName,
        commit: &CommitSha,
        patience: &mut Patience,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, ForgeError> {
        match self {
            Self::Github(github) => github.tarball(repo, commit, patience).await,
        }
    }

    /// Finds the pushes to these repositories that the webhook at this address has missed, oldest
    /// first, as far back as the forge remembers deliveries.
    ///
    /// # Errors
    /// See [`LookupError`].
    pub async fn missed_pushes(
        &self,
        repos: &RepoPattern,
        address: &WebhookAddress,
    ) -> Result<Vec<MissedPush>, LookupError> {
        match self {
            Self::Github(github) => github.missed_pushes(repos, address).await,
        }
    }

    /// Reads the JSON of a push that the webhook has missed.
    ///
    /// # Errors
    /// See [`ForgeError`]; tried again a few times before it is unavailable.
    pub async fn payload(&self, push: &MissedPush) -> Result<String, ForgeError> {
        match self {
            Self::Github(github) => github.payload(push).await,
        }
    }
}
