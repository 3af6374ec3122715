//! The loop: lease → slot → heartbeat, until the process is asked to stop.

use std::fs::TryLockError;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use shared::config::{ConfigError, WorkerConfig};
use shared::forge::Forge;
use shared::process::lock::FileLock;
use shared::process::shutdown::Shutdown;
use shared::queue::{Delivery, Queue};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::build::Builder;
use crate::claim::Claims;
use crate::delivery::{Deliveries, Origin};
use crate::engine::{Engine, EngineError};
use crate::housekeeping::Housekeeper;
use crate::job::Job;
use crate::log;
use crate::mail::Mailer;
use crate::mask::Secrets;
use crate::record::Records;
use crate::report::{Bell, Links, Reporter};
use crate::supersede::Supersession;
use crate::surroundings::Surroundings;

/// How long one receive waits for a message: the longest that SQS allows.
const RECEIVE_WAIT: Duration = Duration::from_secs(20);
/// How long to wait after the queue, the records or the engine failed.
const TROUBLE_DELAY: Duration = Duration::from_secs(5);
/// How long a worker that stops still tries to send its last reports.
const LAST_REPORTS: Duration = Duration::from_secs(2);
const DEAD_LETTERS_AT_ONCE: usize = 10;
/// In `DATA_DIR`.
const LOCK: &str = "worker.lock";

/// A worker, configured and not yet running.
#[derive(Debug)]
pub struct Worker {
    config: WorkerConfig,
    engine: Engine,
    github: Forge,
    mailer: Mailer,
    records: Records,
    links: Links,
    _lock: FileLock,
}

impl Worker {
    /// Opens the records and prepares the clients. The engine need not answer yet.
    ///
    /// # Errors
    /// A setting cannot be used; the message names it.
    pub async fn new(config: WorkerConfig) -> anyhow::Result<Self> {
        let logs = log::directory(&config.data_dir);
        std::fs::create_dir_all(&logs).with_context(|| format!("DATA_DIR: {}", logs.display()))?;
        // Two workers with the same records would both go on with the same builds.
        let lock = lock(&config.data_dir)?;
        let github = Forge::github(&config.github)?;
        Ok(Self {
            engine: Engine::new(&config.engine)?,
            mailer: Mailer::new(&config.mail).await?,
            records: Records::open(&config.data_dir)?,
            links: links(&config, &github),
            github,
            config,
            _lock: lock,
        })
    }

    /// What is known of all builds, for the log pages.
    pub fn records(&self) -> Records {
        self.records.clone()
    }

    /// Where people look, for the log pages.
    pub fn links(&self) -> Links {
        self.links.clone()
    }

    /// Builds what comes from the queue, and reports what is owed, until the process is asked to
    /// stop.
    ///
    /// # Errors
    /// There is no image to build in, or the engine and the settings do not fit.
    pub async fn run(self, queue: Queue, shutdown: &Shutdown) -> anyhow::Result<()> {
        let bell = Bell::default();
        let reporter = self.reporter(bell.clone(), queue.is_shared());
        let ending = CancellationToken::new();
        let mut reporting = pin!(reporter.run(&ending));
        tokio::select! {
            worked = self.work(&queue, &shutdown.drain, bell) => worked?,
            () = &mut reporting => {}
            () = shutdown.abort.cancelled() => return Ok(()),
        }
        // What the last builds owe, if it can be sent at once; the next start sends the rest.
        ending.cancel();
        let _ = timeout(LAST_REPORTS, reporting).await;
        Ok(())
    }

    /// Builds as soon as the engine answers.
    async fn work(
        &self,
        queue: &Queue,
        drain: &CancellationToken,
        bell: Bell,
    ) -> anyhow::Result<()> {
        let Some(found) = drain.run_until_cancelled(self.surroundings()).await else {
            return Ok(());
        };
        let (engine, surroundings) = found?;
        let job = self.job(engine, surroundings, bell);
        let deliveries = Deliveries::new(job.clone());
        let engine = job.builder.engine.clone();
        let slots = Slots::new(engine, deliveries.clone(), self.config.concurrency);
        let drain_timeout = self.config.drain_timeout;
        let building = async {
            tokio::join!(
                slots.run(queue, drain, drain_timeout),
                tell_dead_letters(&deliveries, queue, drain, drain_timeout),
            )
        };
        tokio::select! {
            ((), ()) = building => {}
            () = job.builder.housekeeper.sweep_regularly() => {}
        }
        Ok(())
    }

    /// Waits until the engine answers, and tells where builds run.
    ///
    /// # Errors
    /// It answers that it will not, for a setting that is wrong; or there is no image to build in.
    async fn surroundings(&self) -> Result<(Engine, Surroundings), ConfigError> {
        loop {
            match self.look_around().await {
                Err(EngineError::Unfit(mismatch)) => {
                    return Err(mismatch.blame(&self.config.engine));
                }
                Err(error) => tracing::warn!(%error, "waiting for the Docker engine"),
                Ok((engine, surroundings)) => return Ok((engine, surroundings?)),
            }
            sleep(TROUBLE_DELAY).await;
        }
    }

    async fn look_around(
        &self,
    ) -> Result<(Engine, Result<Surroundings, ConfigError>), EngineError> {
        let engine = self.engine.clone().negotiate().await?;
        let surroundings = Surroundings::find(&engine, &self.config).await?;
        Ok((engine, surroundings))
    }

