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

/// A repository that has another name by now. Its number is its place among these.
#[derive(Debug)]
pub(super) struct Renamed {
    pub(super) old: String,
    pub(super) new: String,
    pub(super) code: u16,
}

/// The way of a path that names a repository by an old name, or by its number.
pub(super) enum Way {
    /// As it is.
    Straight(String),
    /// To be asked for there.
    SentOn { code: u16, path: String },
}

impl Renamed {
    pub(super) fn way(renamed: &[Self], path: &str) -> Way {
        for (number, repo) in renamed.iter().enumerate() {
            let (old, id) = (
                format!("/repos/{}", repo.old),
                format!("/repositories/{number}"),
            );
            if let Some(rest) = below(path, &old) {
                return Way::SentOn {
                    code: repo.code,
                    path: format!("{id}{rest}"),
                };
            }
            if let Some(rest) = below(path, &id) {
                return Way::Straight(format!("/repos/{}{rest}", repo.new));
            }
        }
        Way::Straight(path.to_owned())
    }
}

fn below<'a>(path: &'a str, folder: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(folder)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
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
