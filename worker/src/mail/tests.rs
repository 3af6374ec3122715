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
    let (passed, failed, error) = (
        Outcome::Passed,
        Outcome::Failed { exit_code: 1 },
        Outcome::error("x"),
    );
    assert!(is_wanted(MailOn::Always, &passed, Some(&passed)));
    assert!(is_wanted(MailOn::Failure, &failed, Some(&failed)));
    assert!(!is_wanted(MailOn::Failure, &passed, Some(&failed)));
    assert!(is_wanted(MailOn::Change, &passed, None));
    assert!(is_wanted(MailOn::Change, &passed, Some(&failed)));
    assert!(is_wanted(MailOn::Change, &error, Some(&failed)));
    assert!(!is_wanted(
        MailOn::Change,
        &failed,
        Some(&Outcome::TimedOut { timeout_s: 1 })
    ));
    let off = Mailer::new(&MailConfig::Off).await.expect("off");
    assert!(!off.wants(&failed, None));
}

#[test]
fn a_large_message_is_given_the_time_that_a_slow_line_needs() {
    assert_eq!(send_deadline(1000), Duration::from_secs(30));
    assert_eq!(send_deadline(8 * 1024 * 1024), Duration::from_secs(30 + 64));
}
