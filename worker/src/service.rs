//! The worker as a process of its own, which only reaches out and listens to nobody.

use shared::config::{Env, LogConfig, QueueConfig, WorkerConfig};
use shared::ledger::Reserve;
use shared::process::shutdown::Shutdown;
use shared::process::telemetry;
use shared::queue::Queue;

use crate::Worker;
use crate::notify::MailHtml;

/// A worker that is ready to run, with the queue that it takes its builds from.
#[derive(Debug)]
pub struct Service {
    /// The worker.
    pub worker: Worker,
    /// The queue.
    pub queue: Queue,
    shutdown: Shutdown,
}

impl Service {
    /// Reads the settings and prepares everything; the service's log begins.
    ///
    /// # Errors
    /// A setting cannot be used, or the records cannot be opened.
    pub async fn open(env: &Env, html: MailHtml) -> anyhow::Result<Self> {
        let log = LogConfig::load(env)?;
        let config = WorkerConfig::load(env)?;
        let queue = QueueConfig::load_shared(env)?;
        telemetry::init(&log);
        let shutdown = Shutdown::on_signals()?;
        // On a full disk the records need it to be opened.
        Reserve::of(&config.data_dir).release();
        Ok(Self {
            queue: Queue::open(&queue).await?,
            worker: Worker::new(config, html).await?,
            shutdown,
        })
    }

    /// Works until a signal ends it.
    ///
    /// # Errors
    /// See [`Worker::run`].
    pub async fn run(self) -> anyhow::Result<()> {
        self.worker.run(self.queue, &self.shutdown).await
    }
}
