//! A stand-in for GitHub that runs by itself, for trying compose-ci without an account.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Parser;
use compose_ci_harness::{GitHub, Settings, TOKEN, Tarball};
use tokio::signal::unix::{SignalKind, signal};

/// Serves git repositories as GitHub does: commit statuses, commits and tarballs.
///
/// Two more requests tell what happened and what to send:
///   GET /_/statuses                                    every status that was posted, a JSON array
///   GET /_/push?repo=owner/name&ref=refs/heads/main    the payload of a push of that reference
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Options {
    /// Where the API listens; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// Where the tarball host listens; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    codeload_listen: SocketAddr,

    /// How clients reach the tarball host. Without it, by the name they reached the API by.
    #[arg(long, value_name = "URL")]
    public_codeload_url: Option<String>,

    /// The token that clients must show.
    #[arg(long, default_value = TOKEN)]
    token: String,

    /// A git repository to serve, bare or not; may be repeated.
    #[arg(long = "repo", value_name = "OWNER/NAME=GIT_DIR", value_parser = hosted)]
    repos: Vec<(String, PathBuf)>,

    /// A commit made up of so many files of this size; may be repeated.
    #[arg(long = "commit", value_name = "OWNER/NAME@SHA=FILESxBYTES", value_parser = made_up)]
    commits: Vec<(String, String, Tarball)>,
}

#[tokio::main]
#[expect(
    clippy::print_stdout,
    reason = "whoever starts it reads the address there"
)]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let mut terminated = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let github = GitHub::with(Settings {
        api: options.listen,
        codeload: options.codeload_listen,
        codeload_url: options.public_codeload_url,
        token: options.token,
    });
    let github = github.await?;
    for (repo, dir) in options.repos {
        github.host(&repo, dir);
    }
    for (repo, sha, tarball) in options.commits {
        github.host_tarball(&repo, &sha, tarball);
    }
    println!("listening on {}", github.address());
    tokio::select! {
        _ = terminated.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}

fn hosted(text: &str) -> anyhow::Result<(String, PathBuf)> {
    let (repo, dir) = text
        .split_once('=')
        .ok_or_else(|| anyhow!("not OWNER/NAME=GIT_DIR"))?;
    let dir = std::fs::canonicalize(dir).with_context(|| format!("finding {dir}"))?;
    Ok((repo_name(repo)?, dir))
}

fn made_up(text: &str) -> anyhow::Result<(String, String, Tarball)> {
    let parts = || {
        let (repo, commit) = text.split_once('@')?;
        let (sha, size) = commit.split_once('=')?;
        let (files, file_size_bytes) = size.split_once('x')?;
        let tarball = Tarball::Generated {
            files: files.parse().ok()?,
            file_size_bytes: file_size_bytes.parse().ok()?,
        };
        Some((repo, sha.to_owned(), tarball))
    };
    let (repo, sha, tarball) = parts().ok_or_else(|| anyhow!("not OWNER/NAME@SHA=FILESxBYTES"))?;
    Ok((repo_name(repo)?, sha, tarball))
}

fn repo_name(text: &str) -> anyhow::Result<String> {
    if text.split('/').filter(|part| !part.is_empty()).count() != 2 {
        return Err(anyhow!("{text} is not OWNER/NAME"));
    }
    Ok(text.to_owned())
}
