//! The thread that owns the database. It takes all commands that wait, commits them with one
//! fsync, and only then answers each.

use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::clock::Clock;
use super::store::{Group, Leased, Source, Store, Ticket, unreachable};
use crate::process::database::IDLE;
use crate::process::millis;
use crate::queue::{QueueError, VISIBILITY_TIMEOUT};
use crate::standing::Standing;

/// Commands in one commit: enough to make the fsync cheap, few enough to answer the first soon.
const GROUP_MAX: usize = 1024;

/// What a caller wants, and where the answer goes.
pub(super) enum Command {
    Change(Change, Answer<()>),
    Receive {
        source: Source,
        max: usize,
        wait: Duration,
        answer: Answer<Receipt>,
    },
}

pub(super) type Answer<T> = oneshot::Sender<Result<T, QueueError>>;

/// What can be done to the queue besides receiving.
pub(super) enum Change {
    Send {
        build: String,
        body: String,
    },
    Extend {
        ticket: Ticket,
        visibility: Duration,
    },
    Settle {
        ticket: Ticket,
    },
    GiveBack {
        ticket: Ticket,
        delay: Duration,
    },
    /// Changes nothing, but is answered from the database.
    Check,
}

/// Messages on their way to whoever asked for them. If nobody takes them, because that future was
/// dropped meanwhile, they go back as if they had not been received.
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
            // Refused only after the thread has ended, and the next start ends all leases.
            let _ = self.returns.send(message.ticket);
        }
    }
}

/// The life of the thread: opens the queue, says so, and serves `commands` until no caller is
/// left. Its own small runtime is there to wait for a command or a point in time.
pub(super) fn keep(
    data_dir: &Path,
    clock: Clock,
    commands: UnboundedReceiver<Command>,
    opened: Answer<watch::Receiver<Standing>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| QueueError::Unreachable(error.to_string()));
    match runtime.and_then(|runtime| Ok((runtime, Store::open(data_dir)?))) {
        Ok((runtime, store)) => {
            let keeper = Keeper::new(store, clock);
            reply(opened, Ok(keeper.standing.subscribe()));
            runtime.block_on(keeper.run(commands));
        }
        Err(error) => reply(opened, Err(error)),
    }
}

struct Keeper {
    store: Store,
    clock: Clock,
    waiting: Vec<Waiting>,
    returns: UnboundedSender<Ticket>,
    returned: UnboundedReceiver<Ticket>,
    /// Receives that reached nobody, until that is durable.
    undone: Vec<Ticket>,
    /// When there is something to do though nobody says so.
    due_ms: Option<i64>,
    /// Where the queue stands, for those who remember it.
    standing: watch::Sender<Standing>,
    /// Rows that were changed, so far.
    changes: u64,
    /// When to checkpoint, unless something changes before.
    checkpoint_at: Option<Instant>,
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
    /// When a message becomes visible that somebody still waits for.
    next_visible_ms: Option<i64>,
}

impl Keeper {
    fn new(store: Store, clock: Clock) -> Self {
        let (returns, returned) = mpsc::unbounded_channel();
        Self {
            standing: watch::Sender::new(store.standing().clone()),
            store,
            clock,
            waiting: Vec::new(),
            returns,
            returned,
            undone: Vec::new(),
            due_ms: None,
            changes: 0,
            checkpoint_at: Some(Instant::now() + IDLE),
        }
    }

    async fn run(mut self, mut commands: UnboundedReceiver<Command>) {
        let mut inbox = Vec::with_capacity(GROUP_MAX);
        let mut is_open = true;
        while is_open {
            tokio::select! {
                biased;
                count = commands.recv_many(&mut inbox, GROUP_MAX) => is_open = count > 0,
                Some(ticket) = self.returned.recv() => self.undone.push(ticket),
                () = self.clock.until(self.due_ms) => {}
                () = at(self.checkpoint_at) => {
                    self.checkpoint();
                    continue;
                }
            }
            // After the inbox, so that a dropped receive is undone before its caller's next one.
            while let Ok(ticket) = self.returned.try_recv() {
                self.undone.push(ticket);
            }
            self.serve(inbox.drain(..));
        }
    }

