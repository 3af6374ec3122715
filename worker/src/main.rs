//! compose-ci-worker: a worker alone, one of any number that share a queue.

use std::process::ExitCode;

use shared::config::Env;
use shared::exit;

#[tokio::main]
async fn main() -> ExitCode {
    let result = compose_ci_worker::service::run(&Env::of_process()).await;
    exit::code("compose-ci-worker", result)
}
