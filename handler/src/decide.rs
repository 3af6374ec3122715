//! The decision on an event. Nothing here acts: an event and a policy in, a decision out.

use std::fmt;

use shared::build::{
    BuildId, BuildRequest, CommitSha, ForgeKind, GitRef, InvalidName, RepoName, Revision, skip_mark,
};
use shared::config::{BranchFilter, RepoFilter, WebhookConfig};

use crate::event::{Event, Manual, Push};

/// The repositories and refs that may build here.
#[derive(Debug)]
pub(crate) struct Policy {
    repos: RepoFilter,
    branches: BranchFilter,
}

/// The decision on an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Build(BuildRequest),
    Ignore(Ignored),
}

/// Why nothing runs, though nothing is wrong.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ignored {
    Ping,
    Deleted,
    Filtered(GitRef),
    SkipMark(&'static str),
    OtherEvent(String),
}

/// Why an event is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error(transparent)]
    Malformed(#[from] InvalidName),
    #[error(r#"several repositories build here: name one as "repository": {{"full_name": "owner/name"}}"#)]
    RepoNotNamed,
    #[error("{0} is not configured here")]
    RepoNotConfigured(RepoName),
}

impl Policy {
    pub(crate) fn new(config: &WebhookConfig) -> Self {
        Self {
            repos: config.repos.clone(),
            branches: config.branches.clone(),
        }
    }

    fn configured(&self, full_name: &str) -> Result<RepoName, Refused> {
        let repo = full_name.parse()?;
        if self.repos.allows(&repo) {
            Ok(repo)
        } else {
            Err(Refused::RepoNotConfigured(repo))
        }
    }
}

/// Decides what an event of a forge leads to; if to a build, `id` is its name.
pub(crate) fn decide(
    event: &Event<'_>,
    policy: &Policy,
    forge: ForgeKind,
    id: BuildId,
) -> Result<Decision, Refused> {
    match event {
        Event::Push(push) => decide_push(push, policy, forge, id),
        Event::Manual(manual) => decide_manual(manual, policy, forge, id),
        Event::Ping => Ok(Decision::Ignore(Ignored::Ping)),
        Event::Delete => Ok(Decision::Ignore(Ignored::Deleted)),
        Event::Other(name) => Ok(Decision::Ignore(Ignored::OtherEvent((*name).to_owned()))),
    }
}

fn decide_push(
    push: &Push<'_>,
    policy: &Policy,
    forge: ForgeKind,
    id: BuildId,
) -> Result<Decision, Refused> {
    let repo = policy.configured(&push.repo)?;
    let after: CommitSha = push.after.parse()?;
    let git_ref: GitRef = push.git_ref.parse()?;
    if push.deleted || after.is_zero() {
        return Ok(Decision::Ignore(Ignored::Deleted));
    }
    if !policy.branches.allows(git_ref.name()) {
        return Ok(Decision::Ignore(Ignored::Filtered(git_ref)));
    }
    let head_commit = push.head_commit.as_ref();
    if let Some(mark) = head_commit.and_then(|head| skip_mark(&head.message)) {
        return Ok(Decision::Ignore(Ignored::SkipMark(mark)));
    }
    let commit = match (&git_ref, head_commit) {
        // An annotated tag is an object of its own, which has neither statuses nor a tarball.
        (GitRef::Tag(_), Some(head)) => head.id.parse()?,
        _ => after,
    };
    Ok(Decision::Build(BuildRequest {
        forge,
        id,
        repo,
        revision: Revision::Commit(commit),
        git_ref: Some(git_ref),
    }))
}

