//! The life of a build: `queued → claimed(by) → started → ended(outcome)`.
//!
//! With a store each step is taken there first, and SQLite then says what the store says, whenever
//! that is heard. Without one SQLite alone says it.

use std::time::Duration;

use rusqlite::{OptionalExtension, Transaction};

use super::database::Ledger;
use super::entry::{CLAIM, Entry, Step};
use super::records::{self, to_json};
use super::{LedgerError, Result};
use crate::build::{
    Build, BuildId, BuildRequest, CommitSha, IllegalStep, Outcome, StopReason, WorkerId,
};

/// The clock of the store counts whole seconds.
const SECOND: Duration = Duration::from_secs(1);

/// The result of a worker's attempt to claim a build.
#[derive(Debug)]
pub enum Claim {
    /// It is this worker's, claimed or started.
    Ours(Build),
    /// It has ended.
    Ended(Build),
    /// Another worker has it.
    Elsewhere {
        /// The time after which that worker's claim has ended, unless it is renewed.
        again_in: Duration,
    },
}

impl Ledger {
    /// Returns the build, as far as it is known here.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub async fn find(&self, id: BuildId) -> Result<Option<Build>> {
        let worker = self.worker;
        self.with(move |db| Ok(records::find(db, id, worker)?))
            .await
    }

    /// Returns true if a worker has claimed the build some time: this one, or another one that shares the
    /// store.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub async fn is_known(&self, id: BuildId) -> Result<bool> {
        if self.find(id).await?.is_some() {
            return Ok(true);
        }
        match &self.store {
            Some(store) => Ok(store.is_known(id).await?),
            None => Ok(false),
        }
    }

    /// Claims a build, or renews this worker's claim to it. Without a store the build belongs
    /// to the worker that has its message.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub async fn claim(&self, request: &BuildRequest) -> Result<Claim> {
        let (id, worker) = (request.id, self.worker);
        let known = self.known(id).await?;
        let known = known.unwrap_or_else(|| Entry::new(request.clone(), worker));
        // An end never changes: the store need not be asked.
        let step = match known.state.outcome() {
            Some(_) => None,
            None => {
                let claim = move |stands: Entry, age| stands.claim(worker, age);
                Some(self.step(known, true, claim).await?)
            }
        };
        match step {
            Some(Step::Taken(_)) => Ok(Claim::Ours(self.found(id).await?)),
            Some(Step::Refused {
                why: IllegalStep::NotOurs,
                age,
                ..
            }) => Ok(Claim::Elsewhere {
                again_in: again_in(id, age),
            }),
            _ => Ok(Claim::Ended(self.found(id).await?)),
        }
    }

    /// Renews this worker's claim to a build, where there is a store.
    ///
    /// # Errors
    /// [`LedgerError::ClaimLost`] where another worker has taken the build over.
    pub async fn renew(&self, id: BuildId) -> Result<()> {
        let Some(store) = &self.store else {
            return Ok(());
        };
        let known = self.known(id).await?.ok_or(LedgerError::ClaimLost)?;
        let renew = |stands: Entry, _| stands.renew(self.worker);
        let renewed = store.step(&known, false, renew).await?;
        // Nothing has changed here; a step that was taken meanwhile must not be written over.
        if let Step::Refused { stands, .. } = &renewed {
            self.write(stands.clone()).await?;
        }
        self.unless_ended_here(renewed)
    }

    /// Gives a build back before its hook was started: the next worker that has its message can claim it.
    ///
    /// # Errors
    /// [`LedgerError::ClaimLost`] where another worker has taken the build over.
    pub async fn release(&self, id: BuildId) -> Result<()> {
        let worker = self.worker;
        let released = self.step_of_known(id, move |stands| stands.release(worker));
        taken(released.await?)
    }

    /// Records what an attempt to build has met.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub async fn attempt_met(&self, id: BuildId, problem: &str) -> Result<()> {
        let sql = "UPDATE builds SET last_problem = ?2 WHERE id = ?1";
        let values = (id.to_string(), problem.to_owned());
        self.execute(sql, values).await.map(drop)
    }

    /// Returns what the last attempt of this worker to build has met.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub async fn last_problem(&self, id: BuildId) -> Result<Option<String>> {
        self.with(move |db| {
            let sql = "SELECT last_problem FROM builds WHERE id = ?1";
            let found = db.query_row(sql, [id.to_string()], |row| row.get(0));
            Ok(found.optional()?.flatten())
        })
        .await
    }

    /// Records which commit the name in a request was found to mean.
    ///
    /// # Errors
    /// [`LedgerError::ClaimLost`] where another worker has taken the build over.
    pub async fn set_commit(&self, id: BuildId, commit: &CommitSha) -> Result<()> {
        let (worker, commit) = (self.worker, commit.clone());
        let set = self.step_of_known(id, move |stands| stands.set_commit(worker, commit.clone()));
        taken(set.await?)
    }

    /// Records that a build's hook is about to start, or gone on with. It is durable when this returns;
    /// no hook may start before.
    ///
    /// # Errors
    /// [`LedgerError::ClaimLost`] where another worker has taken the build over.
    pub async fn start(&self, id: BuildId) -> Result<()> {
        let worker = self.worker;
        let started = self.step_of_known(id, move |stands| stands.start(worker));
        taken(started.await?)
    }

    /// Records that a hook whose start was recorded has not begun: the engine has proof of that.
    ///
    /// # Errors
    /// [`LedgerError::ClaimLost`] where another worker has taken the build over.
    pub async fn did_not_start(&self, id: BuildId) -> Result<()> {
        let worker = self.worker;
        let taken_back = self.step_of_known(id, move |stands| stands.did_not_start(worker));
        taken(taken_back.await?)
    }

    /// Records how a build ended together with the reports that it owes. An end that this worker has
    /// recorded before stays as it is.
    ///
    /// # Errors
    /// [`LedgerError::ClaimLost`] where another worker has taken the build over: that worker reports.
    pub async fn end(&self, id: BuildId, outcome: &Outcome, owes: &[&str]) -> Result<()> {
        self.end_after(id, outcome, None, owes).await
    }

    /// As [`end`](Self::end), of a build whose hook ran for this long: this worker may have missed its end.
    ///
    /// # Errors
    /// Those of [`end`](Self::end).
    pub async fn end_after(
        &self,
        id: BuildId,
        outcome: &Outcome,
        ran_for: Option<Duration>,
        owes: &[&str],
    ) -> Result<()> {
        let (worker, outcome) = (self.worker, outcome.clone());
        let owes: Vec<_> = owes.iter().map(|notifier| (*notifier).to_owned()).collect();
        let end = move |stands: Entry| stands.end(worker, outcome.clone(), ran_for, owes.clone());
        let ended = self.step_of_known(id, end).await?;
        self.unless_ended_here(ended)
    }

    /// Records that this worker has lost a build to another one. The store knows, or there is none.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub async fn leave(&self, id: BuildId) -> Result<()> {
        let worker = self.worker;
        self.transact(move |transaction| {
            let Some(known) = records::find_entry(transaction, id, worker)? else {
                return Ok(());
            };
            let is_ours = known.state.owner() == Some(worker);
            if is_ours && let Ok(lost) = known.claim(WorkerId::UNKNOWN, Duration::MAX) {
                records::write(transaction, &lost, worker)?;
            }
            Ok(())
        })
        .await
    }

    /// Returns the builds that this worker has and that have not ended: those with a started hook first,
    /// then the oldest.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub async fn unfinished(&self) -> Result<Vec<Build>> {
        let worker = self.worker;
        self.with(move |db| Ok(records::unfinished(db, worker)?))
            .await
    }

    /// Records why a build must end, before its hook is stopped: a worker that goes on with the build
    /// knows why the hook did not come to its end. The first reason counts. Only what outlives this process is
    /// recorded: that the build is superseded or cancelled.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub async fn request_stop(&self, id: BuildId, reason: &StopReason) -> Result<()> {
        use StopReason::{Cancelled, Superseded};
        if !matches!(reason, Superseded { .. } | Cancelled { .. }) {
            return Ok(());
        }
        let sql = "UPDATE builds SET stop = coalesce(stop, ?2) WHERE id = ?1";
        let values = (id.to_string(), to_json(reason));
        self.execute(sql, values).await.map(drop)
    }

    /// Returns why a build must end, if it must.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub async fn stop_reason(&self, id: BuildId) -> Result<Option<StopReason>> {
        self.with(move |db| {
            let sql = "SELECT stop FROM builds WHERE id = ?1 AND stop IS NOT NULL";
            let found = db.query_row(sql, [id.to_string()], |row| records::from_json(row, "stop"));
            Ok(found.optional()?)
        })
        .await
    }

    /// Returns the outcome of the build of the same branch that ended before this one. One that was
    /// superseded or cancelled says nothing of the branch.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub async fn outcome_before(&self, build: &Build) -> Result<Option<Outcome>> {
        let build = build.clone();
        self.with(move |db| Ok(records::outcome_before(db, &build)?))
            .await
    }

    /// Returns whether a build of one of these commits, on the same branch, was claimed before this one.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub async fn came_before(&self, build: &Build, commits: [&CommitSha; 2]) -> Result<bool> {
        let (build, commits) = (build.clone(), commits.map(CommitSha::clone));
        self.with(move |db| Ok(records::came_before(db, &build, &commits)?))
            .await
    }

    /// Takes a step with a build that this worker has claimed some time.
    async fn step_of_known(
        &self,
        id: BuildId,
        step: impl Fn(Entry) -> Result<Entry, IllegalStep> + Send + 'static,
    ) -> Result<Step> {
        let known = self.known(id).await?.ok_or(LedgerError::ClaimLost)?;
        self.step(known, false, move |stands, _| step(stands)).await
    }

    /// Takes a step with a build, and writes down where it stands then.
    async fn step(
        &self,
        known: Entry,
        is_new: bool,
        step: impl Fn(Entry, Duration) -> Result<Entry, IllegalStep> + Send + 'static,
    ) -> Result<Step> {
        let worker = self.worker;
        let Some(store) = &self.store else {
            let take = move |transaction: &Transaction<'_>| {
                let stands = records::find_entry(transaction, known.id(), worker)?;
                let stands = stands.unwrap_or_else(|| known.clone());
                Ok(match step(stands.clone(), Duration::MAX) {
                    Ok(next) => {
                        records::write(transaction, &next, worker)?;
                        Step::Taken(next)
                    }
                    Err(why) => Step::Refused {
                        why,
                        stands,
                        age: Duration::MAX,
                    },
                })
            };
            return self.transact(take).await;
        };
        let step = store.step(&known, is_new, step).await?;
        self.write(step.stands().clone()).await?;
        Ok(step)
    }

    /// Writes down where the store says that a build stands.
    async fn write(&self, stands: Entry) -> Result<()> {
        let worker = self.worker;
        self.transact(move |transaction| Ok(records::write(transaction, &stands, worker)?))
            .await
    }

    /// Accepts that this worker has ended the build before.
    fn unless_ended_here(&self, step: Step) -> Result<()> {
        match step {
            Step::Refused {
                why: IllegalStep::HasEnded,
                stands,
                ..
            } if stands.writer == self.worker => Ok(()),
            step => taken(step),
        }
    }

    async fn known(&self, id: BuildId) -> Result<Option<Entry>> {
        let worker = self.worker;
        self.with(move |db| Ok(records::find_entry(db, id, worker)?))
            .await
    }

    /// Returns a build that was just written.
    async fn found(&self, id: BuildId) -> Result<Build> {
        let found = self.find(id).await?;
        Ok(found.ok_or(rusqlite::Error::QueryReturnedNoRows)?)
    }
}

