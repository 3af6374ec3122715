//! The words of the domain, parsed once at the edge into types that cannot be wrong.

mod outcome;
mod state;
mod logs;
mod site;
#[cfg(any(test, feature = "samples"))]
pub mod samples;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::logs::{log_path, logs_dir};
pub use self::outcome::{BuildError, CommitState, Outcome, StopReason};
pub use self::site::Site;
pub use self::state::{Build, BuildState, IllegalStep, WorkerId};

/// Namespace of the build ids that are derived from GitHub's delivery GUIDs (a random v4, fixed
/// for ever: changing it would make every redelivery a new build).
const DELIVERY_NAMESPACE: Uuid = Uuid::from_u128(0x6b1f_0c0a_9d4e_4f0b_8a53_27c1_5be2_90d7);

/// Longest branch or tag name in bytes. GitHub refuses longer ones, and with it a queue message
/// stays well under 2 KiB.
const REF_NAME_MAX_BYTES: usize = 255;

/// Name of the commit status where `STATUS_CONTEXT` gives no other.
pub const DEFAULT_STATUS_CONTEXT: &str = "compose-ci";

/// Longest name of a repository, its groups included, in bytes.
const REPO_NAME_MAX_BYTES: usize = 255;

/// Longest part of such a name in bytes: GitHub allows 39 for an owner and 100 for a name.
const REPO_PART_MAX_BYTES: usize = 100;

/// What keeps a head commit from being built when it stands in its message, as on GitHub Actions.
const SKIP_MARKS: [&str; 3] = ["[skip ci]", "[ci skip]", "[no ci]"];

/// Why a text is no value of the domain. Its message names what is wrong and is fit for a user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not `owner/name`.
    #[error("a repository is written owner/name")]
    Repo,
    /// Not 40 or 64 hexadecimal digits.
    #[error("a commit id has 40 or 64 hexadecimal digits")]
    Sha,
    /// Not what git accepts as a branch or tag.
    #[error("not a valid branch, tag or commit name")]
    Ref,
    /// Not a UUID.
    #[error("a build id is a UUID")]
    BuildId,
    /// Not the id of a worker.
    #[error("a worker id is a UUID")]
    WorkerId,
}

/// What a worker needs to know to build one commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildRequest {
    /// The forge that the commit comes from, and that is told how its build ends.
    pub forge: ForgeKind,
    /// The build's identity: container name, log name, page.
    pub id: BuildId,
    /// Where the commit lives.
    pub repo: RepoName,
    /// Which commit, or what names it.
    pub revision: Revision,
    /// The branch or tag that was pushed; a manual trigger may not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_ref: Option<GitRef>,
}

impl BuildRequest {
    /// The branch or tag for a person to read: what was pushed, or what a manual trigger named.
    pub fn ref_name(&self) -> Option<&str> {
        match (&self.git_ref, &self.revision) {
            (Some(git_ref), _) => Some(git_ref.name()),
            (None, Revision::Name(name)) => Some(name.as_str()),
            (None, Revision::Commit(_)) => None,
        }
    }

    /// The commit, unless it was asked for by a name.
    pub fn commit(&self) -> Option<&CommitSha> {
        match &self.revision {
            Revision::Commit(sha) => Some(sha),
            Revision::Name(_) => None,
        }
    }
}

/// A kind of forge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForgeKind {
    /// GitHub, or an Enterprise server.
    Github,
}

/// The identity of a build: it names the container, the log and the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BuildId(Uuid);

impl BuildId {
    /// The id of the build that a GitHub delivery asks for: the same delivery, the same build.
    ///
    /// A GUID is of a push, whichever webhooks it is delivered to. Services that build the same push
    /// tell of it under status contexts of their own, and these are builds of their own.
    /// <https://docs.github.com/en/rest/repos/webhooks#list-deliveries-for-a-repository-webhook>
    pub fn from_delivery(guid: &str, status_context: &str) -> Self {
        let of_service = match status_context {
            DEFAULT_STATUS_CONTEXT => DELIVERY_NAMESPACE,
            other => Uuid::new_v5(&DELIVERY_NAMESPACE, other.as_bytes()),
        };
        Self(Uuid::new_v5(&of_service, guid.as_bytes()))
    }

    /// The id of a build that nothing else identifies, such as a manual trigger.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The compose project of this build, so that two builds of one commit never meet.
    /// Starts with a letter: compose allows a digit, tools that read the name may not.
    pub fn compose_project(&self) -> String {
        format!("ci-{}", self.0.simple())
    }

    /// Returns the build that a compose project is of, if it is a build's.
    pub fn of_compose_project(project: &str) -> Option<Self> {
        let build: Self = project.strip_prefix("ci-")?.parse().ok()?;
        (build.compose_project() == project).then_some(build)
    }

