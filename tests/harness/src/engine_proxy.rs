//! A way to the Docker engine that a test can close, or that spoils what goes over it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

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
    requests: Arc<AtomicUsize>,
    spoiled: Arc<AtomicUsize>,
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
    /// All but one answer of so many.
    Spoiled(Flaw, usize),
}

/// What becomes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The request is not carried out: the answer is an error.
    Failed,
    /// The request is carried out, and the connection ends without an answer.
    Lost,
    /// The connection ends within the answer.
    Cut,
    /// The answer comes after this time.
    Late(Duration),
}

impl EngineProxy {
    /// A socket to the engine of the local machine, open or closed.
    pub fn start(open: bool) -> Self {
        let way = if open { Way::Open } else { Way::Closed };
        Self::with(engine_socket(), way)
    }

    /// A socket to the engine at another one, open.
    pub fn to(engine: PathBuf) -> Self {
        Self::with(engine, Way::Open)
    }

    fn with(engine: PathBuf, way: Way) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let listener = UnixListener::bind(dir.path().join("docker.sock"));
        let listener = listener.expect("a new socket can be made");
        let (way, state) = watch::channel(way);
        let (requests, spoiled) = (Arc::default(), Arc::default());
        let link = Link {
            engine,
            requests: Arc::clone(&requests),
            spoiled: Arc::clone(&spoiled),
        };
        let mut server = JoinSet::new();
        server.spawn(serve(listener, link, state));
        Self {
            dir,
            way,
            requests,
            spoiled,
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

    /// Ends all connections; over new ones one answer of so many has a flaw.
    pub fn spoil(&self, flaw: Flaw, every: usize) {
        self.requests.store(0, Ordering::Relaxed);
        self.way.send_replace(Way::Spoiled(flaw, every));
    }

    /// How many answers had a flaw.
    pub fn spoiled(&self) -> usize {
        self.spoiled.load(Ordering::Relaxed)
    }

    /// Ends all connections; over new ones the engine seems to fail to start containers.
    pub fn let_no_container_start(&self) {
        self.way.send_replace(Way::NoStart);
    }
}

/// What the connections share.
#[derive(Debug, Clone)]
struct Link {
    engine: PathBuf,
    requests: Arc<AtomicUsize>,
    spoiled: Arc<AtomicUsize>,
}

impl Link {
    /// The flaw of the next request's answer.
    fn next_flaw(&self, way: Way) -> Option<Flaw> {
        let Way::Spoiled(flaw, every) = way else {
            return None;
        };
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        number.is_multiple_of(every).then(|| {
            self.spoiled.fetch_add(1, Ordering::Relaxed);
            flaw
        })
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

async fn serve(listener: UnixListener, link: Link, state: watch::Receiver<Way>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let mut state = state.clone();
                let way = *state.borrow_and_update();
                if way != Way::Closed {
                    connections.spawn(pass_on(client, link.clone(), way, state));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Until one side ends the connection, or the test does.
async fn pass_on(
    mut client: UnixStream,
    link: Link,
    way: Way,
    mut state: watch::Receiver<Way>,
) -> io::Result<()> {
    let mut engine = UnixStream::connect(&link.engine).await?;
    let passing = async {
        match way {
            Way::NoStart | Way::RepeatedCreation | Way::Spoiled(..) => {
                Box::pin(pass_on_some(way, &link, &mut client, &mut engine)).await
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
    link: &Link,
    client: &mut UnixStream,
    engine: &mut UnixStream,
) -> io::Result<()> {
    let (mut asked, mut answered) = ([0; CHUNK_BYTES], [0; CHUNK_BYTES]);
    let mut flaw = None;
    loop {
        tokio::select! {
            length = client.read(&mut asked) => match &asked[..length?] {
                [] => return Ok(()),
                request => {
                    if begins_request(request) {
                        flaw = link.next_flaw(way);
                    }
                    match (flaw, way.refuses(request)) {
                        (Some(Flaw::Failed), _) => {
                            client.write_all(CANNOT_START).await?;
                            return Ok(());
                        }
                        (_, Some(answer)) => client.write_all(&answer).await?,
                        (_, None) => engine.write_all(request).await?,
                    }
                }
            },
            length = engine.read(&mut answered) => match &answered[..length?] {
                [] => return Ok(()),
                answer => match flaw.take() {
                    Some(Flaw::Lost) => return Ok(()),
                    Some(Flaw::Cut) => {
                        client.write_all(&answer[..answer.len() / 2]).await?;
                        return Ok(());
                    }
                    Some(Flaw::Late(by)) => {
                        sleep(by).await;
                        client.write_all(answer).await?;
                    }
                    Some(Flaw::Failed) | None => client.write_all(answer).await?,
                },
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

fn begins_request(bytes: &[u8]) -> bool {
    let methods: [&[u8]; 5] = [b"GET /", b"HEAD /", b"POST /", b"PUT /", b"DELETE /"];
    methods.iter().any(|method| bytes.starts_with(method))
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
