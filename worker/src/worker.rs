//! The loop: lease → slot → heartbeat, until the process is asked to stop.

use std::fs::TryLockError;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use runner::{Engine, EngineError, Secrets};
use shared::build::{Build, logs_dir};
use shared::config::{ConfigError, WorkerConfig};
use shared::forge::Forge;
use shared::ledger::Ledger;
use shared::process::directory;
use shared::process::lock::FileLock;
use shared::process::shutdown::Shutdown;
use shared::queue::{Delivery, Queue};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::delivery::Deliveries;
use crate::housekeeping::Housekeeper;
use crate::job::{Job, Origin};
use crate::notify::{Links, MailHtml, MailLogs, Notifiers};
use crate::slots::Slots;
use crate::supersede::Supersession;
use crate::surroundings::{Surroundings, SurroundingsError};

/// How long one receive waits for a message: the longest that SQS allows.
const RECEIVE_WAIT: Duration = Duration::from_secs(20);
/// How long to wait after the queue, the records or the engine failed.
const TROUBLE_DELAY: Duration = Duration::from_secs(5);
/// How long a worker that stops still tries to send its last reports.
const LAST_REPORTS: Duration = Duration::from_secs(2);
/// How long a worker that stops leaves the builds that go on to finish their logs.
const LAST_LINES: Duration = Duration::from_secs(1);
const DEAD_LETTERS_AT_ONCE: usize = 10;
/// Deliveries that one worker holds at the most, those that wait included.
const DELIVERIES_MAX: usize = 256;
/// In `DATA_DIR`.
const LOCK: &str = "worker.lock";

/// A worker, configured and not yet running.
#[derive(Debug)]
pub struct Worker {
    config: WorkerConfig,
    engine: Engine,
    forge: Forge,
    ledger: Ledger,
    notifiers: Notifiers,
    links: Links,
    _lock: FileLock,
}

impl Worker {
    /// Opens the ledger and prepares the clients. The engine need not answer yet. `html` makes the HTML
    /// of mails.
    ///
    /// # Errors
    /// A setting cannot be used; the message names it.
    pub async fn new(config: WorkerConfig, html: MailHtml) -> anyhow::Result<Self> {
        let logs = logs_dir(&config.data_dir);
        directory::make_private(&config.data_dir)
            .and_then(|()| std::fs::create_dir_all(&logs))
            .with_context(|| format!("DATA_DIR: {}", logs.display()))?;
        // Two workers with the same ledger would both go on with the same builds.
        let lock = lock(&config.data_dir)?;
        let engine = Engine::new(&config.engine)?;
        let forge = Forge::github(&config.github)?;
        let ledger = Ledger::open(&config.data_dir, config.store.as_ref()).await?;
        let links = Links {
            public_url: config.public_url.as_ref().map(without_slash),
            site: forge.site().cloned(),
        };
        let notifiers = Notifiers::new(
            forge.clone(),
            &config.mail,
            html,
            ledger.clone(),
            &links,
            MailLogs {
                data_dir: config.data_dir.clone(),
                containers_kept: !config.hook.garbage_collect,
                secrets: Secrets::new(&config.secrets),
            },
        );
        Ok(Self {
            engine,
            notifiers: notifiers.await?,
            forge,
            ledger,
            links,
            config,
            _lock: lock,
        })
    }

    /// What is known of all builds.
    pub fn ledger(&self) -> Ledger {
        self.ledger.clone()
    }

    /// The values that nobody must see.
    pub fn secrets(&self) -> Secrets {
        Secrets::new(&self.config.secrets)
    }

    /// The forge that builds are reported to.
    pub fn forge(&self) -> Forge {
        self.forge.clone()
    }

    /// The addresses of what people look at.
    pub fn links(&self) -> Links {
        self.links.clone()
    }

    /// Builds what comes from the queue, and reports what is owed, until the process is asked to
    /// stop.
    ///
    /// # Errors
    /// There is no image to build in, or the engine and the settings do not fit.
    pub async fn run(self, queue: Queue, shutdown: &Shutdown) -> anyhow::Result<()> {
        let ending = CancellationToken::new();
        let mut reporting = pin!(self.notifiers.run(&ending));
        tokio::select! {
            worked = Box::pin(self.work(&queue, &shutdown.drain)) => worked?,
            () = &mut reporting => {}
            never = self.ledger.checkpoint_when_idle() => match never {},
            () = shutdown.abort.cancelled() => return Ok(()),
        }
        // What the last builds owe, if it can be sent at once; the next start sends the rest.
        ending.cancel();
        let _ = timeout(LAST_REPORTS, reporting).await;
        Ok(())
    }

