//! A way to the Docker engine that a test can close, or let no container start.

use std::io;
use std::path::PathBuf;

use serde_json::json;
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
    /// All but the creation of a container, which is refused with the request's own words.
    RepeatedCreation,
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

    /// Ends all connections; over new ones the engine seems to refuse all containers, in the words of the
    /// request.
    pub fn repeat_creations(&self) {
        self.way.send_replace(Way::RepeatedCreation);
    }

    /// Ends all connections; over new ones the engine seems to fail to start containers.
    pub fn let_no_container_start(&self) {
        self.way.send_replace(Way::NoStart);
    }
}

impl Way {
    /// The engine's answer to a request that is not let through.
    fn refuses(self, request: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::NoStart if is_to(request, "/start ") => Some(CANNOT_START.to_vec()),
            Self::RepeatedCreation if is_to(request, "/containers/create") => {
                Some(repeated(request))
            }
            _ => None,
        }
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
            Way::NoStart | Way::RepeatedCreation => {
                Box::pin(pass_on_some(way, &mut client, &mut engine)).await
            }
            Way::Open | Way::Closed => copy_bidirectional(&mut client, &mut engine).await.map(drop),
        }
    };
    tokio::select! {
        done = passing => done,
        _ = state.changed() => Ok(()),
    }
}

/// Answers some requests itself. They are small enough to come in one piece.
async fn pass_on_some(
    way: Way,
    client: &mut UnixStream,
    engine: &mut UnixStream,
) -> io::Result<()> {
    let (mut asked, mut answered) = ([0; CHUNK_BYTES], [0; CHUNK_BYTES]);
    loop {
        tokio::select! {
            length = client.read(&mut asked) => match &asked[..length?] {
                [] => return Ok(()),
                request => match way.refuses(request) {
                    Some(answer) => client.write_all(&answer).await?,
                    None => engine.write_all(request).await?,
                },
            },
            length = engine.read(&mut answered) => match &answered[..length?] {
                [] => return Ok(()),
                answer => client.write_all(answer).await?,
            },
        }
    }
}

fn repeated(request: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(request);
    let (_, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    let body = json!({ "message": format!("invalid settings: {body}") }).to_string();
    let head = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length:";
    format!("{head} {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn is_to(request: &[u8], path: &str) -> bool {
    let line = request.split(|byte| *byte == b'\r').next();
    let line = String::from_utf8_lossy(line.unwrap_or_default());
    line.starts_with("POST ") && line.contains(path)
}

fn engine_socket() -> PathBuf {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    let socket = host.strip_prefix("unix://");
    socket.unwrap_or("/var/run/docker.sock").into()
}
