//! A network that fails as a test wants: it stands between the service and what it depends on.

use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// What goes wrong with every connection for as long as it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkFault {
    /// Every piece that is passed on comes this much later.
    Latency(Duration),
    /// Connections end without a farewell (RST, where there is one), new ones at once.
    Reset,
    /// Connections are made, and nothing comes through them any more, not even later.
    BlackHole,
    /// Nothing comes through until it heals, as from a process that was stopped.
    Stall,
    /// So many bytes a second, both ways.
    Slow(u32),
    /// The other side's answer ends after so many bytes, as if it were complete.
    Cut(usize),
    /// Nobody listens.
    Refuse,
}

/// Where a proxy leads to.
#[derive(Clone, Debug)]
pub enum Upstream {
    /// An address of TCP.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// Something to connect to that leads elsewhere, over the same kind of socket. Dropping it ends
/// its connections.
#[derive(Debug)]
pub struct FaultProxy {
    entrance: Upstream,
    fault: watch::Sender<Option<NetworkFault>>,
    _server: JoinSet<io::Result<()>>,
    /// Of the socket, where the entrance is one.
    _dir: TempDir,
}

/// A socket that can be closed without a farewell.
trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    fn reset_when_dropped(&self);
}

/// What connections come in by.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// How much is passed on at a time.
const CHUNK_BYTES: usize = 16 << 10;
/// What is slow goes in so many pieces a second.
const SLOW_PIECES: u32 = 20;

type State = watch::Receiver<Option<NetworkFault>>;

impl FaultProxy {
    /// A way to `upstream` on which nothing goes wrong yet.
    ///
    /// # Panics
    /// When no socket can be made.
    pub async fn to(upstream: Upstream) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let entrance = match upstream {
            Upstream::Tcp(_) => Upstream::Tcp((Ipv4Addr::LOCALHOST, 0).into()),
            Upstream::Unix(_) => Upstream::Unix(dir.path().join("proxy.sock")),
        };
        let listener = Listener::at(&entrance).await;
        let listener = listener.expect("a socket can be made");
        let entrance = listener.address().unwrap_or(entrance);
        let (fault, state) = watch::channel(None);
        let mut server = JoinSet::new();
        server.spawn(serve(listener, entrance.clone(), upstream, state));
        Self {
            entrance,
            fault,
            _server: server,
            _dir: dir,
        }
    }

    /// The address to connect to.
    ///
    /// # Panics
    /// When it leads to a Unix socket.
    pub fn address(&self) -> SocketAddr {
        match &self.entrance {
            Upstream::Tcp(address) => *address,
            Upstream::Unix(path) => panic!("{} has no address", path.display()),
        }
    }

    /// What to connect to: a URL of HTTP, or that of a socket as `DOCKER_HOST` takes it.
    pub fn url(&self) -> String {
        match &self.entrance {
            Upstream::Tcp(address) => format!("http://{address}"),
            Upstream::Unix(path) => format!("unix://{}", path.display()),
        }
    }

    /// Lets this go wrong from now on, on the connections that are there as well.
    pub fn fail(&self, fault: NetworkFault) {
        self.fault.send_replace(Some(fault));
    }

    /// Lets new connections pass, and those that still live.
    pub fn heal(&self) {
        self.fault.send_replace(None);
    }
}

async fn serve(
    mut listener: Listener,
    entrance: Upstream,
    upstream: Upstream,
    state: State,
) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = becomes(state.clone(), is_refusal) => {
                drop(listener);
                becomes(state.clone(), |fault| !is_refusal(fault)).await;
                listener = Listener::at(&entrance).await?;
            }
            connection = listener.connection(&upstream, state.clone()) => {
                connections.spawn(connection?);
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

impl Listener {
    async fn at(entrance: &Upstream) -> io::Result<Self> {
        match entrance {
            Upstream::Tcp(address) => Ok(Self::Tcp(TcpListener::bind(address).await?)),
            Upstream::Unix(path) => {
                remove_if_there(path)?;
                Ok(Self::Unix(UnixListener::bind(path)?))
            }
        }
    }

    /// Where it listens, if that is not a path.
    fn address(&self) -> Option<Upstream> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok().map(Upstream::Tcp),
            Self::Unix(_) => None,
        }
    }

    /// Waits for the next connection; what is answered is to be run.
    async fn connection(
        &self,
        upstream: &Upstream,
        state: State,
    ) -> io::Result<BoxFuture<'static, io::Result<()>>> {
        Ok(match (self, upstream.clone()) {
            (Self::Tcp(listener), Upstream::Tcp(address)) => {
                let (client, _) = listener.accept().await?;
                pass_on(client, TcpStream::connect(address), state).boxed()
            }
            (Self::Unix(listener), Upstream::Unix(path)) => {
                let (client, _) = listener.accept().await?;
                pass_on(client, UnixStream::connect(path), state).boxed()
            }
            _ => unreachable!("both sides of a proxy are of one kind"),
        })
    }
}