    /// The time, less up to a quarter of it that differs from build to build, so that what many of
    /// them do every so often does not coincide.
    pub fn jittered(&self, time: Duration) -> Duration {
        let (_, low) = self.0.as_u64_pair();
        let place = f64::from(low as u32) / f64::from(u32::MAX);
        time.mul_f64(1.0 - place / 4.0)
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for BuildId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text)
            .map(Self)
            .map_err(|_| InvalidName::BuildId)
    }
}

/// A repository on a forge: `owner/name`, or `group/subgroup/name` where the forge has those. Equality
/// ignores case, as GitHub does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepoName(String);

impl RepoName {
    /// The whole name, `owner/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// All before the last slash: an owner, or a group within others.
    pub fn owner(&self) -> &str {
        self.parts().0
    }

    /// The part behind the last slash.
    pub fn name(&self) -> &str {
        self.parts().1
    }

    fn parts(&self) -> (&str, &str) {
        self.0
            .rsplit_once('/')
            .expect("a name has two parts or more")
    }
}

impl PartialEq for RepoName {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for RepoName {}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RepoName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = text.contains('/') && text.len() <= REPO_NAME_MAX_BYTES;
        if fits && text.split('/').all(is_repo_part) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::Repo)
        }
    }
}

fn is_repo_part(part: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !part.is_empty()
        && part.len() <= REPO_PART_MAX_BYTES
        && part.chars().all(plain)
        && part != "."
        && part != ".."
}

/// A full commit id: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommitSha(String);

impl CommitSha {
    /// All digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first seven digits, as git and GitHub shorten it.
    pub fn short(&self) -> &str {
        &self.0[..7]
    }

    /// True for the id of nothing, which a push carries when it deletes a branch.
    pub fn is_zero(&self) -> bool {
        self.0.bytes().all(|digit| digit == b'0')
    }
}

impl fmt::Display for CommitSha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for CommitSha {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let full_length = matches!(text.len(), 40 | 64);
        if full_length && text.bytes().all(|c| c.is_ascii_hexdigit()) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(InvalidName::Sha)
        }
    }
}

/// A branch name, tag name or short commit id that git would accept. It is somebody else's text:
/// it travels as an environment value or an escaped path segment, never inside a command.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RefName(String);

impl RefName {
    /// The name as git writes it, slashes included.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RefName {
    type Err = InvalidName;

    /// The rules of `git check-ref-format --branch`, plus a limit on the length.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let forbidden = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
        let bad_part =
            |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with(".lock");
        let invalid = text.is_empty()
            || text.len() > REF_NAME_MAX_BYTES
            || text == "@"
            || text.starts_with('-')
            || text.ends_with('.')
            || text.contains("..")
            || text.contains("@{")
            || text.contains(forbidden)
            || text.split('/').any(bad_part);
        if invalid {
            Err(InvalidName::Ref)
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

/// What a push moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GitRef {
    /// `refs/heads/…`
    Branch(RefName),
    /// `refs/tags/…`
    Tag(RefName),
}

impl GitRef {
    /// The name without `refs/heads/` or `refs/tags/`.
    pub fn name(&self) -> &str {
        match self {
            Self::Branch(name) | Self::Tag(name) => name.as_str(),
        }
    }
}

impl FromStr for GitRef {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(branch) = text.strip_prefix("refs/heads/") {
            branch.parse().map(Self::Branch)
        } else if let Some(tag) = text.strip_prefix("refs/tags/") {
            tag.parse().map(Self::Tag)
        } else {
            Err(InvalidName::Ref)
        }
    }
}

/// Which commit to build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Revision {
    /// The commit itself.
    Commit(CommitSha),
    /// A branch, tag or short commit id; the worker asks GitHub which commit it is.
    Name(RefName),
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Commit(sha) => sha.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl FromStr for Revision {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(sha) => Ok(Self::Commit(sha)),
            Err(_) => text.parse().map(Self::Name),
        }
    }
}

/// What in the message of a head commit keeps its push from being built, if anything does.
pub fn skip_mark(message: &str) -> Option<&'static str> {
    SKIP_MARKS.into_iter().find(|mark| message.contains(mark))
}

/// The conversions that serde needs for a type that is a checked string.
macro_rules! checked_string {
    ($($name:ty),*) => {$(
        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(checked: $name) -> Self {
                checked.0
            }
        }
    )*};
}

