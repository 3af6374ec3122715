//! The hooks' way to the suite: they say how far they are, and wait to be let on.
//!
//! What they said is the count outside that no worker and no engine can change: it is taken on a
//! socket in the engine's network, by this process.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use harness::PrivateEngine;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

const PORT: u16 = 7;

/// How many lines a hook writes that runs to its end.
const LINES: usize = 4000;

/// How far a hook is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mark {
    /// It has begun.
    Began,
    /// It has written half of its output.
    Halfway,
    /// It has written all of it.
    Ended,
}

/// What the hooks of all builds said.
#[derive(Debug)]
pub(crate) struct Hooks {
    address: SocketAddr,
    said: watch::Sender<HashMap<(String, Mark), usize>>,
    held: watch::Sender<HashSet<String>>,
    _server: JoinSet<()>,
}

impl Hooks {
    /// Listens in the network of this engine.
    pub(crate) fn on(engine: &PrivateEngine) -> Self {
        let (listener, address) = engine.listen(PORT);
        let said = watch::Sender::default();
        let held = watch::Sender::default();
        let mut server = JoinSet::new();
        server.spawn(serve(listener, said.clone(), held.clone()));
        Self {
            address,
            said,
            held,
            _server: server,
        }
    }

    /// The hook: of a commit that holds the file `exit`, with its exit code. It needs bash.
    pub(crate) fn script(&self) -> String {
        let SocketAddr::V4(address) = self.address else {
            panic!("the engine's network is one of IPv4")
        };
        let (host, port) = (address.ip(), address.port());
        let half = LINES / 2;
        let rest = half + 1;
        let script = format!(
            "exec 3<>/dev/tcp/{host}/{port}
            say() {{ echo $commit $1 >&3; read -r _ <&3; }}
            say Began; seq 1 {half}; say Halfway; seq {rest} {LINES}; say Ended
            exit $(cat exit)"
        );
        format!("exec bash -c '{script}'")
    }

    /// What a hook writes that runs to its end.
    pub(crate) fn whole_log() -> String {
        (1..=LINES).map(|line| format!("{line}\n")).collect()
    }

    /// How often the hook of this commit said this.
    pub(crate) fn count(&self, commit: &str, mark: Mark) -> usize {
        let said = self.said.borrow();
        said.get(&(commit.to_owned(), mark)).copied().unwrap_or(0)
    }

    /// Lets the hook of this commit wait halfway.
    pub(crate) fn hold(&self, commit: &str) {
        self.held.send_modify(|held| {
            held.insert(commit.to_owned());
        });
    }

    /// Lets it on.
    pub(crate) fn release(&self, commit: &str) {
        self.held.send_modify(|held| {
            held.remove(commit);
        });
    }

    /// Waits until the hook of this commit has said this.
    ///
    /// # Panics
    /// After `deadline`.
    pub(crate) async fn wait_for(&self, commit: &str, mark: Mark, deadline: Duration) {
        let key = (commit.to_owned(), mark);
        let mut said = self.said.subscribe();
        let waited = said.wait_for(|said| said.contains_key(&key));
        let in_time = tokio::time::timeout(deadline, waited).await.is_ok();
        assert!(
            in_time,
            "the hook of {commit} has not {mark:?} in {deadline:?}"
        );
    }
}

type Said = watch::Sender<HashMap<(String, Mark), usize>>;
type Held = watch::Sender<HashSet<String>>;

async fn serve(listener: TcpListener, said: Said, held: Held) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((connection, _)) = listener.accept() => {
                connections.spawn(listen_to(connection, said.clone(), held.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Until the hook ends the connection, which it does by ending.
async fn listen_to(mut hook: TcpStream, said: Said, held: Held) -> io::Result<()> {
    let (from_hook, mut to_hook) = hook.split();
    let mut lines = BufReader::new(from_hook).lines();
    while let Some(line) = lines.next_line().await? {
        let Some((commit, mark)) = parse(&line) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, line));
        };
        said.send_modify(|said| *said.entry((commit.clone(), mark)).or_default() += 1);
        if mark == Mark::Halfway {
            let let_on = |held: &HashSet<String>| !held.contains(&commit);
            let _ = held.subscribe().wait_for(let_on).await;
        }
        to_hook.write_all(b"\n").await?;
    }
    Ok(())
}

fn parse(line: &str) -> Option<(String, Mark)> {
    let (commit, mark) = line.split_once(' ')?;
    let marks = [Mark::Began, Mark::Halfway, Mark::Ended];
    let mark = marks.into_iter().find(|one| format!("{one:?}") == mark)?;
    Some((commit.to_owned(), mark))
}
