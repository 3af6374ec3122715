//! A stand-in for GitHub: the part of its API that a CI uses, on real ports.
//!
//! It keeps what it was told, fails on a test's order, and fails the test itself when
//! something was left undone (see [`GitHub`]).

mod record;
mod fault;
mod hosting;
mod hooks;
mod route;
mod answer;
mod server;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::HeaderValue;
use http_body_util::combinators::UnsyncBoxBody;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::answer::Refusal;
use self::fault::Script;
pub use self::fault::{Endpoint, Fault};
pub use self::hooks::{Delivery, Hook};
use self::hooks::{Event, KnownHook};
use self::hosting::{Hosted, Renamed, Way};
use self::record::Record;
pub use self::record::{CommitState, Host, Request, Status};
use crate::tarball::Tarball;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The token that the fake GitHub of a test expects.
pub const TOKEN: &str = "ghp_theTokenOfTheTests";

/// A running stand-in for GitHub; clones are handles to the same one.
///
/// When the last handle is dropped it panics, and so fails the test, if a planned fault was
/// never met (the test did not test what it says) or if the tarball host was sent an
/// `Authorization` header (the token left GitHub).
#[derive(Clone, Debug)]
pub struct GitHub(Arc<Running>);

/// Where a stand-in listens, and whom it serves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The API's address; port 0 takes a free one.
    pub api: SocketAddr,
    /// The tarball host's address; port 0 takes a free one.
    pub codeload: SocketAddr,
    /// How clients reach the tarball host; without it, by the name they call the API by.
    pub codeload_url: Option<String>,
    /// The token that clients must show.
    pub token: String,
}

impl Default for Settings {
    /// Two free ports on loopback, and [`TOKEN`].
    fn default() -> Self {
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            api: anywhere,
            codeload: anywhere,
            codeload_url: None,
            token: TOKEN.to_owned(),
        }
    }
}

impl GitHub {
    /// Starts one for a test.
    pub async fn start() -> Self {
        Self::with(Settings::default())
            .await
            .expect("loopback has free ports")
    }

    /// Starts one with these settings.
    ///
    /// # Errors
    /// When one of the addresses cannot be bound.
    pub async fn with(settings: Settings) -> anyhow::Result<Self> {
        let api = bind(settings.api).await?;
        let codeload = bind(settings.codeload).await?;
        let address = api.local_addr()?;
        let state = Arc::new(State {
            token: settings.token,
            codeload_url: settings.codeload_url,
            codeload_port: codeload.local_addr()?.port(),
            record: watch::Sender::default(),
            content: Mutex::default(),
        });
        let mut servers = JoinSet::new();
        servers.spawn(server::serve(api, Host::Api, Arc::clone(&state)));
        servers.spawn(server::serve(codeload, Host::Codeload, Arc::clone(&state)));
        Ok(Self(Arc::new(Running {
            address,
            state,
            _servers: servers,
        })))
    }

    /// Where the API listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// The value for `GITHUB_API_URL`.
    pub fn url(&self) -> String {
        format!("http://{}", self.0.address)
    }

    /// The value for `GITHUB_TOKEN`.
    pub fn token(&self) -> &str {
        &self.0.state.token
    }

    /// Serves the git repository in `dir` as `owner/name`, as it is at each request.
    pub fn host(&self, repo: &str, dir: impl Into<PathBuf>) {
        self.content()
            .repos
            .entry(repo.to_owned())
            .or_default()
            .serve(dir.into());
    }

    /// Renames a repository: requests with the old name are sent on with this status code, as GitHub
    /// does with 301.
    pub fn rename(&self, old: &str, new: &str, code: u16) {
        let mut content = self.content();
        let hosted = content.repos.remove(old).expect("it is hosted");
        content.repos.insert(new.to_owned(), hosted);
        content.renamed.push(Renamed {
            old: old.to_owned(),
            new: new.to_owned(),
            code,
        });
    }

    /// Adds a commit that no git repository holds; `sha` is 40 hex digits.
    pub fn host_tarball(&self, repo: &str, sha: &str, tarball: Tarball) {
        self.content()
            .repos
            .entry(repo.to_owned())
            .or_default()
            .make_up(sha, tarball);
    }