    fn job(&self, engine: Engine, surroundings: Surroundings, bell: Bell) -> Job {
        let housekeeper = Housekeeper {
            engine: engine.clone(),
            records: self.records.clone(),
            data_dir: self.config.data_dir.clone(),
            image: surroundings.image.clone(),
            storage: self.config.storage,
            garbage_collect: self.config.hook.garbage_collect,
            broom: Arc::default(),
        };
        Job {
            builder: Builder {
                engine,
                housekeeper,
                github: self.github.clone(),
                hook: self.config.hook.clone(),
                image: surroundings.image,
                socket: surroundings.socket,
                data_dir: self.config.data_dir.clone(),
                secrets: Secrets::new(&self.config.secrets),
                records: self.records.clone(),
            },
            records: self.records.clone(),
            github: self.github.clone(),
            claims: Claims {
                github: self.github.clone(),
                records: self.records.clone(),
                rerun: self.config.hook.rerun_interrupted,
            },
            supersession: Supersession::new(
                self.config.cancel_superseded,
                self.github.clone(),
                self.records.clone(),
            ),
            mailer: self.mailer.clone(),
            links: self.links.clone(),
            bell,
        }
    }

    fn reporter(&self, bell: Bell, among_others: bool) -> Reporter {
        Reporter {
            records: self.records.clone(),
            github: self.github.clone(),
            mailer: self.mailer.clone(),
            links: self.links.clone(),
            data_dir: self.config.data_dir.clone(),
            containers_kept: !self.config.hook.garbage_collect,
            among_others,
            bell,
        }
    }
}

/// The builds of one worker: as many at a time as there are slots.
struct Slots {
    engine: Engine,
    deliveries: Deliveries,
    free: Arc<Semaphore>,
    builds: JoinSet<()>,
}

impl Slots {
    fn new(engine: Engine, deliveries: Deliveries, concurrency: usize) -> Self {
        Self {
            engine,
            deliveries,
            free: Arc::new(Semaphore::new(concurrency)),
            builds: JoinSet::new(),
        }
    }

    /// Takes deliveries until asked to stop, then waits for the builds that run. What still runs
    /// after the drain time is left alone: its container goes on, and the next start adopts it.
    async fn run(mut self, queue: &Queue, drain: &CancellationToken, drain_timeout: Duration) {
        self.go_on(queue).await;
        while let Some(slots) = drain.run_until_cancelled(self.ready_slots()).await {
            let received = queue.receive(slots.len(), RECEIVE_WAIT);
            match drain.run_until_cancelled(received).await {
                Some(Ok(deliveries)) => self.begin(deliveries, slots),
                Some(Err(error)) => {
                    tracing::error!(%error, "cannot receive from the queue");
                    drain.run_until_cancelled(sleep(TROUBLE_DELAY)).await;
                }
                None => break,
            }
        }
        let all = async { while self.builds.join_next().await.is_some() {} };
        if timeout(drain_timeout, all).await.is_err() {
            tracing::info!(
                builds = self.builds.len(),
                "left running for the next start"
            );
        }
    }

    /// All slots that are free, as soon as there is one and the engine answers: what is not taken
    /// while it is away uses up no attempt.
    async fn ready_slots(&mut self) -> Vec<OwnedSemaphorePermit> {
        let slots = self.free_slots().await;
        while let Err(error) = self.engine.ping().await {
            tracing::warn!(%error, "waiting for the Docker engine");
            sleep(TROUBLE_DELAY).await;
        }
        slots
    }

    /// All slots that are free, as soon as there is one.
    async fn free_slots(&mut self) -> Vec<OwnedSemaphorePermit> {
        while self.builds.try_join_next().is_some() {}
        let first = Arc::clone(&self.free).acquire_owned().await;
        let mut slots = vec![first.expect("the semaphore is never closed")];
        while let Ok(another) = Arc::clone(&self.free).try_acquire_owned() {
            slots.push(another);
        }
        slots
    }

    /// Goes on with what an earlier process left. There may be more of it than there are slots.
    async fn go_on(&mut self, queue: &Queue) {
        for (request, lease) in self.deliveries.held(queue).await {
            let deliveries = self.deliveries.clone();
            let slot = Arc::clone(&self.free).try_acquire_owned();
            self.builds.spawn(async move {
                deliveries.go_on(&request, lease).await;
                drop(slot);
            });
        }
    }

    fn begin(&mut self, deliveries: Vec<Delivery>, slots: Vec<OwnedSemaphorePermit>) {
        for (delivery, slot) in deliveries.into_iter().zip(slots) {
            let deliveries = self.deliveries.clone();
            self.builds.spawn(async move {
                deliveries.take(delivery, Origin::Queue).await;
                drop(slot);
            });
        }
    }
}

/// Gives what was received too often its final status all the same, until asked to stop.
async fn tell_dead_letters(
    deliveries: &Deliveries,
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
                let deliveries = deliveries.clone();
                letters.spawn(async move {
                    deliveries.take(letter, Origin::DeadLetters).await;
                });
            }),
            Some(Err(error)) => {
                tracing::error!(%error, "cannot receive dead letters");
                drain.run_until_cancelled(sleep(TROUBLE_DELAY)).await;
            }
            None => break,
        }
    }
    let all = async { while letters.join_next().await.is_some() {} };
    // What is not told by then comes back, to the next start or to another worker.
    let _ = timeout(drain_timeout, all).await;
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

fn links(config: &WorkerConfig, forge: &Forge) -> Links {
    let base = |url: &str| url.trim_end_matches('/').to_owned();
    Links {
        public_url: config.public_url.as_ref().map(|url| base(url.as_str())),
        web_url: forge.site().map(|site| site.url().to_owned()),
    }
}
