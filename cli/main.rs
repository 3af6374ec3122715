//! compose-ci: a push builds with your own compose file on your own Docker host.

mod command;
mod health;
mod renamed;
mod reconcile;
mod serve;
mod work;

use std::process::ExitCode;

use clap::Parser;
use command::{Cli, Command};
use shared::config::Env;
use shared::process::exit;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let env = Env::of_process();
    let result = match cli.command {
        Command::Serve => serve::run(&env).await,
        Command::Worker => work::run(&env).await,
        Command::Reconcile => reconcile::once(&env).await,
        Command::Healthcheck => health::check(&env).await,
    };
    exit::code("compose-ci", result)
}
