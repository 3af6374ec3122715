//! The webhook as a process of its own, which puts builds into a queue at SQS.

use shared::config::{Env, HandlerConfig, LogConfig, QueueConfig};
use shared::process::shutdown::Shutdown;
use shared::process::telemetry;
use shared::queue::Queue;

use crate::lambda;
use crate::server::Server;
use crate::webhook;

/// Serves on AWS Lambda where that is what started this process, and otherwise on a port until a
/// signal ends it.
///
/// # Errors
/// A setting cannot be used, or the connection to Lambda breaks.
pub async fn run(env: &Env) -> anyhow::Result<()> {
    let log = LogConfig::load(env)?;
    let config = HandlerConfig::load(env)?;
    let queue = QueueConfig::load_shared(env)?;
    telemetry::init(&log);
    let queue = Queue::open(&queue).await?;
    let router = webhook::router(&config.webhook, queue.clone());
    if env.is_of_lambda() {
        return lambda::webhook::serve(router, &queue).await;
    }
    let shutdown = Shutdown::on_signals()?;
    let server = Server::bind(&config.listen).await?;
    server.serve(router, &shutdown).await;
    Ok(())
}