    /// Builds as soon as the engine answers.
    async fn work(&self, queue: &Queue, drain: &CancellationToken) -> anyhow::Result<()> {
        if queue.is_shared() && !self.ledger.has_store() {
            tracing::warn!(
                "STORE_URL is not set: a hook starts at most once on each engine, not among several"
            );
        }
        let Some(found) = drain.run_until_cancelled(self.surroundings()).await else {
            return Ok(());
        };
        let (engine, surroundings) = found?;
        let job = self.job(engine.clone(), surroundings, queue.is_shared());
        let housekeeper = job.housekeeper.clone();
        let slots = Slots::new(self.config.concurrency);
        let deliveries = Deliveries::new(job);
        let drain_timeout = self.config.drain_timeout;
        let taking = Taking {
            engine,
            ledger: self.ledger.clone(),
            slots: slots.clone(),
            deliveries: deliveries.clone(),
            builds: JoinSet::new(),
        };
        let building = async {
            tokio::join!(
                taking.run(queue, drain, drain_timeout),
                take_dead_letters(&deliveries, &slots, queue, drain, drain_timeout),
            )
        };
        tokio::select! {
            ((), ()) = building => {}
            () = housekeeper.sweep_regularly() => {}
        }
        Ok(())
    }

    /// Waits until the engine answers, and finds out where builds run.
    ///
    /// # Errors
    /// It answers that it will not, for a setting that is wrong; or there is no image to build in.
    async fn surroundings(&self) -> Result<(Engine, Surroundings), ConfigError> {
        loop {
            match self.look_around().await {
                Ok(found) => return Ok(found),
                Err(SurroundingsError::Config(error)) => return Err(error),
                Err(SurroundingsError::Engine(EngineError::Unfit(mismatch))) => {
                    return Err(mismatch.blame(&self.config.engine));
                }
                Err(error) => tracing::warn!(%error, "waiting for the Docker engine"),
            }
            sleep(TROUBLE_DELAY).await;
        }
    }

    async fn look_around(&self) -> Result<(Engine, Surroundings), SurroundingsError> {
        let engine = self.engine.clone().negotiate().await?;
        let surroundings = Surroundings::find(&engine, &self.config).await?;
        Ok((engine, surroundings))
    }

    fn job(&self, engine: Engine, surroundings: Surroundings, is_shared: bool) -> Job {
        let Surroundings {
            image,
            socket,
            volumes,
        } = surroundings;
        Job {
            housekeeper: Housekeeper {
                engine: engine.clone(),
                ledger: self.ledger.clone(),
                data_dir: self.config.data_dir.clone(),
                volumes,
                image: image.clone(),
                storage: self.config.storage,
                garbage_collect: self.config.hook.garbage_collect,
                lease_is_lock: is_shared && !self.ledger.has_store(),
                something_left: Arc::default(),
                broom: Arc::default(),
            },
            supersession: Supersession::new(
                self.config.cancel_superseded,
                self.forge.clone(),
                self.ledger.clone(),
            ),
            engine,
            ledger: self.ledger.clone(),
            forge: self.forge.clone(),
            notifiers: self.notifiers.clone(),
            links: self.links.clone(),
            hook: self.config.hook.clone(),
            image,
            socket,
            data_dir: self.config.data_dir.clone(),
            secrets: self.secrets(),
        }
    }
}

/// Takes the deliveries of one worker, as many at a time as there are free slots.
struct Taking {
    engine: Engine,
    ledger: Ledger,
    slots: Slots,
    deliveries: Deliveries,
    builds: JoinSet<()>,
}

