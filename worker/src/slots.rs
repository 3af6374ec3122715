//! The builds that run at once. A build that waits for somebody else lets others go on meanwhile.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// A wait that is shorter is none: to give a slot up for it would only reorder the builds.
const PATIENCE: Duration = Duration::from_secs(1);

/// As many builds as may run at once. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Slots(Arc<Semaphore>);

/// The place of one build, which it has or waits for. Clones are the same place.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    slots: Slots,
    taken: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
}

impl Slots {
    /// Lets so many builds run at once.
    pub(crate) fn new(count: usize) -> Self {
        Self(Arc::new(Semaphore::new(count)))
    }

    /// Returns the number of free slots, as soon as there is one and no build waits for it.
    pub(crate) async fn some_free(&self) -> usize {
        drop(self.acquire().await);
        self.0.available_permits().max(1)
    }

    /// The place of a build, which is not taken yet.
    pub(crate) fn slot(&self) -> Slot {
        Slot {
            slots: self.clone(),
            taken: Arc::default(),
        }
    }

    async fn acquire(&self) -> OwnedSemaphorePermit {
        let acquired = Arc::clone(&self.0).acquire_owned().await;
        acquired.expect("the semaphore is never closed")
    }
}

impl Slot {
    /// Takes the slot, unless the build has it: in the order of asking.
    pub(crate) async fn take(&self) {
        if self.taken().is_none() {
            let acquired = self.slots.acquire().await;
            *self.taken() = Some(acquired);
        }
    }

    /// Takes the slot if there is one. A build that runs already goes on without.
    pub(crate) fn take_if_free(&self) {
        let mut taken = self.taken();
        if taken.is_none() {
            *taken = Arc::clone(&self.slots.0).try_acquire_owned().ok();
        }
    }

    /// True while the build has the slot.
    pub(crate) fn is_taken(&self) -> bool {
        self.taken().is_some()
    }

    /// Lets another build go on.
    pub(crate) fn give_up(&self) {
        self.taken().take();
    }

    /// Waits for somebody else, without the slot if it takes long. The build takes it again before it
    /// does work of its own.
    pub(crate) async fn lend_while<T>(&self, waiting: impl Future<Output = T>) -> T {
        let mut waiting = pin!(waiting);
        match timeout(PATIENCE, &mut waiting).await {
            Ok(done) => done,
            Err(_elapsed) => {
                self.give_up();
                waiting.await
            }
        }
    }

    /// The same stream, for whose items the build waits without its slot.
    pub(crate) fn lend_between<S: Stream + Send + Unpin>(
        self,
        items: S,
    ) -> impl Stream<Item = S::Item> {
        stream::unfold((self, items), async |(slot, mut items)| {
            let item = slot.lend_while(items.next()).await?;
            Some((item, (slot, items)))
        })
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_long_wait_lends_the_slot() {
        let slots = Slots::new(1);
        let (waits, other) = (slots.slot(), slots.slot());
        waits.take().await;
        let begun = Instant::now();
        let other_took = async {
            other.take().await;
            begun.elapsed()
        };
        let ((), took_after) = tokio::join!(waits.lend_while(sleep(LONG)), other_took);
        assert_eq!(took_after, PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_wait_keeps_the_slot() {
        let slots = Slots::new(1);
        let slot = slots.slot();
        slot.take().await;
        slot.lend_while(sleep(PATIENCE / 2)).await;
        assert_eq!(slots.0.available_permits(), 0);
        slot.give_up();
        assert_eq!(slots.some_free().await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lent_slot_is_taken_again_in_turn() {
        let slots = Slots::new(1);
        let (first, second) = (slots.slot(), slots.slot());
        first.take().await;
        first.lend_while(sleep(LONG)).await;
        second.take().await;
        let begun = Instant::now();
        let ends = async {
            sleep(LONG).await;
            second.give_up();
        };
        tokio::join!(first.take(), ends);
        assert_eq!(begun.elapsed(), LONG);
    }
}