fn taken(step: Step) -> Result<()> {
    match step {
        Step::Taken(_) => Ok(()),
        Step::Refused {
            why: IllegalStep::NotOurs,
            ..
        } => Err(LedgerError::ClaimLost),
        Step::Refused { why, .. } => Err(LedgerError::Illegal(why)),
    }
}

/// Returns the time after which another worker's claim of this age has ended, and up to a quarter more,
/// so that not all builds of a lost worker come back at once.
fn again_in(build: BuildId, age: Duration) -> Duration {
    let rest = CLAIM.saturating_sub(age) + SECOND;
    rest + (rest - build.jittered(rest))
}

#[cfg(test)]
mod tests {
    use super::super::database::tests::{ledger, open};
    use super::*;
    use crate::build::samples::request;
    use crate::build::{BuildError, BuildState};

    async fn claimed(ledger: &Ledger, request: &BuildRequest) -> Build {
        match ledger.claim(request).await.expect("claimed") {
            Claim::Ours(build) => build,
            claim => panic!("{claim:?}"),
        }
    }

    async fn found(ledger: &Ledger, id: BuildId) -> Build {
        let found = ledger.find(id).await.expect("read");
        found.expect("it is known")
    }

    fn sha(digit: &str) -> CommitSha {
        digit.repeat(40).parse().expect("sha")
    }

