//! compose-ci-handler: the webhook alone, as a function on AWS Lambda or on a port.

use std::process::ExitCode;

use shared::config::Env;
use shared::exit;

// One core is more than a small Lambda has, and does for thousands of pushes a second elsewhere.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let result = compose_ci_handler::service::run(&Env::of_process()).await;
    exit::code("compose-ci-handler", result)
}
