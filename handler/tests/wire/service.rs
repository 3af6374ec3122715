//! The webhook as a process would run it, with a queue in a directory of its own.

use std::net::SocketAddr;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::task::JoinHandle;

use compose_ci_handler::limits::Limits;
use compose_ci_handler::server::Server;
use compose_ci_handler::webhook::router_with_limits;
use shared::build::BuildRequest;
use shared::config::{ListenConfig, QueueConfig, WebhookConfig};
use shared::process::shutdown::Shutdown;
use shared::queue::Queue;

use crate::client::{Answer, Client, post};

pub(crate) const TOKEN: &str = "t0ken";
pub(crate) const SECRET: &str = "a secret to everybody";
pub(crate) const CONTEXT: &str = "ci";
pub(crate) const GUID: &str = "72d3162e-cc78-11e3-81ab-4c9367dc0958";
pub(crate) const SHA: &str = "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c";

pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: Shutdown,
    pub(crate) serving: JoinHandle<()>,
    queue: Queue,
    data_dir: tempfile::TempDir,
}

/// What a service is started with.
pub(crate) struct Settings {
    pub(crate) secrets: &'static [&'static str],
    pub(crate) repos: &'static str,
    pub(crate) branches: &'static str,
    pub(crate) limits: Limits,
    pub(crate) listen: ListenConfig,
    /// Pages beside the webhook.
    pub(crate) pages: axum::Router,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            secrets: &[SECRET],
            repos: "octo/hello,corp/*",
            branches: "*",
            limits: Limits::default(),
            listen: ListenConfig {
                address: SocketAddr::from(([127, 0, 0, 1], 0)),
                cert_path: None,
            },
            pages: axum::Router::new(),
        }
    }
}

impl Service {
    /// With an HMAC secret, as DESIGN recommends it.
    pub(crate) async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    /// With the token only, as the first compose-ci was.
    pub(crate) async fn start_as_the_seed() -> Self {
        Self::with(Settings {
            secrets: &[],
            repos: "octo/hello",
            ..Settings::default()
        })
        .await
    }

    pub(crate) async fn with_limits(limits: Limits) -> Self {
        Self::with(Settings {
            limits,
            ..Settings::default()
        })
        .await
    }

    pub(crate) async fn with(settings: Settings) -> Self {
        let data_dir = tempfile::tempdir().unwrap();
        let queue = Queue::open(&QueueConfig::Local {
            data_dir: data_dir.path().to_owned(),
        })
        .await
        .unwrap();
        let webhook = WebhookConfig {
            token: Some(TOKEN.into()),
            secrets: settings
                .secrets
                .iter()
                .map(|&secret| secret.into())
                .collect(),
            repos: settings.repos.parse().unwrap(),
            branches: settings.branches.parse().unwrap(),
            status_context: CONTEXT.to_owned(),
        };
        let router = router_with_limits(&webhook, queue.clone(), &settings.limits);
        let server = Server::bind(&settings.listen)
            .await
            .unwrap()
            .with_limits(settings.limits);
        let address = server.local_addr();
        let shutdown = Shutdown::default();
        let watched = shutdown.clone();
        let serving = tokio::spawn(async move {
            server.serve(router.merge(settings.pages), &watched).await;
        });
        Self {
            address,
            shutdown,
            serving,
            queue,
            data_dir,
        }
    }

    pub(crate) async fn connect(&self) -> Client<tokio::net::TcpStream> {
        Client::connect(self.address).await
    }

    pub(crate) async fn answer(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut client = self.connect().await;
        client.send(request).await;
        client.answer().await
    }

    /// Keeps the queue from storing anything until the connection is dropped.
    pub(crate) fn lock_queue(&self) -> rusqlite::Connection {
        let connection = rusqlite::Connection::open(self.data_dir.path().join("queue.db")).unwrap();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        connection
    }

    /// What was queued, each once.
    pub(crate) async fn queued(&self) -> Vec<BuildRequest> {
        let deliveries = self.queue.receive(10, Duration::ZERO).await.unwrap();
        let messages = deliveries
            .into_iter()
            .map(|delivery| delivery.message.unwrap());
        messages.map(|message| message.into_request()).collect()
    }
}

/// A delivery of GitHub, signed with the service's secret.
pub(crate) fn delivery(event: &str, body: &str) -> String {
    let signature = sign(SECRET, body);
    let headers = [
        ("content-type", "application/json"),
        ("x-github-event", event),
        ("x-github-delivery", GUID),
        ("x-hub-signature-256", &signature),
    ];
    post("/", &headers, body)
}

pub(crate) fn sign(secret: &str, body: &str) -> String {
    let mut hmac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    hmac.update(body.as_bytes());
    let digest = hmac.finalize().into_bytes();
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={digits}")
}

/// The payload of a push of [`SHA`] to octo/hello.
pub(crate) fn push(git_ref: &str, message: &str) -> String {
    serde_json::json!({
        "ref": git_ref,
        "after": SHA,
        "deleted": false,
        "repository": {"full_name": "octo/hello"},
        "head_commit": {"id": SHA, "message": message},
    })
    .to_string()
}