/// Until both sides have ended the connection, or a fault does.
async fn pass_on<S: Socket>(
    mut client: S,
    server: impl Future<Output = io::Result<S>>,
    state: State,
) -> io::Result<()> {
    let fatal = becomes(state.clone(), is_fatal);
    let fault = {
        let connected = async {
            let mut server = server.await?;
            relay(&mut client, &mut server, &state).await
        };
        tokio::select! {
            biased;
            fault = fatal => fault,
            ended = connected => return ended,
        }
    };
    match fault {
        Some(NetworkFault::BlackHole) => swallow(&mut client).await,
        _ => client.reset_when_dropped(),
    }
    Ok(())
}

/// Waits until the fault is such a one.
async fn becomes(
    mut state: State,
    such: impl Fn(&Option<NetworkFault>) -> bool,
) -> Option<NetworkFault> {
    let fault = state.wait_for(such).await.map(|fault| *fault);
    match fault {
        Ok(fault) => fault,
        Err(_dropped) => pending().await,
    }
}

fn is_refusal(fault: &Option<NetworkFault>) -> bool {
    *fault == Some(NetworkFault::Refuse)
}

/// Whether no connection survives this.
fn is_fatal(fault: &Option<NetworkFault>) -> bool {
    use NetworkFault::{BlackHole, Refuse, Reset};
    matches!(fault, Some(Reset | BlackHole | Refuse))
}

async fn relay<S: Socket>(client: &mut S, server: &mut S, state: &State) -> io::Result<()> {
    let (from_client, to_client) = tokio::io::split(client);
    let (from_server, to_server) = tokio::io::split(server);
    let request = forward(from_client, to_server, state.clone(), usize::MAX);
    let answer = forward(from_server, to_client, state.clone(), 0);
    tokio::try_join!(request, answer).map(drop)
}

/// Passes on what comes; `spared_bytes` more than a cut would let through.
async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    state: State,
    spared_bytes: usize,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut since_cut = 0usize;
    loop {
        let room = match *state.borrow() {
            Some(NetworkFault::Slow(bytes_per_s)) => (bytes_per_s / SLOW_PIECES).max(1) as usize,
            _ => CHUNK_BYTES,
        };
        let mut read = from.read(&mut buffer[..room.min(CHUNK_BYTES)]).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        let fault = *state.borrow();
        match fault {
            Some(NetworkFault::Stall) => {
                let healed = |fault: &Option<_>| *fault != Some(NetworkFault::Stall);
                becomes(state.clone(), healed).await;
            }
            Some(NetworkFault::Latency(time)) => sleep(time).await,
            Some(NetworkFault::Slow(_)) => sleep(Duration::from_secs(1) / SLOW_PIECES).await,
            Some(NetworkFault::Cut(limit)) => {
                read = read.min(limit.saturating_add(spared_bytes) - since_cut);
                since_cut += read;
            }
            _ => since_cut = 0,
        }
        to.write_all(&buffer[..read]).await?;
        if let Some(NetworkFault::Cut(limit)) = fault
            && since_cut == limit.saturating_add(spared_bytes)
        {
            to.shutdown().await?;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
    }
}

