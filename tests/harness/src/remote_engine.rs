//! A Docker engine on another machine, as docker-machine leaves one: TCP, and TLS on both sides.
//!
//! Namespaces of the kernel stand for the machine: a network, processes and mounts of its own, with
//! an empty `/run` and an empty `/var/lib/docker` in memory. Nothing of it is seen by the engine
//! that the other tests run on, whose bridge and firewall a second engine beside it would take
//! away, and nothing is left when its first process ends. What it shares with this machine is the
//! one socket that it listens on, which is handed to it as systemd would do it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::certificates::MachineCertificates;
use crate::engine::Engine;
use crate::process::Process;

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

/// The socket comes as standard input, the only one that survives all that stands before, and is
/// the first of `LISTEN_FDS`.
const ENGINE: &str = r#"
mkdir -p /var/lib/docker
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib/docker
exec 3<&0 </dev/null
LISTEN_FDS=1 LISTEN_PID=$$ exec dockerd \
    --host fd:// --host unix:///run/docker.sock \
    --tlsverify --tlscacert "$0/ca.pem" --tlscert "$0/server.pem" --tlskey "$0/server-key.pem"
"#;

/// What the engine says once its last socket is open.
const READY: &str = "API listen on /run/docker.sock";

/// Generous: the machine may be busy.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// An engine without images, at a port of the loopback. Dropping it ends it and its containers.
#[derive(Debug)]
pub struct RemoteEngine {
    address: SocketAddr,
    certificates: MachineCertificates,
    _process: Process,
}

impl RemoteEngine {
    /// Starts it and waits until it listens.
    ///
    /// # Panics
    /// When it does not, with what it printed. It needs root, and the `dockerd` of this machine.
    pub async fn start() -> Self {
        let certificates = MachineCertificates::new();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let mut command = Command::new(MACHINE[0]);
        command.args(&MACHINE[1..]).args(["sh", "-ec", ENGINE]);
        command.arg(certificates.dir());
        let process = Process::start_with_input(command, OwnedFd::from(listener));
        let ready = |printed: &str| printed.contains(READY).then_some(());
        process.wait_for_output(ready, START_DEADLINE).await;
        Self {
            address,
            certificates,
            _process: process,
        }
    }

    /// The value for `DOCKER_HOST`.
    pub fn docker_host(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// The value for `DOCKER_CERT_PATH`.
    pub fn cert_path(&self) -> &Path {
        self.certificates.dir()
    }

    /// A connection to it.
    pub async fn connect(&self) -> Engine {
        Engine::connect_with_tls(&self.docker_host(), self.cert_path()).await
    }

    /// Copies an image from the engine of the other tests.
    ///
    /// # Panics
    /// When that engine has none of this name.
    pub async fn load(&self, image: &str) {
        let mut save = Command::new("docker");
        let mut save = save.args(["save", image]).stdout(Stdio::piped()).spawn();
        let save = save.as_mut().expect("the docker CLI is installed");
        let mut load = Command::new("docker");
        load.arg("load")
            .env("DOCKER_HOST", self.docker_host())
            .env("DOCKER_TLS_VERIFY", "1")
            .env("DOCKER_CERT_PATH", self.cert_path())
            .stdin(save.stdout.take().expect("it is piped"));
        let loaded = tokio::process::Command::from(load).output().await;
        let loaded = loaded.expect("the docker CLI is installed");
        let saved = save.wait().expect("it was started");
        let said = String::from_utf8_lossy(&loaded.stderr);
        assert!(
            saved.success() && loaded.status.success(),
            "{image}: {said}"
        );
    }
}
