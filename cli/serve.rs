//! The one box: webhook, local queue and worker in one process.

use handler::server::Server;
use shared::config::{ConfigError, Env, HandlerConfig, LogConfig, QueueConfig, WorkerConfig};
use shared::queue::{Queue, QueueError};
use shared::shutdown::Shutdown;
use shared::telemetry;
use worker::Worker;
use worker::disk::Reserve;

use crate::pages;

/// Runs until a signal ends it.
///
/// # Errors
/// A setting cannot be used, or something that the service needs cannot be opened.
pub(crate) async fn run(env: &Env) -> anyhow::Result<()> {
    let log = LogConfig::load(env)?;
    let handler = HandlerConfig::load(env)?;
    let worker = WorkerConfig::load(env)?;
    let queue = QueueConfig::load(env)?;
    telemetry::init(&log);

    let shutdown = Shutdown::on_signals()?;
    // On a full disk the databases need it to be opened.
    Reserve::of(&worker.data_dir).release();
    // The queue first: its lock tells a second service with the same data at once.
    let queue = Queue::open(&queue).await.map_err(unusable)?;
    let data_dir = worker.data_dir.clone();
    let worker = Worker::new(worker).await?;
    let server = Server::bind(&handler.listen).await?;
    let router = handler::webhook::router(&handler.webhook, queue.clone())
        .merge(pages::router(&worker, &data_dir));

    // Pushes are taken while the worker waits for its engine, and until its last build is done.
    let serving = server.serve(router, &shutdown);
    let working = async {
        let result = worker.run(queue, &shutdown).await;
        shutdown.drain.cancel();
        result
    };
    let (result, ()) = tokio::join!(working, serving);
    result
}

/// The local queue lies in `DATA_DIR`, and nothing else keeps it from being opened; one at SQS is
/// only kept by a setting.
fn unusable(error: QueueError) -> ConfigError {
    match error {
        QueueError::Config(error) => error,
        error => ConfigError {
            variable: "DATA_DIR",
            problem: error.to_string(),
        },
    }
}
