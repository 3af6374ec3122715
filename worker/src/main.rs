//! compose-ci-worker: a worker alone, one of any number that share a queue.

use std::process::ExitCode;

use compose_ci_worker::service::Service;
use shared::config::Env;
use shared::process::exit;

#[tokio::main]
async fn main() -> ExitCode {
    exit::code("compose-ci-worker", work().await)
}

async fn work() -> anyhow::Result<()> {
    Service::open(&Env::of_process()).await?.run().await
}
