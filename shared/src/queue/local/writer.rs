//! A caller's side of the thread that owns the database.

use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::{oneshot, watch};

use super::clock::Clock;
use super::keeper::{self, Answer, Change, Command};
use super::store::{Leased, Source};
use crate::queue::QueueError;
use crate::standing::Standing;

/// GitHub waits ten seconds for the answer to a webhook: an error after eight still reaches it.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);

/// A health check wants to know soon.
const CHECK_WITHIN: Duration = Duration::from_secs(2);

/// The thread's only door. Dropping it ends the thread and closes the database.
#[derive(Debug)]
pub(super) struct Writer {
    /// Without bound, since every caller waits for its answer before it says more. Taken by the
    /// drop alone.
    commands: Option<UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
    standing: watch::Receiver<Standing>,
}

impl Writer {
    /// Opens the queue in `data_dir` on a thread of its own.
    pub(super) async fn start(data_dir: PathBuf, clock: Clock) -> Result<Self, QueueError> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (opened, is_open) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("queue".into())
            .spawn(move || keeper::keep(&data_dir, clock, inbox, opened))
            .map_err(|error| QueueError::Unreachable(error.to_string()))?;
        let standing = match is_open.await.unwrap_or_else(|_| Err(thread_ended())) {
            Ok(standing) => standing,
            Err(error) => {
                // The directory is free again when this returns.
                drop(thread.join());
                return Err(error);
            }
        };
        Ok(Self {
            commands: Some(commands),
            thread: Some(thread),
            standing,
        })
    }

    /// Where the queue stands, from now on.
    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Returns when the change is durable.
    pub(super) async fn change(&self, change: Change) -> Result<(), QueueError> {
        let command = |answer| Command::Change(change, answer);
        self.ask(ANSWER_WITHIN, command).await
    }

    /// Returns when the database has answered.
    pub(super) async fn check(&self) -> Result<(), QueueError> {
        let command = |answer| Command::Change(Change::Check, answer);
        self.ask(CHECK_WITHIN, command).await
    }

    /// Waits up to `wait` for the first message. May be dropped at any time: what was leased for
    /// a caller who is gone goes back.
    pub(super) async fn receive(
        &self,
        source: Source,
        max: usize,
        wait: Duration,
    ) -> Result<Vec<Leased>, QueueError> {
        let command = |answer| Command::Receive {
            source,
            max,
            wait,
            answer,
        };
        let receipt = self
            .ask(wait.saturating_add(ANSWER_WITHIN), command)
            .await?;
        Ok(receipt.take())
    }

    async fn ask<T>(
        &self,
        within: Duration,
        command: impl FnOnce(Answer<T>) -> Command,
    ) -> Result<T, QueueError> {
        let (answer, answered) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or_else(thread_ended)?;
        commands.send(command(answer)).map_err(|_| thread_ended())?;
        match tokio::time::timeout(within, answered).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(thread_ended())),
            Err(_) => Err(QueueError::Unreachable("it did not answer in time".into())),
        }
    }
}

impl Drop for Writer {
    /// Waits for the thread, so that the directory is free for the next one who opens it. That
    /// takes no longer than one commit: the thread itself waits for nobody.
    fn drop(&mut self) {
        self.commands.take();
        if let Some(thread) = self.thread.take() {
            // A panic was told when it happened, and every caller got an error.
            drop(thread.join());
        }
    }
}

fn thread_ended() -> QueueError {
    QueueError::Unreachable("its thread has ended".into())
}
