//! Stands in for the ledger until the branch `ledger` is merged, which replaces this file.

use crate::build::{Build, BuildId};

/// The store of all builds. Clones share it.
#[derive(Debug, Clone)]
pub struct Ledger;

/// Why the ledger did not answer.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {}

impl Ledger {
    /// Returns the build, if it is known.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub async fn find(&self, _id: BuildId) -> Result<Option<Build>, LedgerError> {
        Ok(None)
    }
}
