//! A way to the Docker engine that a test can close, or let no container start.

use std::io;
use std::path::PathBuf;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

const CHUNK_BYTES: usize = 16 << 10;
/// What the engine answers whose runtime is broken.
const CANNOT_START: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\n\
    Content-Type: application/json\r\nContent-Length: 35\r\n\r\n\
    {\"message\":\"the runtime is broken\"}\n";

/// A socket behind which the engine is, unless a test has closed it: then connections end at once,
/// those that are there included. Dropping it removes the socket.
#[derive(Debug)]
pub struct EngineProxy {
    dir: TempDir,
    way: watch::Sender<Way>,
    _server: JoinSet<()>,
}

/// What is let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    Closed,
    /// All but the start of a container, which fails.
    NoStart,
}

impl EngineProxy {
    /// A socket to the engine of the local machine, open or closed.
    pub fn start(open: bool) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let listener = UnixListener::bind(dir.path().join("docker.sock"));
        let listener = listener.expect("a new socket can be made");
        let (way, state) = watch::channel(if open { Way::Open } else { Way::Closed });
        let mut server = JoinSet::new();
        server.spawn(serve(listener, state));
        Self {
            dir,
            way,
            _server: server,
        }
    }

    /// The value for `DOCKER_HOST`.
    pub fn docker_host(&self) -> String {
        format!("unix://{}/docker.sock", self.dir.path().display())
    }

    /// Lets connections through from now on.
    pub fn open(&self) {
        self.way.send_replace(Way::Open);
    }

    /// Ends all connections, and new ones at once.
    pub fn close(&self) {
        self.way.send_replace(Way::Closed);
    }

    /// Ends all connections; over new ones the engine seems to fail to start containers.
    pub fn let_no_container_start(&self) {
        self.way.send_replace(Way::NoStart);
    }
}

async fn serve(listener: UnixListener, state: watch::Receiver<Way>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let mut state = state.clone();
                let way = *state.borrow_and_update();
                if way != Way::Closed {
                    connections.spawn(pass_on(client, way, state));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Until one side ends the connection, or the test does.
async fn pass_on(
    mut client: UnixStream,
    way: Way,
    mut state: watch::Receiver<Way>,
) -> io::Result<()> {
    let mut engine = UnixStream::connect(engine_socket()).await?;
    let passing = async {
        match way {
            Way::NoStart => Box::pin(pass_on_but_starts(&mut client, &mut engine)).await,
            Way::Open | Way::Closed => copy_bidirectional(&mut client, &mut engine).await.map(drop),
        }
    };
    tokio::select! {
        done = passing => done,
        _ = state.changed() => Ok(()),
    }
}

/// Answers the request to start a container itself. It is small enough to come in one piece.
async fn pass_on_but_starts(client: &mut UnixStream, engine: &mut UnixStream) -> io::Result<()> {
    let (mut asked, mut answered) = ([0; CHUNK_BYTES], [0; CHUNK_BYTES]);
    loop {
        tokio::select! {
            length = client.read(&mut asked) => match &asked[..length?] {
                [] => return Ok(()),
                request if is_start(request) => client.write_all(CANNOT_START).await?,
                request => engine.write_all(request).await?,
            },
            length = engine.read(&mut answered) => match &answered[..length?] {
                [] => return Ok(()),
                answer => client.write_all(answer).await?,
            },
        }
    }
}

fn is_start(request: &[u8]) -> bool {
    let line = request.split(|byte| *byte == b'\r').next();
    let line = String::from_utf8_lossy(line.unwrap_or_default());
    line.starts_with("POST ") && line.contains("/start ")
}

fn engine_socket() -> PathBuf {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    let socket = host.strip_prefix("unix://");
    socket.unwrap_or("/var/run/docker.sock").into()
}
