//! Tells the world how builds ended. What is owed stands in the records, so that a report
//! outlives a GitHub that is down, a mail server that is slow, and this process.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use shared::build::BuildId;
use shared::forge::{CommitStatus, Forge, ForgeError};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::claim;
use crate::hold::FENCE;
use crate::log;
use crate::mail::{MailError, Mailer};
use crate::outcome::Outcome;
use crate::record::{Build, DueReport, Finished, RecordError, Records, Report, Setback};
use crate::render::{self, MailContext};

/// A report that could not be sent for this long is given up,
const GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// but not before this process has tried for so long, and so often: the machine may have been off for
/// days, and its clock may be wrong until it has asked for the time.
const TRY_AT_LEAST: (Duration, u32) = (Duration::from_secs(60 * 60), 4);
/// What is late leaves at this pace. GitHub allows 80 requests a minute that make something, and asks
/// for a second between them; 20 are left for what is not late.
/// <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api>
const LATE_PACE: Duration = Duration::from_secs(1);
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
    pub(crate) github: Forge,
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
    /// Not now.
    Later(Setback),
}

/// The way of all reports of one kind, one after the other.
struct Lane<'a> {
    reporter: &'a Reporter,
    report: Report,
    late_pace: Interval,
    /// What this process has tried in vain.
    tries: HashMap<BuildId, Tries>,
}

/// How long and how often a report was tried.
#[derive(Debug, Clone, Copy)]
struct Tries {
    since: Instant,
    count: u32,
}

impl Reporter {
    /// Sends reports until `ending` is cancelled, and then those that are due. An attempt is noted
    /// before it is made, so this may be dropped at any time; but a mail that is dropped on its
    /// way is sent twice. Statuses and mails go their own ways, so that no commit waits for a mail
    /// server.
    pub(crate) async fn run(&self, ending: &CancellationToken) {
        if let Err(error) = self.records.resume_reports().await {
            tracing::error!(%error, "cannot look through the reports that are owed");
        }
        let mut statuses = Lane::new(self, Report::Status);
        let mut mails = Lane::new(self, Report::Mail);
        tokio::join!(statuses.send_until(ending), mails.send_until(ending));
        // The mails that waited for the last statuses.
        mails.send_due().await;
    }

    async fn send_status(&self, due: &DueReport) -> Sent {
        let build = &due.build;
        let (Some(commit), Some(finished)) = (&build.commit, &build.finished) else {
            return Sent::Refused("the build has no commit to report on".into());
        };
        match self.records.is_outdated(build.request.id).await {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(build = %build.request.id, "a later build of the commit was reported; its status stays");
                return Sent::Done;
            }
            Err(error) => return Sent::later(error.to_string()),
        }
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
            Err(error) if is_about_status(&error) => Sent::Refused(error.to_string()),
            Err(error) => Sent::Later(Setback {
                reason: error.to_string(),
                asked: error.retry_after(),
            }),
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
            Err(MailError::Transient(reason)) => Sent::later(reason),
            Err(MailError::Permanent(reason)) => Sent::Refused(reason),
        }
    }
}

impl<'a> Lane<'a> {
    fn new(reporter: &'a Reporter, report: Report) -> Self {
        let mut late_pace = interval(LATE_PACE);
        late_pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            reporter,
            report,
            late_pace,
            tries: HashMap::new(),
        }
    }

    async fn send_until(&mut self, ending: &CancellationToken) {
        let mut rung = self.reporter.bell.0.subscribe();
        loop {
            rung.mark_unchanged();
            let is_last = ending.is_cancelled();
            let idle = self.send_due().await;
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

    /// Sends what is due, and tells how long nothing will be.
    async fn send_due(&mut self) -> Option<Duration> {
        loop {
            let sent = match self.reporter.records.next_due(self.report).await {
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

    async fn deliver(&mut self, due: &DueReport) -> Result<(), RecordError> {
        let Reporter { records, bell, .. } = self.reporter;
        if due.is_late && self.report == Report::Status {
            self.late_pace.tick().await;
        }
        records
            .report_begins(due.build.request.id, self.report)
            .await?;
        let sent = match self.report {
            Report::Status => self.reporter.send_status(due).await,
            Report::Mail => self.reporter.send_mail(due).await,
        };
        self.note(due, sent).await?;
        // A mail may have waited for this status.
        bell.ring();
        Ok(())
    }

    async fn note(&mut self, due: &DueReport, sent: Sent) -> Result<(), RecordError> {
        let (id, report) = (due.build.request.id, self.report);
        let records = &self.reporter.records;
        if report == Report::Status {
            let problem = sent.problem().map(str::to_owned);
            records.set_status_problem(id, problem).await?;
        }
        let reason = match sent {
            Sent::Later(setback) => {
                let tries = self.tries.entry(id).or_insert_with(Tries::none);
                tries.count += 1;
                if !is_hopeless(due, *tries) {
                    tell_once(id, report, &setback, *tries);
                    return records
                        .report_later(id, report, due.attempts, setback)
                        .await;
                }
                Some(setback.reason)
            }
            Sent::Refused(reason) => Some(reason),
            Sent::Done => None,
        };
        if let Some(reason) = reason {
            tracing::error!(build = %id, ?report, reason, "gave up a report");
        }
        self.tries.remove(&id);
        records.report_done(id, report).await
    }
}

impl Sent {
    fn later(reason: String) -> Self {
        Self::Later(Setback {
            reason,
            asked: None,
        })
    }

    fn problem(&self) -> Option<&str> {
        match self {
            Self::Done => None,
            Self::Refused(reason) => Some(reason),
            Self::Later(setback) => Some(&setback.reason),
        }
    }
}

impl Tries {
    fn none() -> Self {
        Self {
            since: Instant::now(),
            count: 0,
        }
    }
}

/// Whether GitHub minds this very status, whoever posts it whenever. Every other refusal concerns us:
/// a token that has expired, or was narrowed, is renewed some time.
fn is_about_status(error: &ForgeError) -> bool {
    matches!(error, ForgeError::Refused { status: 422, .. })
}

fn is_hopeless(due: &DueReport, tries: Tries) -> bool {
    let owed_for = due.owed_since.elapsed().unwrap_or_default();
    let (time, count) = TRY_AT_LEAST;
    owed_for > GIVE_UP_AFTER && tries.count >= count && tries.since.elapsed() >= time
}

/// A token that has expired fails for a day: that is one line of the log.
fn tell_once(build: BuildId, report: Report, setback: &Setback, tries: Tries) {
    let reason = &setback.reason;
    match tries.count {
        1 => tracing::warn!(%build, ?report, reason, "cannot report yet; trying for a day"),
        _ => tracing::debug!(%build, ?report, reason, "cannot report yet"),
    }
}

async fn pause(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
