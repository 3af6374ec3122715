//! The queue between the webhook and the workers.
//!
//! A [`Queue`] behaves as Amazon SQS does, whatever is behind it: a received message is hidden
//! for a visibility timeout, its [`Lease`] extends that, settles the message or gives it back, and
//! after [`MAX_RECEIVES`] receives without settling it becomes a dead letter.

#![cfg_attr(
    not(any(feature = "local-queue", feature = "sqs")),
    expect(
        unused_variables,
        reason = "without any queue nobody is there to take them"
    )
)]

#[cfg(feature = "local-queue")]
mod local;
#[cfg(feature = "sqs")]
mod sqs;

use std::time::Duration;

use tokio::sync::watch;

use crate::config::{ConfigError, QueueConfig};
use crate::message::{Message, UnreadableMessage};
use crate::standing::Standing;
#[cfg(feature = "local-queue")]
pub use local::{Clock, LocalLease, LocalQueue, ManualClock};
#[cfg(feature = "sqs")]
pub use sqs::{SqsLease, SqsQueue};

/// A message that was received this often and never settled becomes a dead letter.
pub const MAX_RECEIVES: u32 = 3;

/// How long a received message stays hidden unless its lease is extended.
pub const VISIBILITY_TIMEOUT: Duration = Duration::from_secs(60);

/// A durable queue of [`Message`]s. Clones share it.
#[derive(Debug, Clone)]
pub enum Queue {
    /// SQLite on this machine.
    #[cfg(feature = "local-queue")]
    Local(LocalQueue),
    /// At Amazon SQS.
    #[cfg(feature = "sqs")]
    Sqs(SqsQueue),
}

/// One receive of one message.
#[derive(Debug)]
pub struct Delivery {
    /// What was sent, if this program can read it.
    pub message: Result<Message, UnreadableMessage>,
    /// How often the message was received, this time included.
    pub receives: u32,
    /// The right to work on it.
    pub lease: Lease,
}

/// The right to work on a received message, until its visibility timeout ends. Dropping it
/// settles nothing: the message comes back by itself.
#[derive(Debug)]
pub enum Lease {
    /// Of the local queue.
    #[cfg(feature = "local-queue")]
    Local(LocalLease),
    /// Of a queue at SQS.
    #[cfg(feature = "sqs")]
    Sqs(SqsLease),
}

/// Why the queue did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The lease ended: somebody else may work on the message by now.
    #[error("the lease has expired")]
    LeaseExpired,
    /// A setting of its surroundings cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another process has this queue open.
    #[error("{0} is in use by another process")]
    InUse(String),
    /// The store behind the queue failed or did not answer in time.
    #[error("the queue cannot be reached: {0}")]
    Unreachable(String),
    /// There is no queue at this URL.
    #[error("there is no queue {0}: check its URL, region and account")]
    Missing(String),
    /// The queue answers, and does not let this program do this.
    #[error("the queue {queue} denies {action}: check the credentials and their policy ({reason})")]
    Denied {
        /// Its URL.
        queue: String,
        /// The permission that is needed.
        action: &'static str,
        /// What the queue said.
        reason: String,
    },
    /// The queue answers that too much is asked of it.
    #[error("the queue {0} is throttled: check who else uses it, and the account's quotas")]
    Throttled(String),
    /// The queue answers, and does not take a request as it is.
    #[error("the queue {queue} refuses the request: check its settings ({reason})")]
    Refused {
        /// Its URL.
        queue: String,
        /// What the queue said.
        reason: String,
    },
}

impl Queue {
    /// Opens the queue. Leases that a dead process held are free again.
    ///
    /// # Errors
    /// A setting cannot be used: nothing but `DATA_DIR` keeps the local queue from being opened, and one
    /// at SQS is not asked yet.
    pub async fn open(config: &QueueConfig) -> Result<Self, ConfigError> {
        let (variable, opened) = match config {
            #[cfg(feature = "local-queue")]
            QueueConfig::Local { data_dir } => {
                let opened = LocalQueue::open(data_dir).await;
                ("DATA_DIR", opened.map(Self::Local))
            }
            #[cfg(not(feature = "local-queue"))]
            QueueConfig::Local { .. } => {
                let problem = "this program was built without the local queue";
                ("QUEUE_URL", Err(QueueError::Unreachable(problem.into())))
            }
            #[cfg(feature = "sqs")]
            QueueConfig::Sqs(config) => ("QUEUE_URL", SqsQueue::open(config).await.map(Self::Sqs)),
            #[cfg(not(feature = "sqs"))]
            QueueConfig::Sqs(_) => {
                let problem = "this program was built without SQS";
                ("QUEUE_URL", Err(QueueError::Unreachable(problem.into())))
            }
        };
        opened.map_err(|error| match error {
            QueueError::Config(error) => error,
            error => ConfigError {
                variable,
                problem: error.to_string(),
            },
        })
    }

