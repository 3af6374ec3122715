//! The ledger: the one source of a build's state, and of what is still to be reported.
//!
//! On one host it is SQLite in `DATA_DIR`. A build's end and the reports that it owes are stored in one
//! transaction, so that a build that has ended can lose neither. Among several hosts there is a [`Store`]
//! as well, in which one conditional write claims a build: SQLite then holds what the store says of the
//! builds that this worker has seen, and the reports that it owes.

#![cfg_attr(
    not(feature = "ledger"),
    expect(
        dead_code,
        reason = "without SQLite a program asks the store what is known, and takes no step"
    )
)]

mod entry;
mod store;
#[cfg(feature = "ledger")]
mod reserve;
#[cfg(feature = "ledger")]
mod migration;
#[cfg(feature = "ledger")]
mod database;
#[cfg(feature = "ledger")]
mod records;
#[cfg(feature = "ledger")]
mod lifecycle;
#[cfg(feature = "ledger")]
mod outbox;
#[cfg(feature = "ledger")]
mod images;
#[cfg(feature = "ledger")]
mod queue;
#[cfg(feature = "ledger")]
mod objects;
#[cfg(feature = "ledger")]
mod retention;

#[cfg(feature = "ledger")]
use crate::build::IllegalStep;

pub use self::entry::{CLAIM, Event};
pub use self::store::{Store, StoreError};
#[cfg(feature = "ledger")]
pub use self::{
    database::Ledger,
    images::PulledImage,
    lifecycle::Claim,
    objects::BuildObject,
    outbox::{DueReport, NextReport, STATUS, Setback},
    reserve::Reserve,
    retention::EndedBuild,
};

/// The reason for which the ledger did not do what it was asked for.
#[cfg(feature = "ledger")]
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// SQLite says why.
    #[error("failed to read or write the build records: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A newer version of this program has written them.
    #[error("the build records are of a newer version of this program ({0})")]
    Newer(u32),
    /// The store cannot be reached, or refuses. A step may have been taken all the same.
    #[error("{0}")]
    Store(String),
    /// A step was not taken, because it could not be recorded; the cause was one of the others.
    #[error("{0}")]
    Unrecorded(String),
    /// Another worker has the build.
    #[error("the claim to the build was lost: another worker has it")]
    ClaimLost,
    /// A build cannot take this step from where it stands.
    #[error(transparent)]
    Illegal(IllegalStep),
}

#[cfg(feature = "ledger")]
type Result<T, E = LedgerError> = std::result::Result<T, E>;

#[cfg(feature = "ledger")]
impl From<StoreError> for LedgerError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}
