//! How much is done, for how long, and with which dice.

use std::time::{Duration, Instant};

/// The share of the long version that is run where `FAULTS_SCALE` says nothing.
const SHORT: f64 = 0.05;
/// The dice of every run, unless `FAULTS_SEED` throws others.
const SEED: u64 = 4;
/// A row has at least this long: something has to be seen.
const BUDGET_MIN: Duration = Duration::from_secs(20);

/// What a person asked for.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// 1 is the long version.
    pub(crate) scale: f64,
    /// Parts of the names of the rows to run; none means all.
    filters: Vec<String>,
}

impl Plan {
    /// Reads `FAULTS_SEED`, `FAULTS_SCALE` and the arguments.
    ///
    /// # Errors
    /// One of the variables is no number: a line that says which.
    pub(crate) fn of_this_process() -> Result<Self, String> {
        // What begins with a hyphen is meant for the test runner that this is not.
        let filters = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
        Ok(Self {
            seed: number("FAULTS_SEED", SEED)?,
            scale: number("FAULTS_SCALE", SHORT)?,
            filters: filters.collect(),
        })
    }

    pub(crate) fn includes(&self, row: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|part| row.contains(part))
    }

    /// What a row may use that has this long in the long version.
    pub(crate) fn budget(&self, long: Duration) -> Budget {
        let time = long.mul_f64(self.scale).max(BUDGET_MIN.min(long));
        Budget {
            scale: self.scale,
            ends: Instant::now() + time,
        }
    }

    /// Dice for one row: it throws the same whether or not others run before it.
    pub(crate) fn dice(&self, row: &str) -> fastrand::Rng {
        let salt = row.bytes().fold(0, |salt: u64, byte| {
            salt.wrapping_mul(31).wrapping_add(byte.into())
        });
        fastrand::Rng::with_seed(self.seed ^ salt)
    }
}

/// How much one row may do.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    scale: f64,
    ends: Instant,
}

impl Budget {
    /// How often to do what the long version does so often; once at least.
    pub(crate) fn times(&self, long: usize) -> usize {
        ((long as f64 * self.scale).round() as usize).max(1)
    }

    /// Whether what is not done in time counts as not met: the long version has time for all of it.
    pub(crate) fn must_suffice(&self) -> bool {
        self.scale >= 1.0
    }

    /// Whether the row must come to its end.
    pub(crate) fn is_spent(&self) -> bool {
        Instant::now() >= self.ends
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is no part of the product, whose settings stand in its own configuration"
)]
fn number<T: std::str::FromStr>(variable: &str, default: T) -> Result<T, String> {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .map_err(|_| format!("{variable}: {text:?} is no number")),
        Err(_unset) => Ok(default),
    }
}
