//! A Docker engine on another machine, as docker-machine leaves one: TCP, and TLS on both sides.
//!
//! What it shares with this machine is the one socket that it listens on, which is handed to it as
//! systemd would do it.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use crate::certificates::MachineCertificates;
use crate::engine::Engine;
use crate::machine::{copy_image, machine};
use crate::process::Process;

/// The socket comes as standard input, the only one that survives all that stands before, and is
/// the first of `LISTEN_FDS`.
const ENGINE: &str = r#"
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
        let command = machine(ENGINE, certificates.dir());
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
        let host = self.docker_host();
        let engine = [
            ("DOCKER_HOST", OsStr::new(&host)),
            ("DOCKER_TLS_VERIFY", OsStr::new("1")),
            ("DOCKER_CERT_PATH", self.cert_path().as_os_str()),
        ];
        copy_image(image, &engine).await;
    }
}
