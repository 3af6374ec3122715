//! The one box: webhook, local queue and worker in one process.

use std::convert::Infallible;
use std::future::pending;

use handler::server::Server;
use shared::config::{Env, HandlerConfig, LogConfig, QueueConfig, ReconcileConfig, WorkerConfig};
use shared::ledger::{Ledger, Reserve};
use shared::process::shutdown::Shutdown;
use shared::process::telemetry;
use shared::queue::Queue;
use shared::standing::Standing;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use web::Pages;
use worker::Worker;

use crate::reconcile::{self, Lookout};
use crate::renamed;

/// Runs until a signal ends it.
///
/// # Errors
/// A setting cannot be used, or something that the service needs cannot be opened.
pub(crate) async fn run(env: &Env) -> anyhow::Result<()> {
    let log = LogConfig::load(env)?;
    let handler = HandlerConfig::load(env)?;
    let worker = WorkerConfig::load(env)?;
    let queue = QueueConfig::load(env)?;
    let mut reconcile = ReconcileConfig::load_if_wanted(env, true)?;
    let repos = handler.webhook.repos.clone();
    if let Some(reconcile) = &mut reconcile {
        reconcile.webhook.repos = repos.clone();
    }
    telemetry::init(&log);

    let shutdown = Shutdown::on_signals()?;
    // On a full disk the databases need it to be opened.
    Reserve::of(&worker.data_dir).release();
    // The queue first: its lock tells a second service with the same data at once.
    let queue = Queue::open(&queue).await?;
    let data_dir = worker.data_dir.clone();
    let worker = Worker::new(worker, web::mail::html).await?;
    let ledger = worker.ledger();
    let standing = queue.standing();
    if let Some(standing) = &standing {
        tell_loss(&ledger, standing.borrow().clone()).await?;
    }
    let lookout = Lookout::for_worker(reconcile, &worker, &queue)?;
    let server = Server::bind(&handler.listen).await?;
    // Pushes are taken while the worker waits for its engine, and until its last build is done:
    // the next start builds what it does not.
    let until_worker_ends = Shutdown {
        drain: CancellationToken::new(),
        abort: shutdown.abort.clone(),
    };
    let router =
        handler::webhook::router(&handler.webhook, queue.clone()).merge(web::router(Pages {
            ledger: worker.ledger(),
            queue: queue.clone(),
            site: worker.links().site,
            data_dir,
            secrets: worker.secrets(),
            closing: until_worker_ends.drain.clone(),
        }));
    let serving = server.serve(router, &until_worker_ends);
    let working = async {
        let forge = worker.forge();
        let result = tokio::select! {
            result = reconcile::beside(worker.run(queue, &shutdown), lookout) => result,
            never = renamed::learn(&forge, &repos) => match never {},
            never = follow(&ledger, standing.clone()) => match never {},
        };
        until_worker_ends.drain.cancel();
        result
    };
    let (result, ()) = tokio::join!(working, serving);
    if let Some(standing) = &standing {
        let last = standing.borrow().clone();
        if let Err(error) = ledger.record_queue(last).await {
            tracing::warn!(%error, "failed to record where the queue stands; the next start may not see lost pushes");
        }
    }
    result
}

/// Says which accepted pushes the queue has lost since it was recorded, if any.
async fn tell_loss(ledger: &Ledger, queue: Standing) -> anyhow::Result<()> {
    let recorded = ledger.queue().await?;
    if let Some(loss) = recorded.and_then(|recorded| queue.loss_since(&recorded)) {
        tracing::error!("{loss}");
    }
    Ok(())
}

/// Records where the queue stands for as long as the service runs.
async fn follow(ledger: &Ledger, queue: Option<watch::Receiver<Standing>>) -> Infallible {
    match queue {
        Some(queue) => ledger.follow_queue(queue).await,
        None => pending().await,
    }
}