/// Somebody asks for this very build: no filter and no mark in the message keeps it from them.
fn decide_manual(
    manual: &Manual<'_>,
    policy: &Policy,
    forge: ForgeKind,
    id: BuildId,
) -> Result<Decision, Refused> {
    let repo = match &manual.repo {
        Some(full_name) => policy.configured(full_name)?,
        None => policy.repos.only().cloned().ok_or(Refused::RepoNotNamed)?,
    };
    let revision: Revision = manual.after.parse()?;
    let git_ref = manual.git_ref.as_deref().map(str::parse).transpose()?;
    if matches!(&revision, Revision::Commit(commit) if commit.is_zero()) {
        return Ok(Decision::Ignore(Ignored::Deleted));
    }
    Ok(Decision::Build(BuildRequest {
        forge,
        id,
        repo,
        revision,
        git_ref,
    }))
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ping => f.write_str("pong: pushes to this webhook will build"),
            Self::Deleted => f.write_str("nothing to build: the branch or tag was deleted"),
            Self::Filtered(git_ref) => write!(f, "{} does not build: see BRANCHES", git_ref.name()),
            Self::SkipMark(mark) => write!(f, "{mark} stands in the message of the head commit"),
            Self::OtherEvent(name) => write!(f, "the event {name:?} builds nothing"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::HeadCommit;

    const SHA: &str = "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c";
    const TAG: &str = "5b1ed9d5be1e5a2d1c5d5a0c0a8e7f3f4a6b7c8d";
    const ZERO: &str = "0000000000000000000000000000000000000000";

    fn policy(repos: &str, branches: &str) -> Policy {
        Policy {
            repos: repos.parse().expect("repositories"),
            branches: branches.parse().expect("branches"),
        }
    }

    fn push(git_ref: &'static str, after: &'static str, message: &'static str) -> Push<'static> {
        Push {
            git_ref: git_ref.into(),
            after: after.into(),
            deleted: false,
            repo: "octo/hello".into(),
            head_commit: Some(HeadCommit {
                id: SHA.into(),
                message: message.into(),
            }),
        }
    }

    fn manual(after: &'static str) -> Manual<'static> {
        Manual {
            after: after.into(),
            repo: None,
            git_ref: None,
        }
    }

    /// A decision in one line, as short as a table needs it.
    fn told(event: Event<'_>, policy: &Policy) -> String {
        match decide(&event, policy, ForgeKind::Github, BuildId::random()) {
            Ok(Decision::Build(build)) => {
                let name = build.ref_name().unwrap_or("-");
                format!("build {} {} {name}", build.repo, build.revision)
            }
            Ok(Decision::Ignore(why)) => format!("ignore: {why}"),
            Err(why) => format!("refuse: {why}"),
        }
    }

    #[test]
    fn a_push_builds_unless_something_speaks_against_it() {
        let policy = policy("octo/hello", "main,release/*,v*");
        let built = |name: &str| format!("build octo/hello {SHA} {name}");
        let skipped =
            |mark: &str| format!("ignore: {mark} stands in the message of the head commit");
        let deleted = "ignore: nothing to build: the branch or tag was deleted";
        let bad_sha = "refuse: a commit id has 40 or 64 hexadecimal digits";
        let bad_ref = "refuse: not a valid branch, tag or commit name";
        for (git_ref, after, message, expected) in [
            ("refs/heads/main", SHA, "Mend it", built("main").as_str()),
            ("refs/heads/release/1", SHA, "", &built("release/1")),
            ("refs/tags/v1", SHA, "", &built("v1")),
            ("refs/tags/v1", TAG, "", &built("v1")),
            ("refs/tags/v1", ZERO, "", deleted),
            (
                "refs/heads/x",
                SHA,
                "",
                "ignore: x does not build: see BRANCHES",
            ),
            (
                "refs/heads/main",
                SHA,
                "Mend\n\n[skip ci]",
                &skipped("[skip ci]"),
            ),
            (
                "refs/heads/main",
                SHA,
                "[ci skip] Mend",
                &skipped("[ci skip]"),
            ),
            ("refs/heads/main", SHA, "Mend [no ci]", &skipped("[no ci]")),
            ("refs/heads/main", SHA, "skip ci", &built("main")),
            ("refs/heads/main", ZERO, "", deleted),
            ("refs/heads/x", ZERO, "", deleted),
            ("refs/heads/main", "main", "", bad_sha),
            ("refs/heads/main", &SHA[..7], "", bad_sha),
            ("refs/heads/a..b", SHA, "", bad_ref),
            ("refs/heads/$(x) y", SHA, "", bad_ref),
            ("main", SHA, "", bad_ref),
        ] {
            let event = Event::Push(push(git_ref, after, message));
            assert_eq!(
                told(event, &policy),
                expected,
                "{git_ref} {after} {message}"
            );
        }
    }

    #[test]
    fn a_push_that_says_deleted_does_not_build() {
        let event = Event::Push(Push {
            deleted: true,
            head_commit: None,
            ..push("refs/heads/main", SHA, "")
        });
        let told = told(event, &policy("octo/hello", "*"));
        assert_eq!(
            told,
            "ignore: nothing to build: the branch or tag was deleted"
        );
    }

    #[test]
    fn only_configured_repositories_build() {
        for (repos, full_name, expected) in [
            (
                "octo/hello",
                "Octo/Hello",
                format!("build Octo/Hello {SHA} main"),
            ),
            (
                "octo/*",
                "octo/other",
                format!("build octo/other {SHA} main"),
            ),
            (
                "octo/hello",
                "octo/other",
                "refuse: octo/other is not configured here".into(),
            ),
            (
                "octo/hello",
                "octo",
                "refuse: a repository is written owner/name".into(),
            ),
            (
                "octo/hello",
                "../hello",
                "refuse: a repository is written owner/name".into(),
            ),
        ] {
            let policy = policy(repos, "*");
            let by_push = Push {
                repo: full_name.into(),
                ..push("refs/heads/main", SHA, "")
            };
            let by_hand = Manual {
                repo: Some(full_name.into()),
                git_ref: Some("refs/heads/main".into()),
                ..manual(SHA)
            };
            assert_eq!(told(Event::Push(by_push), &policy), expected);
            assert_eq!(told(Event::Manual(by_hand), &policy), expected);
        }
    }

    #[test]
    fn a_manual_trigger_names_a_commit_branch_tag_or_short_id() {
        let policy = policy("octo/hello", "main");
        for (after, expected) in [
            (SHA, format!("build octo/hello {SHA} -")),
            ("feature/x", "build octo/hello feature/x feature/x".into()),
            ("v1.0", "build octo/hello v1.0 v1.0".into()),
            ("0d1a26e", "build octo/hello 0d1a26e 0d1a26e".into()),
            ("", "refuse: not a valid branch, tag or commit name".into()),
            (
                "--upload-pack=x",
                "refuse: not a valid branch, tag or commit name".into(),
            ),
            (
                ZERO,
                "ignore: nothing to build: the branch or tag was deleted".into(),
            ),
        ] {
            assert_eq!(
                told(Event::Manual(manual(after)), &policy),
                expected,
                "{after}"
            );
        }
    }

    #[test]
    fn a_manual_trigger_names_the_repository_where_several_build() {
        let told = told(Event::Manual(manual(SHA)), &policy("octo/*", "*"));
        let ask = r#"refuse: several repositories build here: name one as "repository": {"full_name": "owner/name"}"#;
        assert_eq!(told, ask);
    }

    #[test]
    fn a_manual_triggers_ref_is_a_whole_one() {
        let with_ref = |git_ref: &str| {
            let event = Event::Manual(Manual {
                git_ref: Some(git_ref.to_owned()),
                ..manual(SHA)
            });
            told(event, &policy("octo/hello", "*"))
        };
        assert_eq!(
            with_ref("refs/tags/v1"),
            format!("build octo/hello {SHA} v1")
        );
        assert_eq!(
            with_ref("v1"),
            "refuse: not a valid branch, tag or commit name"
        );
    }

    #[test]
    fn other_events_build_nothing() {
        let policy = policy("octo/hello", "*");
        for (event, expected) in [
            (
                Event::Ping,
                "ignore: pong: pushes to this webhook will build",
            ),
            (
                Event::Delete,
                "ignore: nothing to build: the branch or tag was deleted",
            ),
            (
                Event::Other("issues"),
                "ignore: the event \"issues\" builds nothing",
            ),
        ] {
            assert_eq!(told(event, &policy), expected);
        }
    }
}
