//! compose-ci-handler: the webhook alone, as a function on AWS Lambda or on a port.

use std::process::ExitCode;

use compose_ci_handler::{service, usage};
use shared::config::Env;
use shared::exit;

// One core is more than a small Lambda has, and does for thousands of pushes a second elsewhere.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match std::env::args().nth(1) {
        None => {
            let result = service::run(&Env::of_process()).await;
            exit::code("compose-ci-handler", result)
        }
        Some(argument) => explain(&argument),
    }
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a person asked on a terminal"
)]
fn explain(argument: &str) -> ExitCode {
    match argument {
        "--help" | "-h" | "--version" | "-V" => {
            print!("{}", usage::text());
            ExitCode::SUCCESS
        }
        unknown => {
            eprint!("{unknown:?} is no option.\n\n{}", usage::text());
            ExitCode::from(2)
        }
    }
}
