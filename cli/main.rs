//! compose-ci: a push builds with your own compose file on your own Docker host.

mod command;
mod health;
mod pages;
mod serve;

use std::process::ExitCode;

use clap::Parser;
use command::{Cli, Command};
use shared::config::{ConfigError, Env};

/// As the shell's builtins and most programs answer a wrong usage.
const EXIT_CONFIG: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let env = Env::of_process();
    let result = match cli.command {
        Command::Serve => serve::run(&env).await,
        Command::Healthcheck => health::check(&env).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            command::complain(&error);
            let misconfigured = error.downcast_ref::<ConfigError>().is_some();
            ExitCode::from(if misconfigured { EXIT_CONFIG } else { 1 })
        }
    }
}
