//! Another machine for an engine of its own: namespaces of the kernel stand for it.
//!
//! It has a network, processes and mounts of its own, with an empty `/run` and an empty
//! `/var/lib/docker` in memory. Nothing of it is seen by the engine that the other tests run on,
//! whose bridge and firewall a second engine beside it would take away, and nothing is left when
//! its first process ends. All other files it shares with this machine.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::process::run_to_end;

/// Dies with the thread that started it, and takes with it all that runs on the machine.
const MACHINE: [&str; 11] = [
    "setpriv",
    "--pdeathsig",
    "KILL",
    "unshare",
    "--mount",
    "--net",
    "--pid",
    "--mount-proc",
    "--fork",
    "--kill-child",
    "--",
];

const FILES: &str = "
mkdir -p /var/lib/docker
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib/docker
";

/// A machine whose first process is a shell with this script; `argument` is its `$0`.
pub(crate) fn machine(script: &str, argument: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(MACHINE[0]);
    command.args(&MACHINE[1..]).args(["sh", "-ec"]);
    command.arg(format!("{FILES}{script}")).arg(argument);
    command
}

/// How long an image may take from one engine to another.
const COPY_DEADLINE: Duration = Duration::from_secs(300);

/// Copies an image from the engine of the other tests to the one that these variables lead the
/// docker CLI to.
///
/// # Panics
/// When the first engine has none of this name, or the second one does not take it.
pub(crate) async fn copy_image(image: &str, engine: &[(&str, &OsStr)]) {
    let mut save = Command::new("docker");
    let mut save = save.args(["save", image]).stdout(Stdio::piped()).spawn();
    let save = save.as_mut().expect("the docker CLI is installed");
    let mut load = Command::new("docker");
    load.arg("load")
        .envs(engine.iter().copied())
        .stdin(save.stdout.take().expect("it is piped"));
    let loaded = run_to_end(load, COPY_DEADLINE).await;
    let saved = save.wait().expect("it was started");
    let said = String::from_utf8_lossy(&loaded.stderr);
    assert!(
        saved.success() && loaded.status.success(),
        "{image}: {said}"
    );
}
