//! The process and its surroundings on this machine.

pub mod directory;
pub mod lock;
#[cfg(any(feature = "ledger", feature = "local-queue"))]
pub(crate) mod database;
#[cfg(feature = "ledger")]
pub(crate) mod worker_id;
pub mod telemetry;
pub mod shutdown;
pub mod exit;

/// Whole milliseconds, as many as fit.
#[cfg(any(feature = "store", feature = "local-queue"))]
pub(crate) fn millis(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
