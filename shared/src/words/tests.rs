//! The words that people read, one by one.

use super::*;
use crate::build::samples::{ended, github_site, running, superseded};
use crate::build::{BuildError, WorkerId};

/// A manual build of this name.
fn manual(name: &str, commit: Option<&str>) -> Build {
    let mut build = ended(Outcome::Passed, 3);
    build.request.git_ref = None;
    build.request.revision = name.parse().expect("name");
    build.commit = commit.map(|sha| sha.parse().expect("sha"));
    build
}

fn outcomes() -> [Outcome; 8] {
    [
        Outcome::Passed,
        Outcome::Failed { exit_code: 3 },
        Outcome::TimedOut { timeout_s: 3600 },
        Outcome::OutOfMemory {
            limit_bytes: Some(512 << 20),
        },
        Outcome::OutOfMemory { limit_bytes: None },
        Outcome::Cancelled { by: "jane".into() },
        superseded(),
        BuildError::Engine("build image nope:1 not found".into()).into(),
    ]
}

fn error(reason: String) -> Outcome {
    BuildError::Reason(reason).into()
}

fn log(tail: &str, rest: LogRest) -> LogExcerpt {
    LogExcerpt {
        tail: tail.to_owned(),
        rest,
    }
}

#[test]
fn each_outcome_has_a_status_of_its_own() {
    let status = |outcome| {
        let description = status_description(&outcome, Duration::from_secs(72));
        format!("{:?}: {description}", outcome.commit_state())
    };
    insta::assert_snapshot!(outcomes().map(status).join("\n"), @r"
    Success: passed in 1m 12s
    Failure: failed with exit code 3 after 1m 12s
    Failure: timed out after 1h
    Failure: out of memory (limit 512MiB) after 1m 12s
    Failure: out of memory (the host had none left) after 1m 12s
    Error: error: cancelled by jane
    Error: error: superseded by c0ffee6
    Error: error: build image nope:1 not found
    ");
}

#[test]
fn each_outcome_has_a_subject_of_its_own() {
    let subject = |outcome| mail_subject(&ended(outcome, 9));
    insta::assert_snapshot!(outcomes().map(subject).join("\n"), @r"
    [octo/hello] feature/ümlaut 0d1a26e passed in 9s
    [octo/hello] feature/ümlaut 0d1a26e failed with exit code 3 after 9s
    [octo/hello] feature/ümlaut 0d1a26e timed out after 1h
    [octo/hello] feature/ümlaut 0d1a26e out of memory (limit 512MiB) after 9s
    [octo/hello] feature/ümlaut 0d1a26e out of memory (the host had none left) after 9s
    [octo/hello] feature/ümlaut 0d1a26e error: cancelled by jane (after 9s)
    [octo/hello] feature/ümlaut 0d1a26e error: superseded by c0ffee6 (after 9s)
    [octo/hello] feature/ümlaut 0d1a26e error: build image nope:1 not found (after 9s)
    ");
}

#[test]
fn a_subject_says_of_the_commit_what_is_known() {
    let sha = "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c";
    assert_eq!(
        mail_subject(&manual("v1.0", Some(sha))),
        "[octo/hello] v1.0 0d1a26e passed in 3s"
    );
    assert_eq!(
        mail_subject(&manual("v1.0", None)),
        "[octo/hello] v1.0 passed in 3s"
    );
    assert_eq!(
        mail_subject(&manual("0d1a", Some(sha))),
        "[octo/hello] 0d1a26e passed in 3s"
    );
    assert_eq!(
        mail_subject(&manual(sha, Some(sha))),
        "[octo/hello] 0d1a26e passed in 3s"
    );
}

#[test]
fn a_description_is_one_line_of_at_most_140_characters() {
    let long = error(format!("first\r\nsecond\t\x1b[31m{}", "ü".repeat(200)));
    let description = status_description(&long, Duration::ZERO);
    assert!(
        description.starts_with("error: first second [31müü"),
        "{description}"
    );
    assert!(description.ends_with("ü…"), "{description}");
    assert_eq!(description.chars().count(), 140);

    let just_fits = error("x".repeat(140 - "error: ".len()));
    assert!(status_description(&just_fits, Duration::ZERO).ends_with('x'));
}

#[test]
fn durations_and_sizes_are_told_as_people_say_them() {
    let times = [0, 1, 59, 60, 61, 3599, 3600, 3660, 36_610];
    let told = times.map(|seconds| time(Duration::from_secs(seconds)));
    assert_eq!(
        told,
        [
            "<1s", "1s", "59s", "1m", "1m 1s", "59m 59s", "1h", "1h 1m", "10h 10m"
        ]
    );
    assert_eq!(time(Duration::from_millis(999)), "<1s");

    let sizes = [512, 1 << 10, 500_000_000, 512 << 20, 3 << 29, 2 << 30];
    assert_eq!(
        sizes.map(size),
        ["512B", "1KiB", "476.8MiB", "512MiB", "1.5GiB", "2GiB"]
    );
}

#[test]
fn the_text_tells_all_there_is_to_tell() {
    let mut build = ended(Outcome::Failed { exit_code: 3 }, 12);
    build.status_problem = Some("GitHub answered 403\nto the commit status".to_owned());
    let context = MailContext {
        site: Some(&github_site()),
        page_url: Some("https://ci.example.org/builds/5f9ef6b0-94f6-5a58-8b5e-3d1f0a3b6c1d"),
        container_kept: true,
    };
    let log = log("\x1b[32mok\x1b[0m 1\nnot ok 2\n\n", LogRest::Attached);
    insta::assert_snapshot!(mail_text(&build, &context, &log), @"
    failed with exit code 3 after 12s

    Repository  octo/hello
    Branch      feature/ümlaut
    Commit      0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c
    Started     Sat, 22 Nov 2025 18:00:00 GMT
    Page        https://ci.example.org/builds/5f9ef6b0-94f6-5a58-8b5e-3d1f0a3b6c1d

    The status of the commit could not be posted: GitHub answered 403 to the commit status

    The end of the log; the whole log is attached:

    ok 1
    not ok 2

    -- 
    The container was kept: docker logs 5f9ef6b0-94f6-5a58-8b5e-3d1f0a3b6c1d
    Build 5f9ef6b0-94f6-5a58-8b5e-3d1f0a3b6c1d
    ");
}

#[test]
fn the_text_is_short_when_there_is_little_to_tell() {
    let text = mail_text(
        &manual("v1.0", None),
        &MailContext::default(),
        &log("", LogRest::Shown),
    );
    insta::assert_snapshot!(text, @"
    passed in 3s

    Repository  octo/hello
    Revision    v1.0
    Started     Sat, 22 Nov 2025 18:00:00 GMT

    The log is empty.

    -- 
    Build 5f9ef6b0-94f6-5a58-8b5e-3d1f0a3b6c1d
    ");
}

#[test]
fn where_not_all_of_a_log_fits_the_mail_says_so() {
    let log = log("end", LogRest::EndAttached);
    let without_page = log_heading(&MailContext::default(), &log);
    assert!(
        without_page.ends_with("as much as fits is attached:"),
        "{without_page}"
    );
    let page_url = Some("https://ci.example.org");
    let with_page = log_heading(
        &MailContext {
            page_url,
            ..MailContext::default()
        },
        &log,
    );
    assert!(
        with_page.ends_with("the page shows all of it:"),
        "{with_page}"
    );
}

#[test]
fn links_lead_to_the_branch_and_the_commit() {
    let links: Vec<_> = facts(&running(), Some(&github_site()))
        .into_iter()
        .filter_map(|f| f.link)
        .collect();
    assert_eq!(
        links,
        [
            "https://github.com/octo/hello",
            "https://github.com/octo/hello/tree/feature/%C3%BCmlaut",
            "https://github.com/octo/hello/commit/0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c",
        ]
    );
    assert!(
        facts(&running(), None)
            .iter()
            .all(|fact| fact.link.is_none())
    );
}

#[test]
fn an_unfinished_build_says_where_it_stands() {
    let by = WorkerId::random();
    let standing = |state, is_elsewhere| {
        headline(&Build {
            state,
            is_elsewhere,
            ..running()
        })
    };
    assert_eq!(standing(BuildState::Queued, false), "queued");
    assert_eq!(standing(BuildState::Claimed { by }, false), "running");
    assert_eq!(standing(BuildState::Started { by }, false), "running");
    let elsewhere = standing(BuildState::Started { by }, true);
    assert_eq!(elsewhere, "taken over by another worker");
    let known_end = BuildState::Ended(Outcome::Passed);
    assert!(standing(known_end, true).starts_with("passed"));
}

#[test]
fn a_cancelling_persons_name_stays_on_its_line() {
    let by = "jane\r\nSubject: x".to_owned();
    let description = status_description(&Outcome::Cancelled { by }, Duration::ZERO);
    assert_eq!(description, "error: cancelled by jane Subject: x");
}
