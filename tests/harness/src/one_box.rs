//! The product as its user runs it: the process `compose-ci serve`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Mutex;
use std::time::Duration;

use http::HeaderMap;
use reqwest::{Certificate, Client};
use serde_json::Value;
use tempfile::TempDir;
use uuid::Uuid;

use crate::certificates::Certificates;
use crate::engine::test_image;
use crate::github::{CommitState, GitHub};
use crate::payload::sign;
use crate::process::{Process, listening_address};

/// The webhook secret of the tests' service.
pub const WEBHOOK_SECRET: &str = "the webhook secret of the tests";

/// How long the service may take until it listens.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// How long a service may clean up after its last build when its test is over.
const CLEAN_UP_GRACE: Duration = Duration::from_secs(5);

/// How long one request of a test may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Variables whose values must never stand in the service's log.
const SECRETS: [&str; 4] = [
    "GITHUB_TOKEN",
    "WEBHOOK_SECRET",
    "SMTP_PASS",
    "REGISTRY_PASS",
];

/// Variables that reach the service from the environment of the tests, when they are set.
const PASSED_ON: [&str; 4] = [
    "PATH",
    "DOCKER_HOST",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
];

/// How a service is started: a complete environment that a test changes.
#[derive(Debug)]
pub struct Setup {
    binary: PathBuf,
    github: GitHub,
    env: BTreeMap<String, String>,
    data_dir: TempDir,
    authority: Option<PathBuf>,
}

/// A running service.
///
/// Dropping it kills it, and fails the test if a push that it accepted has no final status,
/// or if a secret stands in its log. When the test fails for another reason, the log and the
/// statuses are printed.
#[derive(Debug)]
pub struct OneBox {
    setup: Setup,
    process: Process,
    address: SocketAddr,
    client: Client,
    /// What processes before a [`OneBox::start_again`] printed.
    earlier_log: String,
    /// The commits whose push was answered with 202.
    accepted: Mutex<Vec<String>>,
    may_leave_unfinished: bool,
}

/// The service's answer to a request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status code.
    pub code: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, which every answer has as text.
    pub body: String,
}

impl Answer {
    /// The build's id that a 202 tells.
    ///
    /// # Panics
    /// When the answer is anything but `202` with an id and a line's end.
    pub fn build_id(&self) -> String {
        assert_eq!(self.code, 202, "{}", self.body);
        let id = self
            .body
            .strip_suffix('\n')
            .and_then(|id| Uuid::try_parse(id).ok());
        id.unwrap_or_else(|| panic!("{:?} is not a build's id and a line's end", self.body))
            .to_string()
    }
}

impl Setup {
    /// A service for `repo` on this GitHub, whose hook succeeds at once.
    ///
    /// `binary` is `env!("CARGO_BIN_EXE_compose-ci")`, which only the tests' own package knows.
    pub fn new(binary: impl Into<PathBuf>, github: &GitHub, repo: &str) -> Self {
        let data_dir = tempfile::tempdir().expect("a temporary directory can be made");
        let setup = Self {
            binary: binary.into(),
            github: github.clone(),
            env: passed_on(),
            data_dir,
            authority: None,
        };
        let data_dir = setup.data_dir.path().display().to_string();
        setup
            .env("BIND", "127.0.0.1")
            .env("PORT", "0")
            .env("DATA_DIR", data_dir)
            .env("GITHUB_API_URL", github.url())
            .env("GITHUB_TOKEN", github.token())
            .env("GITHUB_REPO", repo)
            .env("WEBHOOK_SECRET", WEBHOOK_SECRET)
            .env("BUILD_IMAGE", test_image())
            .env("HOOK", "true")
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Removes a variable.
    pub fn without(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    /// Serves HTTPS with this certificate, and trusts its authority.
    pub fn https(mut self, certificates: &Certificates) -> Self {
        self.authority = Some(certificates.ca());
        self.env(
            "CERT_PATH",
            certificates.key_and_certificate().display().to_string(),
        )
    }

    /// Starts the service and waits until it listens.
    ///
    /// # Panics
    /// When it doesn't, with its log.
    pub async fn start(self) -> OneBox {
        let (process, address) = self.launch().await;
        OneBox {
            client: client(self.authority.as_deref()),
            setup: self,
            process,
            address,
            earlier_log: String::new(),
            accepted: Mutex::default(),
            may_leave_unfinished: false,
        }
    }

    /// The program with this environment and these arguments, for tests of other subcommands
    /// and of a service that must not start.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env_clear().envs(&self.env);
        command
    }

    async fn launch(&self) -> (Process, SocketAddr) {
        let process = Process::start(self.command(&["serve"]));
        let address = process
            .wait_for_output(listening_address, START_DEADLINE)
            .await;
        (process, address)
    }
}

impl OneBox {
    /// Delivers a push as GitHub does, under a new delivery id.
    pub async fn push(&self, payload: &Value) -> Answer {
        self.deliver("push", &Uuid::new_v4().to_string(), payload)
            .await
    }

