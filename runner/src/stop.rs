//! One token that ends a build before its hook does.

use std::sync::Arc;

use shared::build::StopReason;
use tokio::sync::SetOnce;

/// A request to end a build early, with its reason. The first reason counts. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<SetOnce<StopReason>>);

impl Stop {
    /// Requests the end; false if it was requested before, for a reason that counts.
    pub fn request(&self, reason: StopReason) -> bool {
        self.0.set(reason).is_ok()
    }

    /// Waits for the request.
    pub async fn requested(&self) -> &StopReason {
        self.0.wait().await
    }

    /// The reason, once the end is requested.
    pub fn reason(&self) -> Option<&StopReason> {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_reason_counts() {
        let stop = Stop::default();
        let shared = stop.clone();
        assert_eq!(shared.reason(), None);
        assert!(stop.request(StopReason::Shutdown));
        assert!(!stop.request(StopReason::LeaseLost));
        assert_eq!(shared.requested().await, &StopReason::Shutdown);
    }
}