    #[tokio::test]
    async fn a_build_is_remembered_across_a_restart() {
        let (directory, ledger) = ledger();
        let request = request("main");
        claimed(&ledger, &request).await;
        let outcome = Outcome::Failed { exit_code: 2 };
        let ended = ledger.end(request.id, &outcome, &[]);
        ended.await.expect("ended");
        drop(ledger);

        let again = open(directory.path());
        let Claim::Ended(build) = again.claim(&request).await.expect("claimed") else {
            panic!("it has ended");
        };
        assert_eq!(build.request, request);
        assert_eq!(build.outcome(), Some(&outcome));
    }

    #[tokio::test]
    async fn a_hook_that_was_started_is_remembered() {
        let (directory, ledger) = ledger();
        let (first, second) = (request("main"), request("main"));
        for request in [&first, &second] {
            let build = claimed(&ledger, request).await;
            assert!(!build.state.may_have_begun() && build.started_at.is_none());
        }
        ledger.start(second.id).await.expect("started");
        drop(ledger);

        let again = open(directory.path());
        let unfinished = again.unfinished().await.expect("read");
        let unfinished: Vec<_> = unfinished.iter().map(|build| build.request.id).collect();
        assert_eq!(unfinished, [second.id, first.id]);
        let build = claimed(&again, &second).await;
        assert!(build.state.may_have_begun());
        again.start(second.id).await.expect("gone on with");
        let gone_on = found(&again, second.id).await;
        assert_eq!(gone_on.started_at, build.started_at);
    }

