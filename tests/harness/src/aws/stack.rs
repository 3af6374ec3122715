//! What `infra/aws/deploy` makes of an emulator, and the AWS CLI to look at it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::{Aws, REGION, tools};
use crate::process::run_to_end;

const INFRA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../infra/aws");

/// How long a script may take that calls the AWS CLI a dozen times, on a busy machine.
const SCRIPT_DEADLINE: Duration = Duration::from_secs(300);

/// Enough of a program to tell what machine it is for.
const ELF_HEADER_BYTES: u64 = 64;

/// Writes the arguments of every call down, and passes them on to the AWS CLI of the tests.
const AWS_THAT_TELLS: &str = r#"#!/bin/sh
printf '%s\n' "$*" >>"$CALLS"
exec "$REAL_AWS" "$@"
"#;

/// The stacks of one name on an emulator, as a person makes them with `infra/aws/deploy`.
#[derive(Debug)]
pub struct Stack<'a> {
    aws: &'a Aws,
    name: &'static str,
    /// A program named `aws`, the functions' zips, and what the program was called with.
    work: TempDir,
}

impl Aws {
    /// The ids of all that the emulator holds, for each kind.
    ///
    /// # Panics
    /// When the emulator does not answer.
    pub async fn resources(&self) -> BTreeMap<String, Vec<String>> {
        let answer = self.post("/control/resources", "", "").await;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    /// Stacks of this name, which begin with [`Stack::deploy`]. The stand-ins for the zips that
    /// they are deployed with say that they are for the machine of `program`.
    ///
    /// # Panics
    /// When `program` cannot be read.
    pub async fn stack(&self, name: &'static str, program: &Path) -> Stack<'_> {
        let work = tempfile::tempdir().expect("a temporary directory can be made");
        let mut header = Vec::new();
        let file = fs::File::open(program).expect("the program was built");
        let read = file.take(ELF_HEADER_BYTES).read_to_end(&mut header);
        read.expect("the program can be read");
        fs::write(work.path().join("bootstrap"), header).expect("it is writable");
        for name in ["handler.zip", "reconcile.zip"] {
            let mut zip = Command::new(tools().join("python"));
            zip.args(["-m", "zipfile", "-c", name, "bootstrap"])
                .current_dir(&work);
            assert_succeeded(&run(zip).await);
        }
        let tells = work.path().join("aws");
        fs::write(&tells, AWS_THAT_TELLS).expect("it is writable");
        let mut chmod = Command::new("chmod");
        chmod.arg("+x").arg(tells);
        assert_succeeded(&run(chmod).await);
        Stack {
            aws: self,
            name,
            work,
        }
    }
}

impl Stack<'_> {
    /// Runs `infra/aws/deploy` with these variables, and answers what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub async fn deploy(&self, variables: &[(&str, &str)]) -> String {
        assert_succeeded(&self.try_deploy(variables).await)
    }

    /// Runs `infra/aws/deploy` with these variables.
    pub async fn try_deploy(&self, variables: &[(&str, &str)]) -> Output {
        let mut deploy = self.command(&format!("{INFRA}/deploy"));
        deploy
            .env("HANDLER_ZIP", self.work.path().join("handler.zip"))
            .env("RECONCILE_ZIP", self.work.path().join("reconcile.zip"))
            .envs(variables.iter().copied());
        run(deploy).await
    }

    /// Runs `infra/aws/destroy`, and answers what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub async fn destroy(&self) -> String {
        assert_succeeded(&run(self.command(&format!("{INFRA}/destroy"))).await)
    }

    /// The stack's outputs.
    ///
    /// # Panics
    /// When there is no such stack.
    pub async fn outputs(&self) -> BTreeMap<String, String> {
        let asked = ["cloudformation", "describe-stacks", "--stack-name"];
        let answer = self.cli(&[&asked[..], &[self.name]].concat()).await;
        let outputs = answer["Stacks"][0]["Outputs"].as_array().cloned();
        let outputs = outputs.unwrap_or_default().into_iter();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        outputs
            .map(|output| (text(&output["OutputKey"]), text(&output["OutputValue"])))
            .collect()
    }

    /// Runs the AWS CLI, and answers the JSON that it prints.
    ///
    /// # Panics
    /// When it fails.
    pub async fn cli(&self, arguments: &[&str]) -> Value {
        let mut cli = self.command("aws");
        cli.args(arguments).args(["--output", "json"]);
        let printed = assert_succeeded(&run(cli).await);
        serde_json::from_str(&printed).unwrap_or_default()
    }

    /// The arguments of every call of the AWS CLI so far, one call a line.
    ///
    /// # Panics
    /// When there was none.
    pub fn calls(&self) -> String {
        fs::read_to_string(self.work.path().join("calls")).expect("the CLI was called")
    }

    fn command(&self, program: &str) -> Command {
        let own = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", format!("{}:{own}", self.work.path().display()))
            .env("REAL_AWS", tools().join("aws"))
            .env("CALLS", self.work.path().join("calls"))
            .env("STACK", self.name)
            .env("AWS_ENDPOINT_URL", self.aws.endpoint_url())
            .env("AWS_REGION", REGION)
            .env("AWS_DEFAULT_REGION", REGION)
            .env("AWS_ACCESS_KEY_ID", "an-id")
            .env("AWS_SECRET_ACCESS_KEY", "a-secret");
        command
    }
}

async fn run(command: Command) -> Output {
    run_to_end(command, SCRIPT_DEADLINE).await
}

/// What the program printed on its standard output.
fn assert_succeeded(output: &Output) -> String {
    let printed = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}{complained}");
    printed.into_owned()
}
