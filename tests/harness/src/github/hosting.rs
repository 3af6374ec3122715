//! The repositories that the fake GitHub hosts.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use super::Body;
use super::fault::streamed;
use crate::git::Repository;
use crate::tarball::Tarball;

/// How much of a tarball is sent at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// One repository: commits from git, commits that a test made up, or both.
#[derive(Debug, Default)]
pub(super) struct Hosted {
    git: Option<Repository>,
    made_up: HashMap<String, Tarball>,
}

impl Hosted {
    pub(super) fn serve(&mut self, dir: PathBuf) {
        self.git = Some(Repository::new(dir));
    }

    pub(super) fn make_up(&mut self, sha: &str, tarball: Tarball) {
        self.made_up.insert(sha.to_owned(), tarball);
    }

    /// The commit that a branch, tag, full or short sha names.
    pub(super) fn resolve(&self, reference: &str) -> Option<String> {
        if self.made_up.contains_key(reference) {
            return Some(reference.to_owned());
        }
        self.git.as_ref()?.resolve(reference)
    }

    /// The whole message of a commit.
    pub(super) fn message(&self, sha: &str) -> Option<String> {
        if self.made_up.contains_key(sha) {
            return Some("A commit that the test made up".to_owned());
        }
        self.git.as_ref()?.message(sha)
    }

    /// How a commit stands to another, in GitHub's words; a commit that no git repository holds is
    /// related to none.
    pub(super) fn comparison(&self, base: &str, head: &str) -> &'static str {
        let descends = |from: &str, to: &str| {
            let git = self.git.as_ref();
            git.is_some_and(|git| git.is_ancestor(from, to))
        };
        match (descends(base, head), descends(head, base)) {
            _ if base == head => "identical",
            (true, _) => "ahead",
            (_, true) => "behind",
            (false, false) => "diverged",
        }
    }

    /// The tarball of a commit of `repo`, below the top folder that GitHub gives it.
    pub(super) fn tarball(&self, repo: &str, sha: &str) -> io::Result<Body> {
        let top_folder = format!("{}-{}", repo.replace('/', "-"), &sha[..7]);
        let reader: Box<dyn AsyncRead + Send + Unpin> = match (self.made_up.get(sha), &self.git) {
            (Some(tarball), _) => tarball.stream(sha, &top_folder),
            (None, Some(git)) => Box::new(git.archive(sha, &top_folder)?),
            (None, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(streamed(ReaderStream::with_capacity(reader, CHUNK_BYTES)))
    }
}
