//! How every build is judged: its recorded outcome, the words of its hook, its commit statuses and its
//! log must agree.

use harness::{CommitState, Engine, OneBox, Status};
use shared::build::{BuildError, Outcome};

use crate::hooks::{Hooks, Mark};
use crate::recorded;
use crate::world::{Build, DEADLINE, World};

/// As much of an error as a line of the report has room for.
const REASON_MAX_CHARS: usize = 50;

/// How a build may end that met a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bar {
    ends: Ends,
    log_may_lack_end: bool,
    may_be_told_again: bool,
}

#[derive(Clone, Copy, Debug)]
enum Ends {
    Result,
    ResultOrError(Explains),
    Error(Explains),
}

/// Whether a fault explains an error.
type Explains = fn(&BuildError) -> bool;

impl Bar {
    /// In its hook's own result, which is told once, and with its whole log.
    pub(crate) const RESULT: Self = Self {
        ends: Ends::Result,
        log_may_lack_end: false,
        may_be_told_again: false,
    };

    /// Or in an error that its fault explains, and that is true.
    pub(crate) const fn or_error(mut self, explains: Explains) -> Self {
        self.ends = Ends::ResultOrError(explains);
        self
    }

    /// In an error that its fault explains, and nothing else.
    pub(crate) const fn error(explains: Explains) -> Self {
        let mut bar = Self::RESULT;
        bar.ends = Ends::Error(explains);
        bar
    }

    /// Where nobody but the engine had the end of what the hook wrote, and the engine was lost.
    pub(crate) const fn without_end_of_log(mut self) -> Self {
        self.log_may_lack_end = true;
        self
    }

    /// Where the message came back of a build that had ended: its stored result is told once more.
    pub(crate) const fn or_told_again(mut self, message_comes_back: bool) -> Self {
        self.may_be_told_again = message_comes_back;
        self
    }

    /// What is wrong with this end.
    fn is_missed_by(self, told: &Told) -> Option<String> {
        match (self.ends, told) {
            (Ends::Result | Ends::ResultOrError(_), Told::Result) => None,
            (Ends::Error(explains) | Ends::ResultOrError(explains), Told::Error(error))
                if explains(error) =>
            {
                None
            }
            (_, Told::Result) => Some("was told a result in spite of its fault".to_owned()),
            (_, Told::Error(error)) => Some(format!(
                "was told an error that its fault does not explain: {error:?}"
            )),
        }
    }
}

/// What became of the builds of a row.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    judged: usize,
    /// The hook's own result was told.
    pub(crate) told: usize,
    /// An error was told.
    pub(crate) errors: Vec<String>,
    /// The same final status was posted more than once.
    repeated: usize,
    /// The log lacks its end.
    cut: usize,
    /// What must not be.
    pub(crate) problems: Vec<String>,
}

impl Tally {
    pub(crate) fn builds(&self) -> usize {
        self.judged
    }

    pub(crate) fn problem(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    /// Judges a build that has come to its end at this service, with the log that was stored.
    pub(crate) fn judge(
        &mut self,
        world: &World,
        hooks: &Hooks,
        service: &OneBox,
        (build, log): (&Build, &str),
        bar: Bar,
    ) {
        let sha = &build.commit.sha;
        let evidence = Evidence {
            exit_code: build.commit.exit_code,
            outcome: recorded::outcome(service, &build.id),
            statuses: world.github.statuses(sha),
            began: hooks.count(sha, Mark::Began),
            ended: hooks.count(sha, Mark::Ended),
            log,
        };
        self.judged += 1;
        let judged = evidence
            .judge(bar)
            .and_then(|told| match bar.is_missed_by(&told) {
                Some(problem) => Err(problem),
                None => Ok(told),
            });
        match judged {
            Ok(Told::Result) => {
                self.told += 1;
                self.cut += usize::from(evidence.log != Hooks::whole_log());
            }
            Ok(Told::Error(error)) => self.errors.push(error.to_string()),
            Err(problem) => {
                let states = states(&evidence.statuses);
                self.problem(format!("{} {problem}; told: {states}", build.id));
            }
        }
        self.repeated += usize::from(evidence.finals().len() > 1);
    }

    /// Counts a build that came to its own end.
    pub(crate) fn passed_own_result(&mut self) {
        self.judged += 1;
        self.told += 1;
    }

    /// Counts a build that ended in an error which its fault explains.
    pub(crate) fn ended_in(&mut self, error: &BuildError) {
        self.judged += 1;
        self.errors.push(error.to_string());
    }

    /// Waits until the engine holds nothing of these builds.
    ///
    /// # Panics
    /// When something is left, with its name.
    pub(crate) async fn nothing_is_left(engine: &Engine, builds: &[Build]) {
        for build in builds {
            let project = build.project();
            engine
                .assert_nothing_left(&build.id, &project, DEADLINE)
                .await;
        }
    }

    /// Takes up what another one has counted.
    pub(crate) fn add(&mut self, other: Self) {
        self.judged += other.judged;
        self.told += other.told;
        self.errors.extend(other.errors);
        self.cut += other.cut;
        self.repeated += other.repeated;
        self.problems.extend(other.problems);
    }

    /// In a few words.
    pub(crate) fn summary(&self) -> String {
        let mut summary = format!(
            "{} builds: {} told their hook's result, {} an error",
            self.builds(),
            self.told,
            self.errors.len()
        );
        let mut reasons = self.errors.clone();
        reasons.sort();
        for same in reasons.chunk_by(|one, other| one == other) {
            let reason: String = same[0].chars().take(REASON_MAX_CHARS).collect();
            summary += &format!(" [{} × {reason}]", same.len());
        }
        if self.cut > 0 {
            summary += &format!(", {} without the end of their log", self.cut);
        }
        if self.repeated > 0 {
            summary += &format!(", {} told it twice", self.repeated);
        }
        summary
    }
}

/// What was told of a build.
enum Told {
    Result,
    Error(BuildError),
}

/// What is known of a build from outside.
struct Evidence<'a> {
    exit_code: u8,
    outcome: Option<Outcome>,
    statuses: Vec<Status>,
    began: usize,
    ended: usize,
    log: &'a str,
}