    /// Creates a webhook of `owner/name` or of an organization, with a secret that signs if there is
    /// one.
    pub fn create_hook(&self, owner: &str, url: &str, secret: Option<&str>) -> Hook {
        let mut content = self.content();
        let id = content.hooks.len() as u64 + 1;
        content.hooks.push(KnownHook {
            id,
            owner: owner.to_owned(),
            url: url.to_owned(),
            secret: secret.map(str::to_owned),
            deliveries: Vec::new(),
        });
        Hook(id)
    }

    /// Delivers an event to a webhook, once, and remembers what came of it.
    pub async fn deliver(&self, hook: Hook, event: &str, payload: &Value) -> Delivery {
        let event = self
            .content()
            .hook(hook, |hook| Event::new(hook, event, payload));
        let delivery = event.deliver().await;
        self.content().note(hook, delivery)
    }

    /// Delivers the same once more, as a person asks GitHub to.
    pub async fn redeliver(&self, hook: Hook, delivery: &Delivery) -> Delivery {
        let event = self
            .content()
            .hook(hook, |hook| Event::again(hook, delivery));
        let delivery = event.deliver().await;
        self.content().note(hook, delivery)
    }

    /// All that was delivered to a webhook, oldest first.
    pub fn deliveries(&self, hook: Hook) -> Vec<Delivery> {
        self.content().hook(hook, |hook| hook.deliveries.clone())
    }

    /// Makes all that was delivered to a webhook so much older.
    pub fn age_deliveries(&self, hook: Hook, by: Duration) {
        let mut content = self.content();
        let known = content.hooks.iter_mut().find(|known| known.id == hook.0);
        for delivery in &mut known.expect("hooks are never removed").deliveries {
            delivery.delivered_at -= by;
        }
    }

    /// Makes the next `count` requests to `endpoint` fail in this way, after those planned before.
    pub fn fail_next(&self, endpoint: Endpoint, count: usize, fault: Fault) {
        self.content().script.plan(endpoint, count, fault);
    }

    /// Forgets the failures of `endpoint` that no request has met.
    pub fn heal(&self, endpoint: Endpoint) {
        self.content().script.forget(endpoint);
    }

    /// Every status that was stored, oldest first.
    pub fn all_statuses(&self) -> Vec<Status> {
        self.0.state.record.borrow().statuses.clone()
    }

    /// The statuses of one commit, oldest first.
    pub fn statuses(&self, sha: &str) -> Vec<Status> {
        self.0.state.record.borrow().of(sha)
    }

    /// The states that one commit went through.
    pub fn states(&self, sha: &str) -> Vec<CommitState> {
        self.statuses(sha)
            .iter()
            .map(|status| status.state)
            .collect()
    }

    /// Every request that arrived, oldest first.
    pub fn requests(&self) -> Vec<Request> {
        self.0.state.record.borrow().requests.clone()
    }

    /// Waits until the statuses of a commit satisfy `enough`, and answers them, oldest first.
    ///
    /// # Panics
    /// After `deadline`, with the statuses that are there.
    pub async fn wait_for_status(
        &self,
        sha: &str,
        enough: impl Fn(&[Status]) -> bool,
        deadline: Duration,
    ) -> Vec<Status> {
        let mut record = self.0.state.record.subscribe();
        let waited = record.wait_for(|record| enough(&record.of(sha)));
        // The result borrows the record, which must be let go of before it is read again.
        let in_time = tokio::time::timeout(deadline, waited).await.is_ok();
        let statuses = self.statuses(sha);
        assert!(
            in_time,
            "the statuses of {sha} are not enough after {deadline:?}: {statuses:#?}"
        );
        statuses
    }

    /// Waits until the newest status of a commit is a final one; answers all of them.
    ///
    /// # Panics
    /// After `deadline`, with the statuses that are there.
    pub async fn wait_for_end(&self, sha: &str, deadline: Duration) -> Vec<Status> {
        let ended = |statuses: &[Status]| {
            statuses
                .last()
                .is_some_and(|newest| newest.state != CommitState::Pending)
        };
        self.wait_for_status(sha, ended, deadline).await
    }

    /// Waits until a request that satisfies `is_it` has arrived, answered or not.
    ///
    /// # Panics
    /// After `deadline`, with the requests that came.
    pub async fn wait_for_request(&self, is_it: impl Fn(&Request) -> bool, deadline: Duration) {
        self.wait_for_requests(1, is_it, deadline).await;
    }

