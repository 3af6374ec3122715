//! Where people see what a forge has.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{CommitSha, RepoName};

/// Everything in a path but slashes and what RFC 3986 calls unreserved.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

/// The site of a forge, and the addresses of its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Its address, such as `https://github.com`.
    pub url: String,
    /// What stands between a repository's address and a commit in it.
    pub to_commit: &'static str,
    /// The same for a branch or tag.
    pub to_ref: &'static str,
}

impl Site {
    /// The address of a repository's page.
    pub fn repository(&self, repo: &RepoName) -> String {
        format!("{}/{repo}", self.url)
    }

    /// The address of a commit's page.
    pub fn commit(&self, repo: &RepoName, commit: &CommitSha) -> String {
        format!("{}{}{commit}", self.repository(repo), self.to_commit)
    }

    /// The address of the page of a branch, tag or short commit id.
    pub fn git_ref(&self, repo: &RepoName, name: &str) -> String {
        let name = utf8_percent_encode(name, PATH);
        format!("{}{}{name}", self.repository(repo), self.to_ref)
    }
}

#[cfg(test)]
mod tests {
    use crate::build::samples::github_site;

    #[test]
    fn pages_lie_below_their_repository() {
        let site = github_site();
        let repo = "octo/hello".parse().expect("a name");
        let commit = "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c".parse();
        let pages = [
            site.repository(&repo),
            site.commit(&repo, &commit.expect("an id")),
            site.git_ref(&repo, "feature/ümlaut"),
            site.git_ref(&repo, "v1.0"),
        ];
        insta::assert_snapshot!(pages.join("\n"), @r"
        https://github.com/octo/hello
        https://github.com/octo/hello/commit/0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c
        https://github.com/octo/hello/tree/feature/%C3%BCmlaut
        https://github.com/octo/hello/tree/v1.0
        ");
    }
}
