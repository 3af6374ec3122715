//! The command line. Everything else is set by environment variables, which the help lists.

use std::fmt::Write;

use clap::{Parser, Subcommand};
use shared::config::variables::{self, Variable};

/// A small self-hosted CI: a push builds with your own compose file on your own Docker host.
#[derive(Debug, Parser)]
#[command(name = "compose-ci", version, after_long_help = environment_help(), after_help = "\
    All settings are environment variables; --help lists them.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The command to run.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the webhook, the queue and a worker in one process
    Serve,
    /// Run a worker alone; any number share the queue at QUEUE_URL and claim builds in STORE_URL
    Worker,
    /// Queue the pushes of the last three days that GitHub could not deliver, and exit
    Reconcile,
    /// Ask the service on this machine whether it is healthy (exit code 0) or not (1)
    Healthcheck,
}

/// All variables, by group, with their defaults.
fn environment_help() -> String {
    let mut help = String::from("Environment variables:\n");
    for group in variables::GROUPS {
        let _ = writeln!(help, "\n  {}", group.title);
        for variable in group.variables {
            let _ = writeln!(help, "    {:<18} {}", variable.name, meaning(variable));
        }
    }
    help.push_str("\nEvery secret (marked *) can also come from a file named by <NAME>_FILE.");
    help
}

fn meaning(variable: &Variable) -> String {
    let mark = if variable.secret { "* " } else { "" };
    format!("{mark}{} [{}]", variable.meaning, variable.default)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_names_every_variable() {
        let help = Cli::command().render_long_help().to_string();
        for variable in variables::all() {
            assert!(
                help.contains(&format!("    {} ", variable.name)),
                "{}",
                variable.name
            );
        }
    }
}
