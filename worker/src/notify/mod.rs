//! The world hears of builds: commit statuses, mail.
//!
//! A notifier says which outcomes it wants, and sends one report of one build. The [`outbox`] keeps
//! what is owed under the notifier's name, until it is accepted.

mod pace;
mod status;
mod mail;
mod outbox;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use shared::build::{BuildId, Outcome, Site};
use shared::config::MailConfig;
use shared::forge::Forge;
use shared::ledger::{DueReport, Ledger, STATUS, Setback};
use tokio::sync::watch;

pub use self::mail::{MailHtml, MailLogs, Mailer};
use self::pace::Pace;
use self::status::CommitStatuses;

/// One way to tell the world of builds.
#[derive(Debug)]
pub(crate) enum Notifier {
    /// The status of the commit.
    Status(CommitStatuses),
    /// Mail.
    Mail(Mailer),
}

/// All notifiers of a worker, and the outbox from which they send. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct Notifiers {
    all: Arc<[Notifier]>,
    ledger: Ledger,
    changed: watch::Sender<()>,
}

/// The addresses of what people look at.
#[derive(Debug, Clone, Default)]
pub struct Links {
    /// Base of the log pages, without a slash at its end.
    pub public_url: Option<String>,
    /// Where the repositories are.
    pub site: Option<Site>,
}

/// What became of one attempt to send a report.
#[derive(Debug)]
pub enum Sent {
    /// It was accepted.
    Done,
    /// It will never be accepted, and why.
    Refused(String),
    /// It was not accepted now.
    Later(Setback),
}

impl Notifier {
    /// The name under which reports are owed.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Status(_) => STATUS,
            Self::Mail(_) => "mail",
        }
    }

    /// Whether it reports this outcome; `previous` is the one before on the branch.
    pub(crate) fn wants(&self, outcome: &Outcome, previous: Option<&Outcome>) -> bool {
        match self {
            Self::Status(_) => true,
            Self::Mail(mailer) => mailer.wants(outcome, previous),
        }
    }

    /// Sends one report.
    pub(crate) async fn send(&self, due: &DueReport, ledger: &Ledger) -> Sent {
        match self {
            Self::Status(statuses) => statuses.send(due, ledger).await,
            Self::Mail(mailer) => mailer.send(&due.build).await,
        }
    }

    /// The pace of the reports that are late.
    fn late_pace(&self) -> Option<Pace> {
        match self {
            Self::Status(_) => Some(status::LATE_PACE),
            Self::Mail(_) => None,
        }
    }
}

impl Notifiers {
    /// Prepares all notifiers that are configured. Nothing is connected yet.
    ///
    /// # Errors
    /// A setting cannot be used; the message names it.
    pub(crate) async fn new(
        forge: Forge,
        mail: &MailConfig,
        html: MailHtml,
        ledger: Ledger,
        links: &Links,
        logs: MailLogs,
    ) -> anyhow::Result<Self> {
        let mut all = vec![Notifier::Status(CommitStatuses::new(forge, links.clone()))];
        let mailer = Mailer::new(mail, html, links.clone(), logs);
        all.extend(mailer.await?.map(Notifier::Mail));
        Ok(Self {
            all: all.into(),
            ledger,
            changed: watch::Sender::default(),
        })
    }

    /// The names of those that report this outcome.
    pub(crate) fn wanting(
        &self,
        outcome: &Outcome,
        previous: Option<&Outcome>,
    ) -> Vec<&'static str> {
        let wanting = self.all.iter().filter(|one| one.wants(outcome, previous));
        wanting.map(Notifier::name).collect()
    }

    /// Tells the outbox that a report is owed.
    pub(crate) fn ring(&self) {
        self.changed.send_replace(());
    }

    /// Returns when this notifier owes no report of the build's end.
    pub(crate) async fn until_sent(&self, build: BuildId, notifier: &str) {
        let mut changed = self.changed.subscribe();
        while self.ledger.is_owed(build, notifier).await.unwrap_or(true) {
            let _ = changed.changed().await;
        }
    }
}

impl Links {
    /// The page of a build.
    pub fn build_page(&self, build: BuildId) -> Option<String> {
        let base = self.public_url.as_ref()?;
        Some(format!("{base}/builds/{build}"))
    }
}

impl Sent {
    /// True if the other side could not be reached, or failed, and did not say when to come again.
    fn is_failure(&self) -> bool {
        matches!(self, Self::Later(setback) if setback.asked.is_none())
    }

    fn later(reason: String) -> Self {
        Self::Later(Setback {
            reason,
            asked: None,
        })
    }

    /// Why the report was not accepted, if it was not.
    fn problem(&self) -> Option<&str> {
        match self {
            Self::Done => None,
            Self::Refused(reason) => Some(reason),
            Self::Later(setback) => Some(&setback.reason),
        }
    }
}
