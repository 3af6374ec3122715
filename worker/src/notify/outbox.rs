//! What is owed to the world leaves from here. It stands in the ledger, so that a report outlives a
//! forge that is down, a mail server that is slow, and this process.

use std::collections::HashMap;
use std::mem;
use std::time::Duration;

use futures_util::future::join_all;
use shared::build::BuildId;
use shared::ledger::{DueReport, Event, LedgerError, NextReport, STATUS, Setback};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::pace::Paced;
use super::{Notifier, Notifiers, Sent};

/// A report that could not be sent for this long is given up,
const GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// but not before this process has tried for so long, and so often: the machine may have been off for
/// days, and its clock may be wrong until it has asked for the time.
const TRY_AT_LEAST: (Duration, u32) = (Duration::from_secs(60 * 60), 4);
/// How long to leave a ledger alone that cannot be read.
const LEDGER_RETRY: Duration = Duration::from_secs(5);

/// The way of all reports of one notifier, one after the other.
struct Lane<'a> {
    notifiers: &'a Notifiers,
    notifier: &'a Notifier,
    late_pace: Option<Paced>,
    /// The last attempt failed, and the other side did not ask for time: the next success makes all others
    /// due.
    is_failing: bool,
    /// What this process has tried in vain.
    tries: HashMap<BuildId, Tries>,
}

/// How long and how often a report was tried.
#[derive(Debug, Clone, Copy)]
struct Tries {
    since: Instant,
    count: u32,
}

impl Notifiers {
    /// Sends reports until `ending` is cancelled, and then those that are due. An attempt is recorded
    /// before it is made, so this may be dropped at any time; but a mail that is dropped on its way is
    /// sent twice. Each notifier goes its own way, so that no commit waits for a mail server.
    pub(crate) async fn run(&self, ending: &CancellationToken) {
        if let Err(error) = self.ledger.resume_reports().await {
            tracing::error!(%error, "failed to look through the reports that are owed");
        }
        let mut lanes: Vec<_> = self.all.iter().map(|one| Lane::new(self, one)).collect();
        join_all(lanes.iter_mut().map(|lane| lane.send_until(ending))).await;
        // The reports that waited for the last statuses.
        join_all(lanes.iter_mut().map(Lane::send_due)).await;
    }
}

impl<'a> Lane<'a> {
    fn new(notifiers: &'a Notifiers, notifier: &'a Notifier) -> Self {
        Self {
            notifiers,
            notifier,
            late_pace: notifier.late_pace().map(Paced::new),
            is_failing: false,
            tries: HashMap::new(),
        }
    }

    async fn send_until(&mut self, ending: &CancellationToken) {
        let mut changed = self.notifiers.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let is_last = ending.is_cancelled();
            let idle = self.send_due().await;
            if is_last {
                return;
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = pause(idle) => {}
                () = ending.cancelled() => {}
            }
        }
    }

    /// Sends what is due. Returns the time until a report is due again.
    async fn send_due(&mut self) -> Option<Duration> {
        loop {
            let sent = match self.notifiers.ledger.next_due(self.notifier.name()).await {
                Ok(NextReport::Due(due)) => self.deliver(&due).await,
                Ok(NextReport::In(idle)) => return Some(idle),
                Ok(NextReport::Nothing) => return None,
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                tracing::error!(%error, "failed to read or record the reports that are owed");
                return Some(LEDGER_RETRY);
            }
        }
    }

    async fn deliver(&mut self, due: &DueReport) -> Result<(), LedgerError> {
        if due.is_late
            && let Some(pace) = &mut self.late_pace
        {
            pace.next().await;
        }
        let ledger = &self.notifiers.ledger;
        ledger.report_begins(due).await?;
        let sent = self.notifier.send(due, ledger).await;
        self.record(due, sent).await?;
        // Another report may have waited for this one.
        self.notifiers.ring();
        Ok(())
    }

    async fn record(&mut self, due: &DueReport, sent: Sent) -> Result<(), LedgerError> {
        let (id, name) = (due.build.request.id, self.notifier.name());
        let ledger = &self.notifiers.ledger;
        if name == STATUS && due.event == Event::Ended {
            let problem = sent.problem().map(str::to_owned);
            ledger.set_status_problem(id, problem).await?;
        }
        let was_failing = mem::replace(&mut self.is_failing, sent.is_failure());
        if was_failing && matches!(sent, Sent::Done) {
            ledger.reports_are_due(name).await?;
        }
        let reason = match sent {
            Sent::Later(setback) => {
                let tries = self.tries.entry(id).or_insert_with(Tries::none);
                tries.count += 1;
                if !is_hopeless(due, *tries) {
                    log_once(id, name, &setback, *tries);
                    return ledger.report_later(due, setback).await;
                }
                Some(setback.reason)
            }
            Sent::Refused(reason) => Some(reason),
            Sent::Done => None,
        };
        match reason {
            None => {}
            Some(reason) if due.event == Event::Began => {
                tracing::warn!(build = %id, notifier = name, reason, "failed to report that a build began");
            }
            Some(reason) => {
                tracing::error!(build = %id, report = name, reason, "gave up a report");
            }
        }
        self.tries.remove(&id);
        ledger.report_done(due).await
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

fn is_hopeless(due: &DueReport, tries: Tries) -> bool {
    let owed_for = due.owed_since.elapsed().unwrap_or_default();
    let (time, count) = TRY_AT_LEAST;
    owed_for > GIVE_UP_AFTER && tries.count >= count && tries.since.elapsed() >= time
}

/// A token that has expired fails for a day: that is one line of the log.
fn log_once(build: BuildId, report: &str, setback: &Setback, tries: Tries) {
    let reason = &setback.reason;
    match tries.count {
        1 => tracing::warn!(%build, report, reason, "failed to report; trying for a day"),
        _ => tracing::debug!(%build, report, reason, "failed to report"),
    }
}

async fn pause(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
pub(super) mod tests;