    fn serve(&mut self, inbox: impl Iterator<Item = Command>) {
        let now_ms = self.clock.now_ms();
        let (changes, answers) = self.sort(inbox, now_ms);
        let committed = self.commit(&changes, now_ms);
        self.leave(committed.as_ref().err());
        match committed {
            Ok(committed) => {
                self.undone.clear();
                for (answer, made) in answers.into_iter().zip(committed.made) {
                    reply(answer, made.then_some(()).ok_or(QueueError::LeaseExpired));
                }
                self.hand_out(committed.leased, now_ms);
                let ends_ms = self.waiting.iter().map(|waiting| waiting.until_ms);
                self.due_ms = ends_ms.chain(committed.next_visible_ms).min();
            }
            Err(error) => {
                self.refuse(answers, &error);
                self.due_ms = None;
            }
        }
    }

    /// Tells where the queue stands now, and sees whether something has changed.
    fn leave(&mut self, met: Option<&rusqlite::Error>) {
        let changes = self.store.leave(met);
        if changes != self.changes {
            self.changes = changes;
            self.checkpoint_at = Some(Instant::now() + IDLE);
        }
        let now = self.store.standing();
        self.standing.send_if_modified(|standing| {
            let is_new = standing != now;
            if is_new {
                standing.clone_from(now);
            }
            is_new
        });
    }

    fn checkpoint(&mut self) {
        let is_done = self.store.checkpoint().unwrap_or_else(|error| {
            tracing::debug!(%error, "failed to checkpoint the queue; trying again");
            false
        });
        self.checkpoint_at = (!is_done).then(|| Instant::now() + IDLE);
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

    /// Makes the changes and leases messages for those who wait, all in one transaction.
    fn commit(&mut self, changes: &[Change], now_ms: i64) -> rusqlite::Result<Committed> {
        let group = self.store.begin()?;
        for ticket in &self.undone {
            group.undo_receive(*ticket)?;
        }
        let mut committed = Committed {
            made: Vec::with_capacity(changes.len()),
            leased: Vec::with_capacity(self.waiting.len()),
            next_visible_ms: None,
        };
        for change in changes {
            committed.made.push(apply(&group, change, now_ms)?);
        }
        // Before anybody is served: a letter that dies now may be what another one waits for.
        if self
            .waiting
            .iter()
            .any(|waiting| waiting.source == Source::Queue)
        {
            group.bury(now_ms)?;
        }
        let hidden_until_ms = now_ms.saturating_add(millis(VISIBILITY_TIMEOUT));
        for &Waiting { source, max, .. } in &self.waiting {
            let leased = group.lease(source, max, now_ms, hidden_until_ms)?;
            if leased.is_empty() {
                let next_ms = group.next_visible_ms(source, now_ms)?;
                committed.next_visible_ms =
                    committed.next_visible_ms.into_iter().chain(next_ms).min();
            }
            committed.leased.push(leased);
        }
        group.commit()?;
        Ok(committed)
    }

    /// Answers those who got messages or waited long enough; the others wait on.
    fn hand_out(&mut self, leased: Vec<Vec<Leased>>, now_ms: i64) {
        for (waiting, leased) in std::mem::take(&mut self.waiting).into_iter().zip(leased) {
            if leased.is_empty() && now_ms < waiting.until_ms {
                self.waiting.push(waiting);
                continue;
            }
            let returns = self.returns.clone();
            reply(waiting.answer, Ok(Receipt { leased, returns }));
        }
    }

    /// Nothing was committed: everybody hears why, and the thread lives on.
    fn refuse(&mut self, answers: Vec<Answer<()>>, error: &rusqlite::Error) {
        for answer in answers {
            reply(answer, Err(unreachable(error)));
        }
        for waiting in self.waiting.drain(..) {
            reply(waiting.answer, Err(unreachable(error)));
        }
    }
}

/// Returns at this time; without one, never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// False if a stale lease prevents the change.
fn apply(group: &Group<'_>, change: &Change, now_ms: i64) -> rusqlite::Result<bool> {
    let after = |duration: Duration| now_ms.saturating_add(millis(duration));
    match *change {
        Change::Send {
            ref build,
            ref body,
        } => group.send(build, body).map(|()| true),
        Change::Extend { ticket, visibility } => group.extend(ticket, now_ms, after(visibility)),
        Change::Settle { ticket } => group.settle(ticket, now_ms),
        Change::GiveBack { ticket, delay } => group.give_back(ticket, now_ms, after(delay)),
        Change::Check => group.check().map(|()| true),
    }
}

/// Whoever asked may be gone by now. A [`Receipt`] then sends its messages back.
fn reply<T>(answer: Answer<T>, result: Result<T, QueueError>) {
    drop(answer.send(result));
}