impl Evidence<'_> {
    /// # Errors
    /// A promise is broken: which.
    fn judge(&self, bar: Bar) -> Result<Told, String> {
        if self.began > 1 {
            return Err(format!("its hook began {} times", self.began));
        }
        let finals = self.finals();
        let Some(end) = finals.first() else {
            return Err("is lost: it has no final status".to_owned());
        };
        let is_same = |status: &Status| status.state == end.state && words(status) == words(end);
        if !finals.iter().all(is_same) {
            return Err("contradicts itself".to_owned());
        }
        if finals.len() > 1 && !bar.may_be_told_again {
            return Err(format!("was told {} times", finals.len()));
        }
        let Some(outcome) = &self.outcome else {
            return Err("has no recorded outcome".to_owned());
        };
        if state_of(outcome) != end.state {
            return Err(format!("was recorded as {outcome:?}"));
        }
        let is_true = match outcome {
            Outcome::Passed => self.exit_code == 0 && self.ended == 1,
            Outcome::Failed { exit_code } => {
                *exit_code == i64::from(self.exit_code) && self.ended == 1
            }
            Outcome::Error(BuildError::GaveUp { .. }) if self.began > 0 => {
                return Err("was given up although its hook began".to_owned());
            }
            Outcome::Error(error) if self.has_part_of_log() => {
                return Ok(Told::Error(error.clone()));
            }
            Outcome::Error(_) => {
                let last = self.log.lines().last();
                return Err(format!("has a log that ends in {last:?}"));
            }
            _ => false,
        };
        match is_true {
            false => Err("was told a false result".to_owned()),
            true if bar.log_may_lack_end && self.has_part_of_log() => Ok(Told::Result),
            true if self.log != Hooks::whole_log() => Err(format!(
                "has a log of {} bytes that is not the whole one",
                self.log.len()
            )),
            true => Ok(Told::Result),
        }
    }

    /// All that was told from the first final status on.
    fn finals(&self) -> &[Status] {
        let announced = self.statuses.iter().take_while(|status| !is_final(status));
        self.statuses.split_at(announced.count()).1
    }

    /// Whether the log is the whole one without its end, and without what an engine that was killed
    /// had read and not written yet.
    fn has_part_of_log(&self) -> bool {
        let told = "\n[compose-ci: the engine lost the log from about here]\n";
        let log = self.log.strip_suffix(told).unwrap_or(self.log);
        let gap = "\n[compose-ci: the engine lost a part of the log here]\n";
        let log = &*log.replacen(gap, "", 1);
        // What the shell says of a hook that was stopped.
        let log = log.strip_suffix("Terminated\n").unwrap_or(log);
        let whole = Hooks::whole_log();
        let pairs = log.bytes().zip(whole.bytes());
        let same = pairs
            .take_while(|(logged, written)| logged == written)
            .count();
        whole[same..].contains(&log[same..])
    }
}

/// The state that a commit gets whose build ended so.
pub(crate) fn state_of(outcome: &Outcome) -> CommitState {
    match outcome {
        Outcome::Passed => CommitState::Success,
        Outcome::Failed { .. } | Outcome::TimedOut { .. } | Outcome::OutOfMemory { .. } => {
            CommitState::Failure
        }
        Outcome::Cancelled { .. } | Outcome::Superseded { .. } | Outcome::Error(_) => {
            CommitState::Error
        }
    }
}

fn is_final(status: &Status) -> bool {
    status.state != CommitState::Pending
}

fn words(status: &Status) -> String {
    status.description.clone().unwrap_or_default()
}

fn states(statuses: &[Status]) -> String {
    let told = statuses
        .iter()
        .map(|status| format!("{:?} {}", status.state, words(status)));
    told.collect::<Vec<_>>().join(", ")
}
