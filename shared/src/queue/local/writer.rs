//! The one thread that owns the database. It takes all commands that wait, commits them with one
//! fsync, and only then answers each.

use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

use super::clock::{Clock, millis};
use super::store::{Group, Leased, Source, Store, Ticket, unreachable};
use crate::queue::{QueueError, VISIBILITY_TIMEOUT};

/// Commands in one commit: enough to make the fsync cheap, few enough to answer the first soon.
const GROUP_MAX: usize = 1024;

/// GitHub waits ten seconds for the answer to a webhook: an error after eight still reaches it.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);

/// A health check wants to know soon.
const CHECK_WITHIN: Duration = Duration::from_secs(2);

/// A caller's handle on the thread. Dropping it ends the thread and closes the database.
#[derive(Debug)]
pub(super) struct Writer {
    /// Without bound, since every caller waits for its answer before it says more. Always there
    /// until the drop, which closes the channel by taking it.
    commands: Option<UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

/// What can be done to the queue besides receiving.
#[derive(Debug)]
pub(super) enum Change {
    Send { build: String, body: String },
    Extend { ticket: Ticket, visibility: Duration },
    Settle { ticket: Ticket },
    GiveBack { ticket: Ticket, delay: Duration },
    /// Changes nothing, but is answered from the database.
    Check,
}

enum Command {
    Change(Change, Answer<()>),
    Receive {
        source: Source,
        max: usize,
        wait: Duration,
        answer: Answer<Receipt>,
    },
}

type Answer<T> = oneshot::Sender<Result<T, QueueError>>;

/// Messages on their way to whoever asked for them. If nobody takes them, because that future was
/// dropped meanwhile, they go back as if they had not been received.
#[derive(Debug)]
pub(super) struct Receipt {
    leased: Vec<Leased>,
    returns: UnboundedSender<Ticket>,
}

impl Receipt {
    pub(super) fn take(mut self) -> Vec<Leased> {
        std::mem::take(&mut self.leased)
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        for message in &self.leased {
            // Refused only by a thread that has ended, and the next start ends all leases.
            let _ = self.returns.send(message.ticket);
        }
    }
}

impl Writer {
    /// Opens the queue in `data_dir` on a thread of its own.
    pub(super) async fn start(data_dir: PathBuf, clock: Clock) -> Result<Self, QueueError> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (opened, is_open) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("queue".into())
            .spawn(move || own_database(data_dir, clock, inbox, opened))
            .map_err(|error| QueueError::Unreachable(error.to_string()))?;
        let writer = Self {
            commands: Some(commands),
            thread: Some(thread),
        };
        is_open.await.unwrap_or_else(|_| Err(thread_ended()))?;
        Ok(writer)
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

