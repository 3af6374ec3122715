//! Tells the world how builds ended. What is owed stands in the records, so that a report
//! outlives a GitHub that is down, a mail server that is slow, and this process.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use shared::build::BuildId;
use shared::github::{CommitStatus, Github};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::claim;
use crate::hold::FENCE;
use crate::log;
use crate::mail::{MailError, Mailer};
use crate::outcome::Outcome;
use crate::record::{Build, DueReport, Finished, RecordError, Records, Report};
use crate::render::{self, MailContext};

/// A report that could not be sent for this long is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// How long to leave records alone that cannot be read.
const RECORDS_RETRY: Duration = Duration::from_secs(5);

/// Tells the reporter that a report is owed. Clones ring the same bell.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bell(watch::Sender<()>);

impl Bell {
    pub(crate) fn ring(&self) {
        self.0.send_replace(());
    }
}

/// Sends what is owed.
#[derive(Debug)]
pub(crate) struct Reporter {
    pub(crate) records: Records,
    pub(crate) github: Github,
    pub(crate) mailer: Mailer,
    pub(crate) links: Links,
    pub(crate) data_dir: PathBuf,
    /// Whether `docker logs <uuid>` works after the build.
    pub(crate) containers_kept: bool,
    /// Whether other workers have the same queue.
    pub(crate) among_others: bool,
    pub(crate) bell: Bell,
}

/// Where people look.
#[derive(Debug, Clone)]
pub struct Links {
    /// Base of the log pages, without a slash at its end.
    pub public_url: Option<String>,
    /// Base of the repositories, such as `https://github.com`.
    pub web_url: Option<String>,
}

impl Links {
    /// The page of a build.
    pub fn build_page(&self, build: BuildId) -> Option<String> {
        let base = self.public_url.as_ref()?;
        Some(format!("{base}/builds/{build}"))
    }
}

/// What became of one attempt to send a report.
enum Sent {
    Done,
    /// It never will be, and why.
    Refused(String),
    /// Not now, and why; when to try again if the other side said so.
    Later(String, Option<Duration>),
}

impl Reporter {
    /// Sends reports until `ending` is cancelled, and then those that are due. An attempt is noted
    /// before it is made, so this may be dropped at any time; but a mail that is dropped on its
    /// way is sent twice. Statuses and mails go their own ways, so that no commit waits for a mail
    /// server.
    pub(crate) async fn run(&self, ending: &CancellationToken) {
        tokio::join!(
            self.send_until(ending, Report::Status),
            self.send_until(ending, Report::Mail)
        );
        // The mails that waited for the last statuses.
        self.send_due(Report::Mail).await;
    }

    async fn send_until(&self, ending: &CancellationToken, report: Report) {
        let mut rung = self.bell.0.subscribe();
        loop {
            rung.mark_unchanged();
            let is_last = ending.is_cancelled();
            let idle = self.send_due(report).await;
            if is_last {
                return;
            }
            tokio::select! {
                _ = rung.changed() => {}
                () = pause(idle) => {}
                () = ending.cancelled() => {}
            }
        }
    }

    /// Sends what is due of one kind, and tells how long nothing will be.
    async fn send_due(&self, report: Report) -> Option<Duration> {
        loop {
            let sent = match self.records.next_due(report).await {
                Ok(Ok(due)) => self.deliver(&due).await,
                Ok(Err(idle)) => return idle,
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                tracing::error!(%error, "cannot read or note which reports are owed");
                return Some(RECORDS_RETRY);
            }
        }
    }

    async fn deliver(&self, due: &DueReport) -> Result<(), RecordError> {
        let id = due.build.request.id;
        self.records.report_begins(id, due.report).await?;
        let sent = match due.report {
            Report::Status => self.send_status(due).await,
            Report::Mail => self.send_mail(due).await,
        };
        self.note(due, sent).await?;
        // A mail may have waited for this status.
        self.bell.ring();
        Ok(())
    }

    async fn note(&self, due: &DueReport, sent: Sent) -> Result<(), RecordError> {
        let id = due.build.request.id;
        let report = due.report;
        let problem = match &sent {
            Sent::Done => None,
            Sent::Refused(reason) | Sent::Later(reason, _) => Some(reason.clone()),
        };
        if report == Report::Status {
            self.records.set_status_problem(id, problem).await?;
        }
        match sent {
            Sent::Later(reason, wait) if !is_stale(&due.build) => {
                tracing::warn!(build = %id, ?report, reason, "cannot report now");
                self.records
                    .report_later(id, report, due.attempts, wait)
                    .await
            }
            Sent::Later(reason, _) | Sent::Refused(reason) => {
                tracing::error!(build = %id, ?report, reason, "gave up a report");
                self.records.report_done(id, report).await
            }
            Sent::Done => self.records.report_done(id, report).await,
        }
    }

    async fn send_status(&self, due: &DueReport) -> Sent {
        let build = &due.build;
        let (Some(commit), Some(finished)) = (&build.commit, &build.finished) else {
            return Sent::Refused("the build has no commit to report on".into());
        };
        let (id, repo) = (build.request.id, &build.request.repo);
        let maybe_posted = due.attempts > 0;
        let posted = async {
            if self.maybe_told_elsewhere(due, finished)
                && claim::is_told(&self.github.statuses(repo, commit).await?, id)
            {
                return Ok(());
            }
            let status = self.final_status(build, &finished.outcome);
            let posted = self.github.post_status(repo, commit, &status, maybe_posted);
            posted.await
        };
        match posted.await {
            Ok(()) => Sent::Done,
            Err(error) if error.is_transient() => {
                Sent::Later(error.to_string(), error.retry_after())
            }
            Err(error) => Sent::Refused(error.to_string()),
        }
    }

    fn final_status(&self, build: &Build, outcome: &Outcome) -> CommitStatus {
        let id = build.request.id;
        let duration = build.duration().unwrap_or_default();
        let target_url = self.links.build_page(id);
        // Other workers must see which build it is of: see `claim`.
        let is_nameless = self.among_others && target_url.is_none();
        CommitStatus {
            state: render::status_state(outcome),
            description: Some(match is_nameless {
                true => render::status_description_of(id, outcome, duration),
                false => render::status_description(outcome, duration),
            }),
            target_url,
        }
    }

    /// Whether another worker may have told the end of a build. It could not while this one had the
    /// build's lease, and that is not over when the build has just ended.
    fn maybe_told_elsewhere(&self, due: &DueReport, end: &Finished) -> bool {
        let ago = end.at.elapsed().unwrap_or_default();
        self.among_others && (due.attempts > 0 || ago > FENCE)
    }

    async fn send_mail(&self, due: &DueReport) -> Sent {
        let build = &due.build;
        let page_url = self.links.build_page(build.request.id);
        let context = MailContext {
            web_url: self.links.web_url.as_deref(),
            page_url: page_url.as_deref(),
            container_kept: self.containers_kept,
        };
        let log = log::path(&self.data_dir, build.request.id);
        match self.mailer.send(build, &context, &log).await {
            Ok(()) => Sent::Done,
            Err(MailError::Transient(reason)) => Sent::Later(reason, None),
            Err(MailError::Permanent(reason)) => Sent::Refused(reason),
        }
    }
}

fn is_stale(build: &Build) -> bool {
    let finished = build.finished.as_ref();
    finished.is_some_and(|end| end.at + GIVE_UP_AFTER < SystemTime::now())
}

async fn pause(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
