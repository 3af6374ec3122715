//! The worker as a process of its own, which only reaches out and listens to nobody.

use shared::config::{Env, LogConfig, QueueConfig, WorkerConfig};
use shared::queue::Queue;
use shared::shutdown::Shutdown;
use shared::telemetry;

use crate::disk::Reserve;
use crate::poll::Worker;

/// Works until a signal ends it.
///
/// # Errors
/// A setting cannot be used, or the records cannot be opened.
pub async fn run(env: &Env) -> anyhow::Result<()> {
    let log = LogConfig::load(env)?;
    let config = WorkerConfig::load(env)?;
    let queue = QueueConfig::load_shared(env)?;
    telemetry::init(&log);
    let shutdown = Shutdown::on_signals()?;
    // On a full disk the records need it to be opened.
    Reserve::of(&config.data_dir).release();
    let queue = Queue::open(&queue).await?;
    Worker::new(config).await?.run(queue, &shutdown).await
}