checked_string!(RepoName, CommitSha, RefName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_delivery_is_the_same_build() {
        let id = BuildId::from_delivery;
        let guid = "72d3162e-cc78-11e3-81ab-4c9367dc0958";
        assert_eq!(id(guid, "ci"), id(guid, "ci"));
        assert_ne!(id(guid, "ci"), id("other", "ci"));
        assert_ne!(id(guid, "ci"), id(guid, "deploy"));
        // What was built before an upgrade is not built again.
        let known = "9f36314c-12ad-5ef7-87eb-418563ffe2d7";
        assert_eq!(id(guid, DEFAULT_STATUS_CONTEXT).to_string(), known);
        assert_ne!(BuildId::random(), BuildId::random());
    }

    #[test]
    fn the_builds_times_spread_over_a_quarter() {
        let minute = Duration::from_secs(60);
        let times: Vec<_> = (0..100)
            .map(|_| BuildId::random().jittered(minute))
            .collect();
        let (least, most) = (times.iter().min(), times.iter().max());
        assert!(least >= Some(&(minute * 3 / 4)) && most <= Some(&minute));
        assert!(
            most.zip(least)
                .is_some_and(|(most, least)| *most - *least > minute / 10)
        );
    }

    #[test]
    fn a_repository_is_owner_slash_name() {
        for good in ["octo/hello", "Octo-Org/hello.world_1", "a/b", "a/b/c"] {
            assert_eq!(good.parse::<RepoName>().map(String::from), Ok(good.into()));
        }
        let long_part = format!("a/{}", "b".repeat(101));
        let long_name = format!("{}/", "x".repeat(63)).repeat(4);
        for bad in [
            "",
            "octo",
            "octo/",
            "/x",
            "a//c",
            "a/b/",
            "a/..",
            "./b",
            "a/../b",
            "a b/c",
            "a/b?c",
            "ä/b",
            &long_part,
            &format!("{long_name}b"),
        ] {
            assert_eq!(bad.parse::<RepoName>(), Err(InvalidName::Repo), "{bad}");
        }
        assert!(long_name.trim_end_matches('/').parse::<RepoName>().is_ok());
    }

    #[test]
    fn an_owner_is_all_before_the_name() {
        for (repo, owner, name) in [
            ("octo/hello", "octo", "hello"),
            ("group/sub/hello", "group/sub", "hello"),
        ] {
            let repo: RepoName = repo.parse().expect("a name");
            assert_eq!((repo.owner(), repo.name()), (owner, name));
        }
    }

    #[test]
    fn repositories_are_equal_in_any_case() {
        assert_eq!("Octo/Hello".parse::<RepoName>(), "octo/hello".parse());
    }

    #[test]
    fn a_commit_has_40_or_64_hex_digits() {
        let sha1 = "0D1A26E67D8F5EAF1F6BA5C57FC3C7D91AC0FD1C".parse::<CommitSha>();
        assert_eq!(sha1.as_ref().map(CommitSha::short), Ok("0d1a26e"));
        assert!("a".repeat(64).parse::<CommitSha>().is_ok());
        for bad in [
            "",
            "0d1a26e",
            &"a".repeat(41),
            &"g".repeat(40),
            &"é".repeat(20),
        ] {
            assert_eq!(bad.parse::<CommitSha>(), Err(InvalidName::Sha), "{bad}");
        }
        assert!(
            "0".repeat(40)
                .parse::<CommitSha>()
                .is_ok_and(|sha| sha.is_zero())
        );
    }

    #[test]
    fn a_ref_name_is_what_git_accepts() {
        for good in ["main", "feature/ümlaut", "v1.0", "a\"b'c;$(x)", "0d1a26e"] {
            assert!(good.parse::<RefName>().is_ok(), "{good}");
        }
        let long = "x".repeat(256);
        for bad in [
            "", "-x", "a..b", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[b", "a\\b", "@", "a@{1}",
            "/a", "a/", "a//b", ".a", "a/.b", "a.lock", "a.", "a\nb", "a\0b", &long,
        ] {
            assert_eq!(bad.parse::<RefName>(), Err(InvalidName::Ref), "{bad:?}");
        }
    }

    #[test]
    fn a_pushed_ref_is_a_branch_or_a_tag() {
        let name = |text: &str| text.parse::<RefName>().expect("valid");
        assert_eq!("refs/heads/a/b".parse(), Ok(GitRef::Branch(name("a/b"))));
        assert_eq!("refs/tags/v1".parse(), Ok(GitRef::Tag(name("v1"))));
        assert_eq!("refs/notes/x".parse::<GitRef>(), Err(InvalidName::Ref));
        assert_eq!("main".parse::<GitRef>(), Err(InvalidName::Ref));
    }

    #[test]
    fn a_compose_project_name_is_one_that_compose_accepts() {
        let project = BuildId::random().compose_project();
        let accepted = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(
            project.starts_with("ci-") && project.chars().all(accepted),
            "{project}"
        );
    }
}
