//! What a person reads who starts one of the programs with an argument.

use std::fmt::Write;
use std::process::ExitCode;

use shared::config::variables::{self, Variable};

/// A program, as its help tells of it.
#[derive(Debug)]
pub struct Program {
    /// What it is called.
    pub name: &'static str,
    purpose: &'static str,
    /// The variables that it reads, in the order of the table.
    reads: &'static [&'static str],
    /// The defaults that are others here.
    defaults: &'static [(&'static str, &'static str)],
}

/// The webhook.
pub const HANDLER: Program = Program {
    name: "compose-ci-handler",
    purpose: "the webhook of compose-ci alone, as a function on AWS Lambda or on a port.",
    reads: &[
        "GITHUB_TOKEN",
        "GITHUB_REPO",
        "WEBHOOK_SECRET",
        "BRANCHES",
        "STATUS_CONTEXT",
        "BIND",
        "PORT",
        "CERT_PATH",
        "QUEUE_URL",
        "LOG_LEVEL",
        "LOG_FORMAT",
        "SSL_CERT_FILE",
    ],
    defaults: &[
        ("QUEUE_URL", "required"),
        ("GITHUB_TOKEN", "required without WEBHOOK_SECRET"),
    ],
};

/// The function for missed pushes.
pub const RECONCILE: Program = Program {
    name: "compose-ci-reconcile",
    purpose: "queues the pushes that the webhook missed, as a scheduled function on AWS Lambda or once.",
    reads: &[
        "GITHUB_TOKEN",
        "GITHUB_REPO",
        "WEBHOOK_SECRET",
        "WEBHOOK_URL",
        "BRANCHES",
        "STATUS_CONTEXT",
        "GITHUB_API_URL",
        "PUBLIC_URL",
        "QUEUE_URL",
        "STORE_URL",
        "LOG_LEVEL",
        "LOG_FORMAT",
        "SSL_CERT_FILE",
    ],
    defaults: &[("QUEUE_URL", "required")],
};

impl Program {
    /// Answers a person who gave it an argument.
    #[expect(
        clippy::print_stdout,
        clippy::print_stderr,
        reason = "a person asked on a terminal"
    )]
    pub fn explain(&self, argument: &str) -> ExitCode {
        match argument {
            "--help" | "-h" | "--version" | "-V" => {
                print!("{}", self.text());
                ExitCode::SUCCESS
            }
            unknown => {
                eprint!("{unknown:?} is no option.\n\n{}", self.text());
                ExitCode::from(2)
            }
        }
    }

    /// What the program is, and every variable that it reads.
    fn text(&self) -> String {
        let mut text = format!(
            "{} {}: {}\nIt takes no arguments, but environment variables:\n\n",
            self.name,
            env!("CARGO_PKG_VERSION"),
            self.purpose
        );
        for Variable {
            name,
            default,
            meaning,
            secret,
        } in variables::all().filter(|variable| self.reads.contains(&variable.name))
        {
            let mark = if *secret { "* " } else { "" };
            let own = self.defaults.iter().find(|(known, _)| known == name);
            let default = own.map_or(default, |(_, default)| default);
            let _ = writeln!(text, "  {name:<15} {mark}{meaning} [{default}]");
        }
        text.push_str(
            "\nEvery secret (marked *) can also come from a file named by <NAME>_FILE.\n",
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variable_that_is_read_is_explained() {
        for program in [HANDLER, RECONCILE] {
            let text = program.text();
            for name in program.reads {
                let explained = text
                    .lines()
                    .any(|line| line.starts_with(&format!("  {name} ")));
                assert!(explained, "{name}:\n{text}");
            }
        }
        let text = HANDLER.text();
        assert!(text.contains("the aws CLI finds them [required]"), "{text}");
    }
}