    #[tokio::test]
    async fn an_end_stays_and_its_reports_are_owed_once() {
        let (_directory, ledger) = ledger();
        let request = request("main");
        claimed(&ledger, &request).await;
        let ended = ledger.end(request.id, &Outcome::Passed, &["status"]);
        ended.await.expect("ended");
        let late = BuildError::WorkerLost.into();
        let again = ledger.end(request.id, &late, &["status", "mail"]);
        again.await.expect("it has ended before");
        let build = found(&ledger, request.id).await;
        assert_eq!(build.outcome(), Some(&Outcome::Passed));
        assert!(!ledger.is_owed(request.id, "mail").await.expect("read"));
        let started = ledger.start(request.id).await;
        assert!(
            matches!(started, Err(LedgerError::Illegal(_))),
            "{started:?}"
        );
    }

    #[tokio::test]
    async fn a_released_build_is_anybodys() {
        let (_directory, ledger) = ledger();
        let request = request("main");
        claimed(&ledger, &request).await;
        ledger.release(request.id).await.expect("released");
        let build = found(&ledger, request.id).await;
        assert_eq!(build.state, BuildState::Queued);
        assert_eq!(ledger.unfinished().await.expect("read"), []);
        let started = ledger.start(request.id).await;
        assert!(
            matches!(started, Err(LedgerError::ClaimLost)),
            "{started:?}"
        );

        claimed(&ledger, &request).await;
        ledger.start(request.id).await.expect("started");
        let released = ledger.release(request.id).await;
        assert!(
            matches!(released, Err(LedgerError::Illegal(_))),
            "{released:?}"
        );
    }

