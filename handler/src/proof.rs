//! Whether the request on a connection is proven: the webhook says so, and the listener keeps the connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The proof of one connection's request. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Proof(Arc<AtomicBool>);

impl Proof {
    /// Says that the request is proven, or that it has its answer.
    pub(crate) fn set(&self, is_proven: bool) {
        self.0.store(is_proven, Ordering::Relaxed);
    }

    /// True while a proven request has no answer yet.
    pub(crate) fn is_given(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
