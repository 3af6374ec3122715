use std::path::PathBuf;

use tempfile::TempDir;

use super::*;

/// The same numbers in every run; their upper bits cannot be compressed.
pub(super) fn noise() -> impl Iterator<Item = u64> {
    std::iter::successors(Some(1u64), |n| {
        Some(n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1))
    })
}

/// Lines that compress badly, as many as asked for.
pub(super) fn long_log(lines: usize) -> String {
    noise()
        .take(lines)
        .map(|n| format!("{n:016x}{:016x}\n", n.rotate_left(17)))
        .collect()
}

pub(super) fn log_file(content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("build.log");
    std::fs::write(&path, content).expect("written");
    (dir, path)
}

#[tokio::test]
async fn nobody_gets_mail_that_nobody_wants() {
    use MailOn::{Always, Change, Failure};
    let passed = &Outcome::Passed;
    let failed = &Outcome::Failed { exit_code: 1 };
    let timed_out = &Outcome::TimedOut { timeout_s: 1 };
    let error = &Outcome::Error(shared::build::BuildError::LogLost);
    let superseded = &shared::build::samples::superseded();
    for (on, outcome, previous, wanted) in [
        (Always, passed, Some(passed), true),
        (Always, superseded, Some(passed), true),
        (Failure, failed, Some(failed), true),
        (Failure, error, Some(error), true),
        (Failure, passed, Some(failed), false),
        (Failure, superseded, Some(passed), false),
        (Change, passed, None, true),
        (Change, passed, Some(failed), true),
        (Change, error, Some(failed), true),
        (Change, failed, Some(timed_out), false),
        (Change, superseded, Some(passed), false),
        (Change, superseded, None, false),
    ] {
        let told = format!("{on:?}: {outcome:?} after {previous:?}");
        assert_eq!(is_wanted(on, outcome, previous), wanted, "{told}");
    }
    let html = crate::notify::tests::html;
    let off = Mailer::new(
        &MailConfig::Off,
        html,
        Links::default(),
        MailLogs::default(),
    );
    assert!(off.await.expect("off").is_none());
}

#[test]
fn a_large_message_is_given_the_time_that_a_slow_line_needs() {
    assert_eq!(send_deadline(1000), Duration::from_secs(30));
    assert_eq!(send_deadline(8 * 1024 * 1024), Duration::from_secs(30 + 64));
}