    #[tokio::test]
    async fn a_lost_build_is_not_gone_on_with() {
        let (_directory, ledger) = ledger();
        let request = request("main");
        claimed(&ledger, &request).await;
        ledger.start(request.id).await.expect("started");
        ledger.leave(request.id).await.expect("left");
        assert_eq!(ledger.unfinished().await.expect("read"), []);
        let build = found(&ledger, request.id).await;
        assert!(build.is_elsewhere && build.state.may_have_begun());
        let ended = ledger.end(request.id, &Outcome::Passed, &[]).await;
        assert!(matches!(ended, Err(LedgerError::ClaimLost)), "{ended:?}");

        // Its message comes back to this worker.
        let build = claimed(&ledger, &request).await;
        assert!(!build.is_elsewhere && build.state.may_have_begun());
        let unknown = BuildId::random();
        ledger.leave(unknown).await.expect("nothing to leave");
        assert_eq!(ledger.find(unknown).await.expect("read"), None);
    }

    #[tokio::test]
    async fn the_commit_of_a_push_is_known_at_once_and_that_of_a_name_when_it_is_found() {
        let (_directory, ledger) = ledger();
        let pushed = request("main");
        let build = claimed(&ledger, &pushed).await;
        assert_eq!(build.commit.as_ref(), pushed.commit());
        assert!(build.commit.is_some());

        let named = BuildRequest {
            id: BuildId::random(),
            revision: "main".parse().expect("name"),
            ..pushed.clone()
        };
        assert_eq!(claimed(&ledger, &named).await.commit, None);
        ledger.set_commit(named.id, &sha("a")).await.expect("set");
        assert_eq!(claimed(&ledger, &named).await.commit, Some(sha("a")));
    }

    #[tokio::test]
    async fn the_outcome_before_is_that_of_the_same_branch_and_tells_of_it() {
        let (_directory, ledger) = ledger();
        for (branch, outcome) in [
            ("main", Outcome::Passed),
            ("other", BuildError::EngineLost.into()),
            ("main", Outcome::Superseded { by: sha("a") }),
            ("main", Outcome::Cancelled { by: "jane".into() }),
        ] {
            let request = request(branch);
            claimed(&ledger, &request).await;
            let ended = ledger.end(request.id, &outcome, &[]);
            ended.await.expect("ended");
        }
        let build = claimed(&ledger, &request("main")).await;
        let before = ledger.outcome_before(&build).await.expect("read");
        assert_eq!(before, Some(Outcome::Passed));
    }

    #[tokio::test]
    async fn a_commit_came_before_if_its_build_on_the_branch_was_claimed_earlier() {
        let (_directory, ledger) = ledger();
        let of = |commit: &str, branch| BuildRequest {
            revision: sha(commit).as_str().parse().expect("sha"),
            ..request(branch)
        };
        let mut builds = Vec::new();
        for (commit, branch) in [("a", "main"), ("b", "other"), ("c", "main"), ("d", "main")] {
            builds.push(claimed(&ledger, &of(commit, branch)).await);
        }
        let third = &builds[2];
        for (commit, came_before) in [("a", true), ("b", false), ("c", false), ("d", false)] {
            let commits = [&sha("e"), &sha(commit)];
            let found = ledger.came_before(third, commits).await.expect("read");
            assert_eq!(found, came_before, "{commit}");
        }
    }

    #[tokio::test]
    async fn the_first_reason_to_stop_is_remembered() {
        let (directory, ledger) = ledger();
        let build = claimed(&ledger, &request("main")).await.request.id;
        let stop_reason = async |ledger: &Ledger| ledger.stop_reason(build).await.expect("read");
        let superseded = StopReason::Superseded { by: sha("a") };
        let cancelled = StopReason::Cancelled { by: "jane".into() };
        for (reason, expected) in [
            (StopReason::Deadline, None),
            (superseded.clone(), Some(&superseded)),
            (cancelled, Some(&superseded)),
        ] {
            let requested = ledger.request_stop(build, &reason);
            requested.await.expect("recorded");
            assert_eq!(stop_reason(&ledger).await.as_ref(), expected);
        }
        drop(ledger);
        let again = open(directory.path());
        assert_eq!(stop_reason(&again).await, Some(superseded));
    }

    #[test]
    fn a_claim_is_looked_at_again_after_its_end() {
        for age in [Duration::ZERO, CLAIM / 2, CLAIM] {
            let wait = again_in(BuildId::random(), age);
            let least = CLAIM - age + SECOND;
            assert!(wait >= least && wait <= least * 5 / 4, "{age:?} {wait:?}");
        }
    }
}
