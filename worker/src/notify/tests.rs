//! What all notifiers have in common.

use shared::build::samples::superseded;
use shared::build::{Build, BuildError};
use shared::words::{LogExcerpt, MailContext};

use super::*;

/// What stands for the HTML of a mail.
pub(super) fn html(_build: &Build, _context: &MailContext<'_>, log: &LogExcerpt) -> String {
    format!("<pre>{}</pre>", log.tail)
}

#[test]
fn statuses_tell_every_outcome() {
    let forge = outbox::tests::forge("http://127.0.0.1:9", "token");
    let notifier = Notifier::Status(CommitStatuses::new(forge, Links::default()));
    for outcome in [Outcome::Passed, superseded(), BuildError::WorkerLost.into()] {
        assert!(
            notifier.wants(&outcome, Some(&Outcome::Passed)),
            "{outcome:?}"
        );
    }
}
