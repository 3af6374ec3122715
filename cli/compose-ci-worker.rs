//! compose-ci-worker: a worker alone, one of any number that share a queue.

use std::process::ExitCode;

use shared::config::Env;
use shared::process::exit;
use worker::service::Service;

#[tokio::main]
async fn main() -> ExitCode {
    exit::code("compose-ci-worker", work().await)
}

async fn work() -> anyhow::Result<()> {
    let service = Service::open(&Env::of_process(), web::mail::html).await?;
    service.run().await
}