    /// Waits up to `wait` for the first message.
    pub(super) async fn receive(
        &self,
        source: Source,
        max: usize,
        wait: Duration,
    ) -> Result<Receipt, QueueError> {
        let command = |answer| Command::Receive {
            source,
            max,
            wait,
            answer,
        };
        self.ask(wait.saturating_add(ANSWER_WITHIN), command).await
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
    /// Waits for the thread, so that the directory is free for the next process. That takes no
    /// longer than one commit: the thread waits for nobody.
    fn drop(&mut self) {
        self.commands.take();
        if let Some(thread) = self.thread.take() {
            // Its panic was told when it happened, and every caller got an error.
            let _ = thread.join();
        }
    }
}

fn thread_ended() -> QueueError {
    QueueError::Unreachable("its thread has ended".into())
}

/// The life of the thread. Its own small runtime is there to wait for a command or a point in
/// time, whichever comes first.
fn own_database(
    data_dir: PathBuf,
    clock: Clock,
    commands: UnboundedReceiver<Command>,
    opened: oneshot::Sender<Result<(), QueueError>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| QueueError::Unreachable(error.to_string()));
    let store = Store::open(&data_dir);
    // If nobody waits for the answer any longer, the closed channel ends the thread below.
    let (runtime, store) = match runtime.and_then(|runtime| Ok((runtime, store?))) {
        Ok(ready) => ready,
        Err(error) => return drop(opened.send(Err(error))),
    };
    drop(opened.send(Ok(())));
    runtime.block_on(Keeper::new(store, clock).run(commands));
}

/// What the thread knows.
struct Keeper {
    store: Store,
    clock: Clock,
    waiting: Vec<Waiting>,
    /// Receives that reached nobody, until that is durable.
    undone: Vec<Ticket>,
    returns: UnboundedSender<Ticket>,
    /// When there is something to do though nobody says so.
    due_ms: Option<i64>,
}

/// A caller who waits for messages.
struct Waiting {
    source: Source,
    max: usize,
    until_ms: i64,
    answer: Answer<Receipt>,
}

/// What came of one commit.
struct Committed {
    /// For each change whether it was made; a stale lease prevents it.
    made: Vec<bool>,
    /// For each caller who waits what was leased for it.
    leased: Vec<Vec<Leased>>,
    /// When a message is visible again that somebody still waits for.
    next_visible_ms: Option<i64>,
}

impl Keeper {
    async fn run(
        mut self,
        mut commands: UnboundedReceiver<Command>,
        mut returned: UnboundedReceiver<Ticket>,
    ) {
        let mut inbox = Vec::with_capacity(GROUP_MAX);
        let mut is_open = true;
        while is_open {
            tokio::select! {
                biased;
                count = commands.recv_many(&mut inbox, GROUP_MAX) => is_open = count > 0,
                Some(ticket) = returned.recv() => self.undone.push(ticket),
                () = self.clock.until(self.due_ms) => {}
            }
            // After the inbox, so that a dropped receive is undone before its caller's next one.
            while let Ok(ticket) = returned.try_recv() {
                self.undone.push(ticket);
            }
            self.serve(inbox.drain(..));
        }
    }

    fn serve(&mut self, inbox: impl Iterator<Item = Command>) {
        let now_ms = self.clock.now_ms();
        let (changes, answers) = self.sort(inbox, now_ms);
        match self.commit(&changes, now_ms) {
            Ok(committed) => {
                self.undone.clear();
                for (answer, made) in answers.into_iter().zip(committed.made) {
                    reply(answer, made.then_some(()).ok_or(QueueError::LeaseExpired));
                }
                self.hand_out(committed.leased, now_ms);
                let ends = self.waiting.iter().map(|waiting| waiting.until_ms);
                self.due_ms = ends.chain(committed.next_visible_ms).min();
            }
            Err(error) => self.refuse(answers, &unreachable(error).to_string()),
        }
    }

    /// Parts the changes from those who wait for messages.
    fn sort(
        &mut self,
        inbox: impl Iterator<Item = Command>,
        now_ms: i64,
    ) -> (Vec<Change>, Vec<Answer<()>>) {
        let mut changes = Vec::new();
        let mut answers = Vec::new();
        for command in inbox {
            match command {
                Command::Change(change, answer) => {
                    changes.push(change);
                    answers.push(answer);
                }
                Command::Receive {
                    source,
                    max,
                    wait,
                    answer,
                } => self.waiting.push(Waiting {
                    source,
                    max,
                    until_ms: now_ms.saturating_add(millis(wait)),
                    answer,
                }),
            }
        }
        self.waiting.retain(|waiting| !waiting.answer.is_closed());
        (changes, answers)
    }

    /// Makes all changes, then serves who waits, in one transaction.
    fn commit(&mut self, changes: &[Change], now_ms: i64) -> rusqlite::Result<Committed> {
        let group = self.store.begin()?;
        for ticket in &self.undone {
            group.undo_receive(*ticket)?;
        }
        let made = changes
            .iter()
            .map(|change| apply(&group, change, now_ms))
            .collect::<rusqlite::Result<_>>()?;
        if self.waiting.iter().any(|waiting| waiting.source == Source::Queue) {
            group.bury(now_ms)?;
        }
        let hidden_until_ms = now_ms.saturating_add(millis(VISIBILITY_TIMEOUT));
        let mut leased = Vec::with_capacity(self.waiting.len());
        let mut next_visible_ms = None;
        for Waiting { source, max, .. } in &self.waiting {
            leased.push(group.lease(*source, *max, now_ms, hidden_until_ms)?);
        }
        for ... 
        group.commit()?;
        Ok(Committed { made, leased, next_visible_ms })
    }