    /// Waits until `count` requests that satisfy `is_it` have arrived, answered or not.
    ///
    /// # Panics
    /// After `deadline`, with the requests that came.
    pub async fn wait_for_requests(
        &self,
        count: usize,
        is_it: impl Fn(&Request) -> bool,
        deadline: Duration,
    ) {
        let mut record = self.0.state.record.subscribe();
        let arrived = |record: &Record| {
            let requests = record.requests.iter();
            requests.filter(|request| is_it(request)).count()
        };
        let waited = record.wait_for(|record| arrived(record) >= count);
        let in_time = tokio::time::timeout(deadline, waited).await.is_ok();
        assert!(
            in_time,
            "not {count} such requests in {deadline:?}: {:#?}",
            self.requests()
        );
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.state.content()
    }
}

#[derive(Debug)]
struct Running {
    address: SocketAddr,
    state: Arc<State>,
    /// Dropped with the last handle, which ends the servers and their connections.
    _servers: JoinSet<Infallible>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let unmet = self.state.content().script.unmet();
        assert!(
            unmet.is_empty(),
            "faults that were planned and never met: {unmet:?}"
        );
        let record = self.state.record.borrow();
        let leaked = record
            .requests
            .iter()
            .find(|request| request.host == Host::Codeload && request.had_authorization);
        assert!(
            leaked.is_none(),
            "the token was sent to the tarball host: {leaked:?}"
        );
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("listening on {address}"))
}

/// What the two servers and the test share.
#[derive(Debug)]
struct State {
    token: String,
    codeload_url: Option<String>,
    codeload_port: u16,
    /// Those who wait for a status or a request watch it.
    record: watch::Sender<Record>,
    content: Mutex<Content>,
}

#[derive(Debug, Default)]
struct Content {
    repos: HashMap<String, Hosted>,
    renamed: Vec<Renamed>,
    /// By their numbers, which begin with 1.
    hooks: Vec<KnownHook>,
    deliveries: u64,
    script: Script,
    /// Tarballs that may be fetched once: token → (`owner/name`, sha).
    downloads: HashMap<String, (String, String)>,
}

impl Content {
    fn hook<T>(&self, hook: Hook, read: impl FnOnce(&KnownHook) -> T) -> T {
        let known = self.hooks.iter().find(|known| known.id == hook.0);
        read(known.expect("hooks are never removed"))
    }

    /// Numbers a delivery and remembers it.
    fn note(&mut self, hook: Hook, mut delivery: Delivery) -> Delivery {
        self.deliveries += 1;
        delivery.id = self.deliveries;
        let known = self.hooks.iter_mut().find(|known| known.id == hook.0);
        let known = known.expect("hooks are never removed");
        known.deliveries.push(delivery.clone());
        delivery
    }
}

impl State {
    fn way(&self, path: &str) -> Way {
        Renamed::way(&self.content().renamed, path)
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().expect("nobody panics while holding it")
    }

    fn take_fault(&self, endpoint: Endpoint) -> Option<Fault> {
        self.content().script.take(endpoint)
    }

    fn resolve(&self, repo: &str, reference: &str) -> Result<Option<String>, Refusal> {
        let content = self.content();
        let hosted = content.repos.get(repo).ok_or_else(Refusal::not_found)?;
        Ok(hosted.resolve(reference))
    }

    fn message(&self, repo: &str, sha: &str) -> Option<String> {
        self.content().repos.get(repo)?.message(sha)
    }

    fn comparison(&self, repo: &str, base: &str, head: &str) -> Option<&'static str> {
        Some(self.content().repos.get(repo)?.comparison(base, head))
    }

    /// The tarball host, for a client that reached the API by this `Host` header.
    fn codeload_url(&self, host: Option<&HeaderValue>) -> String {
        if let Some(url) = &self.codeload_url {
            return url.trim_end_matches('/').to_owned();
        }
        let host = host
            .and_then(|host| host.to_str().ok())
            .unwrap_or("localhost");
        let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
        format!("http://{name}:{}", self.codeload_port)
    }

    fn allow_download(&self, token: String, repo: &str, sha: String) {
        self.content()
            .downloads
            .insert(token, (repo.to_owned(), sha));
    }

    fn take_download(&self, token: &str) -> Option<io::Result<Body>> {
        let mut content = self.content();
        let (repo, sha) = content.downloads.remove(token)?;
        Some(content.repos.get(&repo)?.tarball(&repo, &sha))
    }
}