    /// Delivers an event as GitHub does: signed with the first `WEBHOOK_SECRET`, or with the
    /// token in the URL when there is none.
    pub async fn deliver(&self, event: &str, delivery: &str, payload: &Value) -> Answer {
        let body = payload.to_string();
        let mut headers = vec![
            ("content-type", "application/json".to_owned()),
            ("user-agent", "GitHub-Hookshot/044aadd".to_owned()),
            ("x-github-event", event.to_owned()),
            ("x-github-delivery", delivery.to_owned()),
        ];
        let mut path = "/".to_owned();
        match self.setup.env.get("WEBHOOK_SECRET") {
            Some(secrets) => {
                let newest = secrets.split(',').next().unwrap_or_default();
                headers.push(("x-hub-signature-256", sign(newest, body.as_bytes())));
            }
            None => path = format!("/?token={}", self.setup.github.token()),
        }
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        self.post(&path, &headers, body).await
    }

    /// Posts anything.
    pub async fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Vec<u8>>,
    ) -> Answer {
        let body = body.into();
        let mut request = self.client.post(self.url(path)).body(body.clone());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = answer(request).await;
        if answer.code == 202 {
            self.expect_final_status(&body);
        }
        answer
    }

    /// Gets a page.
    pub async fn get(&self, path: &str) -> Answer {
        answer(self.client.get(self.url(path))).await
    }

