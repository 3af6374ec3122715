//! compose-ci-redeliver: has GitHub deliver missed pushes again, as a function on AWS Lambda or once.

use std::process::ExitCode;

use compose_ci_handler::redeliver;
use compose_ci_handler::usage::REDELIVER;
use shared::config::Env;
use shared::process::exit;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match std::env::args().nth(1) {
        None => exit::code(REDELIVER.name, redeliver::run(&Env::of_process()).await),
        Some(argument) => REDELIVER.explain(&argument),
    }
}
