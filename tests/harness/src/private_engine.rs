//! A Docker engine that a test may stop, kill and suspend: nobody else uses it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{PipeWriter, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::engine::Engine;
use crate::machine::{copy_image, machine};
use crate::process::Process;

/// Where containers on a [`PrivateEngine`] reach the machine that it runs on. The range is the
/// one of RFC 2544, for tests of networks: nothing else is there.
const GATEWAY: &str = "198.18.0.1";

/// Starts the engine, and sends it signals, as it is told line by line; the end of its input is
/// the machine's. Containers outlive an engine that was killed, and the engine that is started
/// next stops them.
const ENGINE: &str = r#"
mount -o remount,size=1g /var/lib/docker
while read -r order; do
    case $order in
    start)
        rm -f /run/docker.pid
        dockerd --host "unix://$0" --bip 198.18.0.1/16 </dev/null &
        engine=$!
        ;;
    STOP | CONT)
        kill -s "$order" "$engine"
        ;;
    *)
        kill -s "$order" "$engine"
        wait "$engine" || true
        echo "the engine has ended"
        ;;
    esac
done
"#;

/// What a test fills the engine's disk with.
const BALLAST: &str = "var/lib/docker/ballast";

/// Generous: the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// An engine without images on a machine of its own. Dropping it ends it and its containers.
#[derive(Debug)]
pub struct PrivateEngine {
    dir: TempDir,
    process: Process,
    orders: PipeWriter,
    /// How often it was started.
    starts: usize,
    /// How often it has ended.
    ends: usize,
}

impl PrivateEngine {
    /// Starts it and waits until it listens.
    ///
    /// # Panics
    /// When it does not, with what it printed. It needs root, and the `dockerd` of this machine.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let command = machine(ENGINE, dir.path().join("docker.sock"));
        let (input, orders) = std::io::pipe().expect("a pipe can be made");
        let mut engine = Self {
            dir,
            process: Process::start_with_input(command, input),
            orders,
            starts: 0,
            ends: 0,
        };
        engine.start_again().await;
        engine
    }

    /// Where it listens, on this machine and on its own.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    /// The value for `DOCKER_HOST`.
    pub fn docker_host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// A connection to it.
    pub async fn connect(&self) -> Engine {
        Engine::connect_with_socket(&self.socket()).await
    }

    /// Copies an image from the engine of the other tests.
    ///
    /// # Panics
    /// When that engine has none of this name.
    pub async fn load(&self, image: &str) {
        let host = self.docker_host();
        copy_image(image, &[("DOCKER_HOST", OsStr::new(&host))]).await;
    }

    /// Starts it after [`stop`](Self::stop) or [`kill`](Self::kill), and waits until it listens.
    ///
    /// # Panics
    /// When it does not, with what it printed.
    pub async fn start_again(&mut self) {
        self.starts += 1;
        self.order("start");
        let ready = format!("API listen on {}", self.socket().display());
        self.wait_for(&ready, self.starts).await;
    }

    /// Sends it SIGTERM, and waits for its end: it stops its containers.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn stop(&mut self) {
        self.end("TERM").await;
    }

    /// Sends it SIGKILL: its containers go on until the next start, which stops them.
    pub async fn kill(&mut self) {
        self.end("KILL").await;
    }

    /// Stops it where it is: connections are made, and nothing is answered.
    pub fn suspend(&mut self) {
        self.order("STOP");
    }

    /// Lets it go on after [`suspend`](Self::suspend).
    pub fn resume(&mut self) {
        self.order("CONT");
    }

    /// Fills its disk, of 1 GiB, to the last byte.
    ///
    /// # Panics
    /// When that fails.
    pub fn fill_disk(&self) {
        let ballast = File::create(self.path(BALLAST));
        let mut ballast = ballast.expect("the machine runs");
        let chunk = vec![0; 1 << 20];
        while ballast.write_all(&chunk).is_ok() {}
    }

    /// Takes away what filled it.
    ///
    /// # Panics
    /// When nothing did.
    pub fn free_disk(&self) {
        std::fs::remove_file(self.path(BALLAST)).expect("it was filled");
    }

    /// Where a file of its machine is found on this one.
    fn path(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root/{path}", self.process.pid()).into()
    }

    /// A listener that its containers reach, and the address that they reach it by.
    ///
    /// # Panics
    /// When the port is taken there.
    pub fn listen(&self, port: u16) -> (TcpListener, SocketAddr) {
        let network = format!("/proc/{}/ns/net", self.process.pid());
        let network = File::open(network).expect("the machine runs");
        let inside = std::thread::spawn(move || {
            use std::os::fd::AsFd;
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        });
        let listener = inside.join().expect("nothing in it panics");
        let listener = listener.expect("the port is free");
        listener.set_nonblocking(true).expect("a socket can be so");
        let address = SocketAddr::new(GATEWAY.parse().expect("an address"), port);
        let listener = TcpListener::from_std(listener).expect("it is a listener");
        (listener, address)
    }

    async fn end(&mut self, signal: &str) {
        self.ends += 1;
        self.order(signal);
        self.wait_for("the engine has ended", self.ends).await;
    }

    fn order(&mut self, order: &str) {
        let told = writeln!(self.orders, "{order}");
        told.expect("the machine's first process reads");
    }

    async fn wait_for(&self, line: &str, times: usize) {
        let seen = |printed: &str| (printed.matches(line).count() >= times).then_some(());
        self.process.wait_for_output(seen, DEADLINE).await;
    }
}
