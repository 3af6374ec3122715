//! What a program leaves behind: its exit code and, after a failure, one line on standard error.

use std::process::ExitCode;

use crate::config::ConfigError;

/// As the shell's builtins and most programs answer a wrong usage.
const MISCONFIGURED: u8 = 2;

/// Tells an error in one line, and which exit code it ends the program with: 0 without one, 2 for
/// a setting that cannot be used, 1 for everything else.
pub fn code(program: &str, result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    complain(program, &error);
    match error.downcast_ref::<ConfigError>() {
        Some(_) => ExitCode::from(MISCONFIGURED),
        None => ExitCode::FAILURE,
    }
}

#[expect(clippy::print_stderr, reason = "the service's log may not exist yet")]
fn complain(program: &str, error: &anyhow::Error) {
    eprintln!("{program}: {error:#}");
}