impl Taking {
    /// Takes deliveries until asked to stop, then waits for the builds that run. What still runs
    /// after the drain time is left alone: its container goes on, and the next start adopts it.
    async fn run(mut self, queue: &Queue, drain: &CancellationToken, drain_timeout: Duration) {
        if queue.is_shared() {
            self.go_on().await;
        }
        while let Some(free) = drain.run_until_cancelled(self.ready()).await {
            let received = queue.receive(free, RECEIVE_WAIT);
            match drain.run_until_cancelled(received).await {
                Some(Ok(deliveries)) => self.begin(deliveries),
                Some(Err(error)) => {
                    tracing::error!(%error, "failed to receive from the queue");
                    drain.run_until_cancelled(sleep(TROUBLE_DELAY)).await;
                }
                None => break,
            }
        }
        let leaving = self.deliveries.leave_waiting();
        let finished = tokio::select! {
            finished = timeout(drain_timeout, all_done(&mut self.builds)) => finished,
            never = leaving => match never {},
        };
        if finished.is_err() {
            let builds = self.builds.len();
            tracing::info!(builds, "left running for the next start");
            self.deliveries.leave_all();
            let _ = timeout(LAST_LINES, all_done(&mut self.builds)).await;
        }
    }

    /// Returns the number of free slots, as soon as there is one, the engine answers and steps can be
    /// recorded: a message that is not received meanwhile uses up no attempt.
    async fn ready(&mut self) -> usize {
        while self.builds.try_join_next().is_some() {}
        while self.builds.len() >= DELIVERIES_MAX {
            self.builds.join_next().await;
        }
        self.slots.some_free().await;
        while let Err(error) = self.engine.ping().await {
            tracing::warn!(%error, "waiting for the Docker engine");
            sleep(TROUBLE_DELAY).await;
        }
        while let Err(error) = self.ledger.check().await {
            tracing::error!(%error, "waiting for the build records; nothing is taken from the queue");
            sleep(TROUBLE_DELAY).await;
        }
        self.slots.some_free().await
    }

    /// Goes on with the builds of an earlier process: the messages of a shared queue come back late.
    async fn go_on(&mut self) {
        let unfinished = self.ledger.unfinished().await.unwrap_or_else(|error| {
            tracing::error!(%error, "failed to read which builds are unfinished");
            Vec::new()
        });
        // Without a store only the engine tells whether another worker has not ended it by now.
        let is_ours = |build: &Build| self.ledger.has_store() || build.state.may_have_begun();
        for build in unfinished.into_iter().filter(is_ours) {
            let (deliveries, slot) = (self.deliveries.clone(), self.slots.slot());
            let going_on = async move { deliveries.go_on(&build.request, slot).await };
            self.builds.spawn(going_on);
        }
    }

    fn begin(&mut self, deliveries: Vec<Delivery>) {
        for delivery in deliveries {
            // Taken at once, or the next receive would take it for free.
            let slot = self.slots.slot();
            slot.take_if_free();
            let deliveries = self.deliveries.clone();
            let taking = async move { deliveries.take(delivery, Origin::Queue, slot).await };
            self.builds.spawn(taking);
        }
    }
}

/// Gives what was received too often its final status all the same, until asked to stop.
async fn take_dead_letters(
    deliveries: &Deliveries,
    slots: &Slots,
    queue: &Queue,
    drain: &CancellationToken,
    drain_timeout: Duration,
) {
    let mut letters = JoinSet::new();
    loop {
        while letters.try_join_next().is_some() {}
        let received = queue.receive_dead_letters(DEAD_LETTERS_AT_ONCE, RECEIVE_WAIT);
        match drain.run_until_cancelled(received).await {
            Some(Ok(received)) => received.into_iter().for_each(|letter| {
                let (deliveries, slot) = (deliveries.clone(), slots.slot());
                letters.spawn(async move {
                    deliveries.take(letter, Origin::DeadLetters, slot).await;
                });
            }),
            Some(Err(error)) => {
                tracing::error!(%error, "failed to receive dead letters");
                drain.run_until_cancelled(sleep(TROUBLE_DELAY)).await;
            }
            None => break,
        }
    }
    // What is not reported by then comes back, to the next start or to another worker.
    let _ = timeout(drain_timeout, all_done(&mut letters)).await;
}

async fn all_done(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

fn lock(data_dir: &Path) -> Result<FileLock, ConfigError> {
    FileLock::take(&data_dir.join(LOCK)).map_err(|error| ConfigError {
        variable: "DATA_DIR",
        problem: match error {
            TryLockError::WouldBlock => {
                format!("{} is in use by another process", data_dir.display())
            }
            TryLockError::Error(error) => format!("{}: {error}", data_dir.display()),
        },
    })
}

fn without_slash(url: &url::Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}