    /// Stores a message. It is durable when this returns. A message for a build that is still in
    /// the queue is taken for the same one.
    ///
    /// # Errors
    /// The queue cannot be reached; the message may or may not be stored.
    pub async fn send(&self, message: &Message) -> Result<(), QueueError> {
        match *self {
            #[cfg(feature = "local-queue")]
            Self::Local(ref queue) => queue.send(message).await,
            #[cfg(feature = "sqs")]
            Self::Sqs(ref queue) => queue.send(message).await,
        }
    }

    /// Leases up to `max` messages, waiting up to `wait` for the first.
    ///
    /// # Errors
    /// The queue cannot be reached.
    pub async fn receive(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        match *self {
            #[cfg(feature = "local-queue")]
            Self::Local(ref queue) => queue.receive(max, wait).await,
            #[cfg(feature = "sqs")]
            Self::Sqs(ref queue) => queue.receive(max, wait).await,
        }
    }

    /// Leases up to `max` dead letters, waiting up to `wait` for the first.
    ///
    /// # Errors
    /// The queue cannot be reached.
    pub async fn receive_dead_letters(
        &self,
        max: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, QueueError> {
        match *self {
            #[cfg(feature = "local-queue")]
            Self::Local(ref queue) => queue.receive_dead_letters(max, wait).await,
            #[cfg(feature = "sqs")]
            Self::Sqs(ref queue) => queue.receive_dead_letters(max, wait).await,
        }
    }

    /// Whether workers elsewhere may take messages from it as well.
    pub fn is_shared(&self) -> bool {
        match *self {
            #[cfg(feature = "local-queue")]
            Self::Local(_) => false,
            #[cfg(feature = "sqs")]
            Self::Sqs(_) => true,
        }
    }

    /// How far a queue on this machine has come, from now on.
    pub fn standing(&self) -> Option<watch::Receiver<Standing>> {
        match *self {
            #[cfg(feature = "local-queue")]
            Self::Local(ref queue) => Some(queue.standing()),
            #[cfg(feature = "sqs")]
            Self::Sqs(_) => None,
        }
    }

    /// Whether the queue answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn check(&self) -> Result<(), QueueError> {
        match *self {
            #[cfg(feature = "local-queue")]
            Self::Local(ref queue) => queue.check().await,
            #[cfg(feature = "sqs")]
            Self::Sqs(ref queue) => queue.check().await,
        }
    }
}

impl Lease {
    /// Hides the message for another `visibility`, from now.
    ///
    /// # Errors
    /// [`QueueError::LeaseExpired`], or the queue cannot be reached.
    pub async fn extend(&self, visibility: Duration) -> Result<(), QueueError> {
        match *self {
            #[cfg(feature = "local-queue")]
            Self::Local(ref lease) => lease.extend(visibility).await,
            #[cfg(feature = "sqs")]
            Self::Sqs(ref lease) => lease.extend(visibility).await,
        }
    }

    /// The work is done: removes the message.
    ///
    /// # Errors
    /// [`QueueError::LeaseExpired`], or the queue cannot be reached.
    pub async fn settle(self) -> Result<(), QueueError> {
        match self {
            #[cfg(feature = "local-queue")]
            Self::Local(lease) => lease.settle().await,
            #[cfg(feature = "sqs")]
            Self::Sqs(lease) => lease.settle().await,
        }
    }

    /// The work was not done: the message can be received again after `delay`.
    ///
    /// # Errors
    /// [`QueueError::LeaseExpired`], or the queue cannot be reached.
    pub async fn give_back(self, delay: Duration) -> Result<(), QueueError> {
        match self {
            #[cfg(feature = "local-queue")]
            Self::Local(lease) => lease.give_back(delay).await,
            #[cfg(feature = "sqs")]
            Self::Sqs(lease) => lease.give_back(delay).await,
        }
    }
}
