//! compose-ci-reconcile: queues missed pushes, as a function on AWS Lambda or once.

use std::process::ExitCode;

use compose_ci_handler::lambda::scheduled;
use compose_ci_handler::usage::RECONCILE;
use shared::config::Env;
use shared::process::exit;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match std::env::args().nth(1) {
        None => exit::code(RECONCILE.name, scheduled::run(&Env::of_process()).await),
        Some(argument) => RECONCILE.explain(&argument),
    }
}
