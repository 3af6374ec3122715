//! A way to the Docker engine that a test can close.

use std::io;
use std::path::PathBuf;

use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A socket behind which the engine is, unless a test has closed it: then connections end at once,
/// those that are there included. Dropping it removes the socket.
#[derive(Debug)]
pub struct EngineProxy {
    dir: TempDir,
    open: watch::Sender<bool>,
    _server: JoinSet<()>,
}

impl EngineProxy {
    /// A socket to the engine of the local machine, open or closed.
    pub fn start(open: bool) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let listener = UnixListener::bind(dir.path().join("docker.sock"));
        let listener = listener.expect("a new socket can be made");
        let (open, state) = watch::channel(open);
        let mut server = JoinSet::new();
        server.spawn(serve(listener, state));
        Self {
            dir,
            open,
            _server: server,
        }
    }

    /// The value for `DOCKER_HOST`.
    pub fn docker_host(&self) -> String {
        format!("unix://{}/docker.sock", self.dir.path().display())
    }

    /// Lets connections through from now on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Ends all connections, and new ones at once.
    pub fn close(&self) {
        self.open.send_replace(false);
    }
}

async fn serve(listener: UnixListener, state: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let mut state = state.clone();
                if *state.borrow_and_update() {
                    connections.spawn(pass_on(client, state));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Until one side ends the connection, or the test does.
async fn pass_on(mut client: UnixStream, mut state: watch::Receiver<bool>) -> io::Result<()> {
    let mut engine = UnixStream::connect(engine_socket()).await?;
    tokio::select! {
        copied = copy_bidirectional(&mut client, &mut engine) => copied.map(drop),
        _ = state.changed() => Ok(()),
    }
}

fn engine_socket() -> PathBuf {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    let socket = host.strip_prefix("unix://");
    socket.unwrap_or("/var/run/docker.sock").into()
}
