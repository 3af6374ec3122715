//! What `tests/bench/lambda` measures one cold start with: a function, a Lambda for it, and an SQS
//! over TLS that takes every message. Prints one line of numbers, which [`Figures`] names.

use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use clap::Parser;
use compose_ci_harness::{Certificates, LambdaHandler, Push, sign};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use uuid::Uuid;

const REPO: &str = "bench/app";
const SECRET: &str = "the-secret-of-the-benchmark";

/// Starts a function once, and lets it handle pushes
#[derive(Parser)]
struct Command {
    /// The function's program.
    bootstrap: PathBuf,

    /// How many invocations there are after the first one.
    #[arg(long, default_value_t = 20)]
    warm: u32,
}

/// In the order in which they are printed; those of warm invocations are means. Times of the CPU
/// are those of all threads, in user and system.
#[derive(Default)]
struct Figures {
    ready_cpu: Duration,
    first_cpu: Duration,
    warm_cpu: Duration,
    ready: Duration,
    first: Duration,
    warm: Duration,
    peak_rss_kib: u64,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "tests/bench/lambda reads it there")]
async fn main() -> anyhow::Result<()> {
    println!("{}", Command::parse().run().await?);
    Ok(())
}

impl Command {
    async fn run(&self) -> anyhow::Result<Figures> {
        let sqs = Sqs::start().await?;
        let began = Instant::now();
        let mut function = LambdaHandler::start(&self.bootstrap, sqs.variables()).await;
        let mut figures = Figures {
            ready: began.elapsed(),
            ready_cpu: cpu_time(function.pid())?,
            ..Figures::default()
        };
        (figures.first, figures.first_cpu) = invoke(&mut function).await?;
        for _ in 0..self.warm {
            let (time, cpu) = invoke(&mut function).await?;
            figures.warm += time / self.warm;
            figures.warm_cpu += cpu / self.warm;
        }
        figures.peak_rss_kib = peak_rss_kib(function.pid())?;
        Ok(figures)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = [
            self.ready_cpu,
            self.first_cpu,
            self.warm_cpu,
            self.ready,
            self.first,
            self.warm,
        ];
        for time in times {
            write!(f, "{:.3} ", time.as_secs_f64() * 1e3)?;
        }
        write!(f, "{}", self.peak_rss_kib)
    }
}

/// One push, and what it takes until the function asks for the next event.
async fn invoke(function: &mut LambdaHandler) -> anyhow::Result<(Duration, Duration)> {
    let event = event();
    let cpu_before = cpu_time(function.pid())?;
    let began = Instant::now();
    let response = function.invoke(&event).await;
    let time = began.elapsed();
    let cpu = cpu_time(function.pid())? - cpu_before;
    let status = response["statusCode"].as_u64();
    anyhow::ensure!(status < Some(300), "{response}\n{}", function.output());
    Ok((time, cpu))
}

/// A push as an HTTP API of API Gateway passes it on.
fn event() -> Value {
    let push = Push {
        repo: REPO,
        reference: "refs/heads/main",
        after: "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c",
        message: "A commit to build",
    };
    let body = push.payload().to_string();
    let host = "bench.execute-api.eu-west-1.amazonaws.com";
    json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/",
        "rawQueryString": "",
        "headers": {
            "accept": "*/*",
            "content-length": body.len().to_string(),
            "content-type": "application/json",
            "host": host,
            "user-agent": "GitHub-Hookshot/0000000",
            "x-amzn-trace-id": "Root=1-00000000-000000000000000000000000",
            "x-forwarded-for": "192.0.2.1",
            "x-forwarded-port": "443",
            "x-forwarded-proto": "https",
            "x-github-delivery": Uuid::new_v4().to_string(),
            "x-github-event": "push",
            "x-github-hook-id": "1",
            "x-hub-signature-256": sign(SECRET, body.as_bytes()),
        },
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "bench",
            "domainName": host,
            "domainPrefix": "bench",
            "http": {
                "method": "POST",
                "path": "/",
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": "GitHub-Hookshot/0000000",
            },
            "requestId": "bench",
            "routeKey": "$default",
            "stage": "$default",
            "time": "22/Nov/2026:12:00:00 +0000",
            "timeEpoch": 1_795_000_000_000_u64,
        },
        "body": body,
        "isBase64Encoded": false,
    })
}

/// Of all threads. The process is stopped, so that it changes no more.
fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let threads = PathBuf::from(format!("/proc/{pid}/task"));
    let mut total = Duration::ZERO;
    for thread in fs::read_dir(&threads).context("the function's threads")? {
        let path = thread?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let on_cpu = text
            .split_whitespace()
            .next()
            .and_then(|ns| ns.parse().ok());
        total += Duration::from_nanos(on_cpu.context("no number")?);
    }
    Ok(total)
}

fn peak_rss_kib(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|text| text.split_whitespace().next());
    Ok(peak.context("no VmHWM")?.parse()?)
}

/// Takes every message, and lets nobody ask about the queue, as the handler's role at AWS.
struct Sqs {
    certificates: Certificates,
    port: u16,
    _server: JoinSet<anyhow::Result<()>>,
}

impl Sqs {
    async fn start() -> anyhow::Result<Self> {
        let certificates = Certificates::new();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let tls = acceptor(&certificates.certificate(), &certificates.key())?;
        let mut server = JoinSet::new();
        server.spawn(serve(listener, tls));
        Ok(Self {
            certificates,
            port,
            _server: server,
        })
    }

    fn variables(&self) -> [(&'static str, String); 7] {
        let url = format!("https://localhost:{}", self.port);
        [
            ("GITHUB_TOKEN", "the-token-of-the-benchmark".to_owned()),
            ("GITHUB_REPO", REPO.to_owned()),
            ("WEBHOOK_SECRET", SECRET.to_owned()),
            ("LOG_FORMAT", "json".to_owned()),
            ("QUEUE_URL", format!("{url}/123456789012/builds")),
            ("AWS_ENDPOINT_URL", url),
            (
                "SSL_CERT_FILE",
                self.certificates.ca().display().to_string(),
            ),
        ]
    }
}

fn acceptor(certificate: &Path, key: &Path) -> anyhow::Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(listener: TcpListener, tls: TlsAcceptor) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        connections.spawn(attend(stream, tls.clone()));
    }
}

async fn attend(stream: TcpStream, tls: TlsAcceptor) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let stream = TokioIo::new(tls.accept(stream).await?);
    http1::Builder::new()
        .serve_connection(stream, service_fn(answer))
        .await?;
    Ok(())
}

async fn answer(request: Request<Incoming>) -> anyhow::Result<Response<Full<Bytes>>> {
    let action = request.headers().get("x-amz-target").cloned();
    let (status, answer) = match action.as_ref().map(|action| action.as_bytes()) {
        Some(b"AmazonSQS.SendMessage") => (StatusCode::OK, json!({ "MessageId": Uuid::new_v4() })),
        _ => (
            StatusCode::FORBIDDEN,
            json!({ "__type": "com.amazon.coral.service#AccessDeniedException" }),
        ),
    };
    request.into_body().collect().await?;
    let mut response = Response::new(Full::from(answer.to_string()));
    *response.status_mut() = status;
    Ok(response)
}
