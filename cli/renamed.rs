//! Repositories that were renamed after somebody configured them: the forge sends requests with the old name
//! on, and pushes come with the new one.

use std::convert::Infallible;
use std::future::pending;

use shared::build::RepoName;
use shared::config::{RepoFilter, RepoPattern};
use shared::forge::{Forge, ForgeError};

/// Asks the forge for the names of all repositories that are configured by name, and serves the new ones
/// as well.
pub(crate) async fn learn(forge: &Forge, repos: &RepoFilter) -> Infallible {
    for pattern in repos.patterns() {
        if let RepoPattern::One(configured) = pattern {
            look(forge, repos, configured).await;
        }
    }
    pending().await
}

async fn look(forge: &Forge, repos: &RepoFilter, configured: &RepoName) {
    let found = loop {
        match forge.current_name(configured).await {
            // It has been asked for minutes.
            Err(ForgeError::Unavailable { .. }) => {}
            found => break found,
        }
    };
    match found {
        Ok(name) if name != *configured => {
            tracing::warn!(
                "GITHUB_REPO: {configured} is called {name} by now; pushes of both names are built"
            );
            repos.add_new_name(name);
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "GITHUB_REPO: failed to look for {configured}"),
    }
}
