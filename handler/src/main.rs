//! compose-ci-handler: the webhook alone, as a function on AWS Lambda or on a port.

use std::process::ExitCode;

use compose_ci_handler::service;
use compose_ci_handler::usage::HANDLER;
use shared::config::Env;
use shared::process::exit;

// One core is more than a small Lambda has, and does for thousands of pushes a second elsewhere.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match std::env::args().nth(1) {
        None => exit::code(HANDLER.name, service::run(&Env::of_process()).await),
        Some(argument) => HANDLER.explain(&argument),
    }
}
