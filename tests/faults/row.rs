//! One row: a fault, how long it may take, and what was seen.

use std::time::Duration;

use fastrand::Rng;
use futures_util::future::LocalBoxFuture;

use crate::plan::Budget;
use crate::world::{Bench, Tally};

/// A fault and how to bring it about.
pub(crate) struct Row {
    /// By which it is asked for.
    pub(crate) name: &'static str,
    /// How long it may go on in the long version.
    pub(crate) long: Duration,
    pub(crate) run: for<'a> fn(&'a mut Bench, &'a Budget, Rng) -> LocalBoxFuture<'a, Seen>,
}

/// What a row has to say.
#[derive(Debug)]
pub(crate) struct Seen {
    /// What was done, and how often.
    pub(crate) did: String,
    /// What came of it.
    pub(crate) saw: String,
    /// What must not be.
    pub(crate) problems: Vec<String>,
}

impl Seen {
    /// Of builds that were judged.
    pub(crate) fn of(did: String, tally: Tally) -> Self {
        let saw = tally.summary();
        let mut problems = tally.problems;
        // Errors are true answers to faults, but a suite that sees nothing else sees nothing.
        if tally.told == 0 {
            problems.push("no build came to its own end".to_owned());
        }
        Self { did, saw, problems }
    }
}
