//! The docker CLI, as a person uses it who was told that `docker logs <uuid>` works.

use std::process::{Command, Output};
use std::time::Duration;

use crate::process::run_to_end;

/// How long a command may take: some copy an image, or wait for a container.
const DEADLINE: Duration = Duration::from_secs(300);

/// Runs `docker` with these arguments, and answers what it printed on both outputs.
///
/// # Panics
/// When it cannot be started, fails, or does not end; with what it printed.
pub async fn docker(arguments: &[&str]) -> String {
    let output = run_to_end(command(arguments), DEADLINE).await;
    let printed = printed(&output);
    assert!(output.status.success(), "docker {arguments:?}: {printed}");
    printed
}

/// Docker commands that run when it is dropped, last one first: what a test makes on the engine
/// goes away also when the test fails.
#[derive(Debug, Default)]
pub struct AtEnd(Vec<Vec<String>>);

impl AtEnd {
    /// Nothing to run yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `docker` with these arguments at the end. It may fail: the test may have removed the
    /// thing itself.
    pub fn docker(&mut self, arguments: &[&str]) {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        self.0.push(arguments);
    }
}

impl Drop for AtEnd {
    fn drop(&mut self) {
        for arguments in self.0.iter().rev() {
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            command(&arguments).output().ok();
        }
    }
}

/// In the tests' own environment, which says where the engine is.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.args(arguments);
    command
}

fn printed(output: &Output) -> String {
    let both = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}
