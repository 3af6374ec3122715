//! What a person reads who starts the program with an argument.

use std::fmt::Write;

use shared::variables::{self, Variable};

/// The variables that this program reads, in the order of the table.
const READ: [&str; 11] = [
    "GITHUB_TOKEN",
    "GITHUB_REPO",
    "WEBHOOK_SECRET",
    "BRANCHES",
    "BIND",
    "PORT",
    "CERT_PATH",
    "QUEUE_URL",
    "LOG_LEVEL",
    "LOG_FORMAT",
    "SSL_CERT_FILE",
];

/// What the program is, and every variable that it reads.
pub fn text() -> String {
    let mut text = format!(
        "compose-ci-handler {}: the webhook of compose-ci alone, as a function on AWS Lambda or on \
         a port.\nIt takes no arguments, but environment variables:\n\n",
        env!("CARGO_PKG_VERSION")
    );
    for Variable {
        name,
        default,
        meaning,
        secret,
    } in variables::all().filter(|variable| READ.contains(&variable.name))
    {
        let mark = if *secret { "* " } else { "" };
        let default = match *name {
            "QUEUE_URL" => "required",
            "GITHUB_TOKEN" => "required without WEBHOOK_SECRET",
            _ => default,
        };
        let _ = writeln!(text, "  {name:<15} {mark}{meaning} [{default}]");
    }
    text.push_str("\nEvery secret (marked *) can also come from a file named by <NAME>_FILE.\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variable_that_is_read_is_explained() {
        let text = text();
        for name in READ {
            let explained = text
                .lines()
                .any(|line| line.starts_with(&format!("  {name} ")));
            assert!(explained, "{name}:\n{text}");
        }
        assert!(text.contains("the aws CLI finds them [required]"), "{text}");
    }
}
