//! One row: a fault, how long it may take, and what was seen.

use std::time::Duration;

use fastrand::Rng;
use futures_util::future::LocalBoxFuture;

use crate::judge::Tally;
use crate::plan::Budget;
use crate::world::Bench;

/// A fault and how to bring it about.
pub(crate) struct Row {
    /// By which it is asked for.
    pub(crate) name: &'static str,
    /// How long it may go on in the long version: about twice what it needs on a quiet machine with
    /// two cores.
    pub(crate) long: Duration,
    pub(crate) run: for<'a> fn(&'a mut Bench, &'a Budget, Rng) -> LocalBoxFuture<'a, Seen>,
}

/// What a row has to say.
#[derive(Debug)]
pub(crate) struct Seen {
    /// How often it was done.
    pub(crate) done: usize,
    /// How often it was to be done.
    pub(crate) planned: usize,
    /// What was done.
    pub(crate) what: String,
    /// What came of it.
    pub(crate) saw: String,
    /// What must not be.
    pub(crate) problems: Vec<String>,
}

impl Seen {
    /// Of builds that were judged.
    pub(crate) fn of(done: usize, planned: usize, what: impl Into<String>, tally: Tally) -> Self {
        let saw = tally.summary();
        let mut problems = tally.problems;
        // Errors are true answers to faults, but a suite that sees nothing else sees nothing.
        if tally.told == 0 {
            problems.push("no build came to its own end".to_owned());
        }
        Self {
            done,
            planned,
            what: what.into(),
            saw,
            problems,
        }
    }
}
