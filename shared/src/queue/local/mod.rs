//! The queue of the one box: SQLite in the data directory.
//!
//! Read in this order: the [`clock`], the table and its statements (`store`), the thread that
//! owns them (`keeper`), and a caller's side of that thread (`writer`).

mod clock;
mod store;
mod keeper;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use self::keeper::Change;
use self::store::{Leased, Source, Ticket};
use self::writer::Writer;
use super::{Delivery, Lease, QueueError};
use crate::message::Message;
use crate::standing::Standing;

pub use self::clock::{Clock, ManualClock};

/// A queue in a directory of this machine. Clones share it; it is closed when the last clone and
/// the last lease are dropped.
#[derive(Debug, Clone)]
pub struct LocalQueue {
    writer: Arc<Writer>,
}

/// The right to work on a message of a [`LocalQueue`].
#[derive(Debug)]
pub struct LocalLease {
    writer: Arc<Writer>,
    ticket: Ticket,
}

impl LocalQueue {
    /// Opens the queue in `data_dir`, which is made if it is missing.
    ///
    /// # Errors
    /// The directory is in use by another process, or cannot be used.
    pub async fn open(data_dir: &Path) -> Result<Self, QueueError> {
        Self::open_with_clock(data_dir, Clock::system()).await
    }

    /// Opens the queue with another clock than the machine's.
    ///
    /// # Errors
    /// The directory is in use by another process, or cannot be used.
    pub async fn open_with_clock(data_dir: &Path, clock: Clock) -> Result<Self, QueueError> {
        let writer = Writer::start(data_dir.to_owned(), clock).await?;
        Ok(Self {
            writer: Arc::new(writer),
        })
    }

    pub(super) async fn send(&self, message: &Message) -> Result<(), QueueError> {
        let build = message.request().id.to_string();
        let body = message.encode();
        self.writer.change(Change::Send { build, body }).await
    }

    pub(super) async fn receive(
        &self,
        max: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, QueueError> {
        self.receive_from(Source::Queue, max, wait).await
    }

    pub(super) async fn receive_dead_letters(
        &self,
        max: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, QueueError> {
        self.receive_from(Source::DeadLetters, max, wait).await
    }

    pub(super) async fn check(&self) -> Result<(), QueueError> {
        self.writer.check().await
    }

    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.writer.standing()
    }

    async fn receive_from(
        &self,
        source: Source,
        max: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, QueueError> {
        let leased = self.writer.receive(source, max, wait).await?;
        Ok(leased
            .into_iter()
            .map(|message| self.deliver(message))
            .collect())
    }

    fn deliver(&self, leased: Leased) -> Delivery {
        Delivery {
            message: Message::decode(&leased.body),
            receives: leased.ticket.receives,
            lease: Lease::Local(LocalLease {
                writer: Arc::clone(&self.writer),
                ticket: leased.ticket,
            }),
        }
    }
}

impl LocalLease {
    pub(super) async fn extend(&self, visibility: Duration) -> Result<(), QueueError> {
        let ticket = self.ticket;
        self.writer
            .change(Change::Extend { ticket, visibility })
            .await
    }

    pub(super) async fn settle(self) -> Result<(), QueueError> {
        let ticket = self.ticket;
        self.writer.change(Change::Settle { ticket }).await
    }

    pub(super) async fn give_back(self, delay: Duration) -> Result<(), QueueError> {
        let ticket = self.ticket;
        self.writer.change(Change::GiveBack { ticket, delay }).await
    }
}