/// Takes what comes until the other side gives up, and answers nothing.
async fn swallow(client: &mut impl Socket) {
    if tokio::io::copy(client, &mut tokio::io::sink())
        .await
        .is_err()
    {
        pending::<()>().await;
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Socket for TcpStream {
    fn reset_when_dropped(&self) {
        // If it fails, the connection has ended already.
        self.set_zero_linger().ok();
    }
}

impl Socket for UnixStream {
    /// It ends at once in any case.
    fn reset_when_dropped(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each byte with another one, and the way to it.
    async fn echo() -> (FaultProxy, JoinSet<io::Result<u64>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut connection, _) = listener.accept().await?;
                connections.spawn(async move {
                    let (mut from, mut to) = connection.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        (FaultProxy::to(Upstream::Tcp(address)).await, server)
    }

    async fn answer_to(connection: &mut TcpStream, sent: &[u8]) -> io::Result<Vec<u8>> {
        connection.write_all(sent).await?;
        let mut received = vec![0; sent.len()];
        connection.read_exact(&mut received).await?;
        Ok(received)
    }

    #[tokio::test]
    async fn what_is_delayed_or_slowed_down_arrives_whole() {
        let (proxy, _server) = echo().await;
        let mut connection = TcpStream::connect(proxy.address())
            .await
            .expect("connected");
        for fault in [
            NetworkFault::Latency(Duration::from_millis(20)),
            NetworkFault::Slow(100),
        ] {
            proxy.fail(fault);
            let answer = answer_to(&mut connection, b"0123456789").await;
            assert_eq!(answer.expect("an answer"), b"0123456789");
        }
    }

    #[tokio::test]
    async fn what_is_stalled_arrives_when_it_heals() {
        let (proxy, _server) = echo().await;
        let mut connection = TcpStream::connect(proxy.address())
            .await
            .expect("connected");
        proxy.fail(NetworkFault::Stall);
        let silence = Duration::from_millis(200);
        let mut answered = Box::pin(answer_to(&mut connection, b"x"));
        assert!(tokio::time::timeout(silence, &mut answered).await.is_err());
        proxy.heal();
        assert_eq!(answered.await.expect("an answer"), b"x");
    }

    #[tokio::test]
    async fn an_answer_is_cut_where_the_test_says() {
        let (proxy, _server) = echo().await;
        proxy.fail(NetworkFault::Cut(4));
        let mut connection = TcpStream::connect(proxy.address())
            .await
            .expect("connected");
        connection.write_all(b"0123456789").await.expect("sent");
        let mut received = Vec::new();
        connection.read_to_end(&mut received).await.expect("an end");
        assert_eq!(received, b"0123");
    }

    #[tokio::test]
    async fn connections_are_reset_and_refused_until_it_heals() {
        let (proxy, _server) = echo().await;
        let mut connection = TcpStream::connect(proxy.address())
            .await
            .expect("connected");
        answer_to(&mut connection, b"x").await.expect("an answer");
        proxy.fail(NetworkFault::Reset);
        let error = connection.read_u8().await.expect_err("no end");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

        proxy.fail(NetworkFault::Refuse);
        let refused = async {
            while TcpStream::connect(proxy.address()).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        refused.await;
        proxy.heal();
        let healed = async {
            loop {
                if let Ok(connection) = TcpStream::connect(proxy.address()).await {
                    return connection;
                }
                tokio::task::yield_now().await;
            }
        };
        let answer = answer_to(&mut healed.await, b"x").await;
        assert_eq!(answer.expect("an answer"), b"x");
    }

    #[tokio::test]
    async fn what_fell_into_a_black_hole_does_not_come_back() {
        let (proxy, _server) = echo().await;
        proxy.fail(NetworkFault::BlackHole);
        let mut lost = TcpStream::connect(proxy.address())
            .await
            .expect("connected");
        let silence = Duration::from_millis(200);
        let answer = tokio::time::timeout(silence, answer_to(&mut lost, b"x")).await;
        assert!(answer.is_err(), "{answer:?}");
        proxy.heal();
        let mut new = TcpStream::connect(proxy.address())
            .await
            .expect("connected");
        answer_to(&mut new, b"x").await.expect("an answer");
        let answer = tokio::time::timeout(silence, lost.read_u8()).await;
        assert!(answer.is_err(), "{answer:?}");
    }
}