    /// The address of a page.
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.setup.authority.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}{path}", self.address)
    }

    /// Where the service keeps its state; it survives [`OneBox::start_again`].
    pub fn data_dir(&self) -> &Path {
        Path::new(&self.setup.env["DATA_DIR"])
    }

    /// The service's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The memory that the service holds, in KiB.
    pub fn rss_kib(&self) -> u64 {
        self.memory_kib("VmRSS:")
    }

    /// The most memory that the service has held, in KiB.
    pub fn peak_rss_kib(&self) -> u64 {
        self.memory_kib("VmHWM:")
    }

    /// What the service has printed since the test began.
    pub fn log(&self) -> String {
        format!("{}{}", self.earlier_log, self.process.output())
    }

    /// Waits until the running process has printed `text`.
    ///
    /// # Panics
    /// After `deadline`, with the log.
    pub async fn wait_for_log(&self, text: &str, deadline: Duration) {
        self.process
            .wait_for_output(|log| log.contains(text).then_some(()), deadline)
            .await;
    }

    /// Waits until the log holds this text so many times.
    ///
    /// # Panics
    /// After `deadline`, with the log.
    pub async fn wait_for_lines(&self, text: &str, count: usize, deadline: Duration) {
        let is_there = |log: &str| (log.matches(text).count() >= count).then_some(());
        self.process.wait_for_output(is_there, deadline).await;
    }

    /// Fails the test if the log holds `secret`.
    ///
    /// # Panics
    /// With the line that holds it.
    pub fn assert_log_lacks(&self, secret: &str) {
        let log = self.log();
        let line = log.lines().find(|line| line.contains(secret));
        assert!(
            line.is_none(),
            "a secret stands in the service's log: {line:?}"
        );
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Panics
    /// After `deadline`, with the log.
    pub async fn stop(&mut self, deadline: Duration) -> ExitStatus {
        self.process.terminate();
        self.process.wait_for_end(deadline).await
    }

    /// Sends SIGTERM and doesn't wait: see [`OneBox::wait_for_end`].
    pub fn terminate(&mut self) {
        self.process.terminate();
    }

    /// Waits until the service has ended.
    ///
    /// # Panics
    /// After `deadline`, with the log.
    pub async fn wait_for_end(&mut self, deadline: Duration) -> ExitStatus {
        self.process.wait_for_end(deadline).await
    }

    /// Sends SIGKILL: the service loses all that it hasn't stored.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the service again on the same data, after [`OneBox::stop`] or [`OneBox::kill`].
    pub async fn start_again(&mut self) {
        self.earlier_log = self.log();
        (self.process, self.address) = self.setup.launch().await;
    }

    /// Lets the test end while accepted builds have no final status.
    pub fn leave_unfinished(&mut self) {
        self.may_leave_unfinished = true;
    }

    /// A manual trigger may name a branch, whose commit only the service will learn.
    fn expect_final_status(&self, body: &[u8]) {
        let payload: Option<Value> = serde_json::from_slice(body).ok();
        let commit = payload.as_ref().and_then(|payload| {
            let head = payload["head_commit"]["id"].as_str();
            head.or(payload["after"].as_str())
        });
        let sha = commit
            .filter(|commit| commit.len() >= 40 && commit.bytes().all(|b| b.is_ascii_hexdigit()));
        let mut accepted = self
            .accepted
            .lock()
            .expect("nobody panics while holding it");
        accepted.extend(sha.map(str::to_owned));
    }

    fn unfinished(&self) -> Vec<String> {
        let accepted = self
            .accepted
            .lock()
            .expect("nobody panics while holding it");
        let is_unfinished = |sha: &&String| {
            matches!(
                self.setup.github.states(sha).last(),
                None | Some(CommitState::Pending)
            )
        };
        accepted.iter().filter(is_unfinished).cloned().collect()
    }

    fn memory_kib(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("the service runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        number.expect("Linux tells it in kB")
    }
}

impl Drop for OneBox {
    fn drop(&mut self) {
        if self.may_leave_unfinished {
            self.process.kill();
        } else {
            // The final status comes before the clean-up, and a test may end in between.
            self.process.end(CLEAN_UP_GRACE);
        }
        if std::thread::panicking() {
            self.tell();
            return;
        }
        for secret in SECRETS.iter().filter_map(|name| self.setup.env.get(*name)) {
            self.assert_log_lacks(secret);
        }
        let unfinished = self.unfinished();
        if !self.may_leave_unfinished && !unfinished.is_empty() {
            self.tell();
            panic!("pushes that were accepted and have no final status: {unfinished:?}");
        }
    }
}

impl OneBox {
    #[expect(
        clippy::print_stderr,
        reason = "a failing test shows what the test runner captured"
    )]
    fn tell(&self) {
        eprintln!("--- the service's log\n{}", self.log());
        eprintln!(
            "--- the statuses\n{}",
            Lines(self.setup.github.all_statuses())
        );
    }
}

struct Lines<T>(Vec<T>);

impl<T: fmt::Debug> fmt::Display for Lines<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|item| writeln!(f, "{item:?}"))
    }
}

fn passed_on() -> BTreeMap<String, String> {
    let set = |name: &&str| Some((String::from(*name), std::env::var(name).ok()?));
    PASSED_ON.iter().filter_map(set).collect()
}

/// A client that trusts this authority, if any, and nobody else.
fn client(authority: Option<&Path>) -> Client {
    // An error says that the process has a provider already, which serves as well.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let authority = authority.map(|path| fs::read(path).expect("the authority's file exists"));
    let authority = authority.map(|pem| Certificate::from_pem(&pem).expect("it is a certificate"));
    let builder = Client::builder()
        .timeout(REQUEST_TIMEOUT)
        .tls_certs_only(authority);
    builder.build().expect("the client's settings are valid")
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.expect("the service answers");
    Answer {
        code: response.status().as_u16(),
        headers: response.headers().clone(),
        body: response.text().await.expect("the answer's body arrives"),
    }
}
