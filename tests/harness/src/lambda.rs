//! AWS Lambda for a test: the runtime API, and a function that is frozen between its invocations.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::aws::REGION;
use crate::process::Process;

/// How long Lambda lets a function start before it starts it anew.
const INIT_DEADLINE: Duration = Duration::from_secs(10);

/// The timeout of the function: that of API Gateway's HTTP APIs is no longer either.
const INVOCATION_DEADLINE: Duration = Duration::from_secs(30);

/// How long a line may take from the function to its test.
const LOG_DEADLINE: Duration = Duration::from_secs(10);

/// The path of everything in the runtime API, by the page "Using the Lambda runtime API".
const RUNTIME_API: &str = "/2018-06-01/runtime/";

/// What Lambda tells every function of itself.
const ENVIRONMENT: [(&str, &str); 12] = [
    ("AWS_ACCESS_KEY_ID", "an-id"),
    ("AWS_SECRET_ACCESS_KEY", "a-secret"),
    ("AWS_SESSION_TOKEN", "a-session"),
    ("AWS_REGION", REGION),
    ("AWS_DEFAULT_REGION", REGION),
    ("AWS_LAMBDA_FUNCTION_NAME", "webhook"),
    ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
    ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
    ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"),
    ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/webhook"),
    ("AWS_LAMBDA_LOG_STREAM_NAME", "2026/11/22/[$LATEST]0"),
    ("TZ", ":UTC"),
];

/// A function on a Lambda of its own, which waits for an invocation. Dropping it ends it.
#[derive(Debug)]
pub struct LambdaHandler {
    process: Process,
    events: mpsc::Sender<Event>,
    reports: mpsc::Receiver<Report>,
    polls: watch::Receiver<u32>,
    _server: JoinSet<Infallible>,
}

/// What a function is to handle, and in what time.
type Event = (Value, Duration);

/// What a function tells the runtime API.
#[derive(Debug)]
enum Report {
    Response(Value),
    Error(Value),
}

impl LambdaHandler {
    /// Starts a function with these variables and those that Lambda sets; its own ones win.
    /// Returns as soon as it asks for its first event.
    ///
    /// # Panics
    /// When it ends or takes 10 s instead; with its output.
    pub async fn start<K, V>(bootstrap: &Path, env: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: AsRef<OsStr>,
        V: AsRef<OsStr>,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket has one");
        let (events, events_to_send) = mpsc::channel(1);
        let (reports_to_take, reports) = mpsc::channel(1);
        let (count, polls) = watch::channel(0);
        let mut server = JoinSet::new();
        server.spawn(serve(
            listener,
            Arc::new(RuntimeApi {
                events: Mutex::new(events_to_send),
                reports: reports_to_take,
                polls: count,
            }),
        ));
        let mut handler = Self {
            process: Process::start(command(bootstrap, address, env)),
            events,
            reports,
            polls,
            _server: server,
        };
        handler.wait_for_poll(1, INIT_DEADLINE).await;
        handler
    }

    /// The process's id. Between its invocations the process is stopped.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has logged so far.
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// Waits until `find` finds something in its log: what it wrote before its response may come
    /// after it.
    ///
    /// # Panics
    /// After 10 s, with its output.
    pub async fn wait_for_log<T>(&self, find: impl Fn(&str) -> Option<T>) -> T {
        self.process.wait_for_output(find, LOG_DEADLINE).await
    }

    /// Has it handle an event, and returns its response once it asks for the next event.
    ///
    /// # Panics
    /// When it reports an error, ends, or takes 30 s; with its output.
    pub async fn invoke(&mut self, event: &Value) -> Value {
        let result = self.try_invoke(event, INVOCATION_DEADLINE).await;
        result.unwrap_or_else(|error| panic!("the function failed: {error}\n{}", self.output()))
    }

    /// Has it handle an event within so much time, and returns its response, or the error that it
    /// reports, once it asks for the next event.
    ///
    /// # Panics
    /// When it ends or takes longer; with its output.
    pub async fn try_invoke(&mut self, event: &Value, time: Duration) -> Result<Value, Value> {
        let polls = *self.polls.borrow();
        self.process.resume();
        let sent = self.events.send((event.clone(), time)).await;
        sent.expect("the runtime API serves until this is dropped");
        let report = tokio::select! {
            report = self.reports.recv() => report.expect("the runtime API serves"),
            never = ended(&self.process, time) => match never {},
        };
        self.wait_for_poll(polls + 1, time).await;
        match report {
            Report::Response(response) => Ok(response),
            Report::Error(error) => Err(error),
        }
    }

    /// Returns once the function has asked for so many events and is stopped, as Lambda does it.
    async fn wait_for_poll(&mut self, polls: u32, deadline: Duration) {
        tokio::select! {
            polled = self.polls.wait_for(|count| *count >= polls) => {
                polled.expect("the runtime API serves until this is dropped");
            }
            never = ended(&self.process, deadline) => match never {},
        }
        self.process.suspend();
    }
}

/// Panics when the process ends, or at the deadline; with its output.
async fn ended(process: &Process, deadline: Duration) -> Infallible {
    process.wait_for_output(|_| None, deadline).await
}

fn command<K, V>(
    bootstrap: &Path,
    runtime_api: SocketAddr,
    env: impl IntoIterator<Item = (K, V)>,
) -> Command
where
    K: AsRef<OsStr>,
    V: AsRef<OsStr>,
{
    let mut command = Command::new(bootstrap);
    command
        .env_clear()
        .envs(ENVIRONMENT)
        .env("AWS_LAMBDA_RUNTIME_API", runtime_api.to_string())
        .envs(env);
    command
}

/// The server's side of a [`LambdaHandler`].
struct RuntimeApi {
    events: Mutex<mpsc::Receiver<Event>>,
    reports: mpsc::Sender<Report>,
    polls: watch::Sender<u32>,
}

async fn serve(listener: TcpListener, api: Arc<RuntimeApi>) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                connections.spawn(connection(stream, Arc::clone(&api)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, api: Arc<RuntimeApi>) {
    let service = service_fn(async |request| Ok::<_, Infallible>(api.answer(request).await));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // A function that ends breaks its connection.
    connection.await.ok();
}

impl RuntimeApi {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let path = head.uri.path().strip_prefix(RUNTIME_API);
        let path: Vec<_> = path.unwrap_or_default().split('/').collect();
        match (head.method, &path[..]) {
            (Method::GET, ["invocation", "next"]) => self.next().await,
            (Method::POST, ["invocation", _, "response"]) => {
                self.report(Report::Response(json(body).await)).await
            }
            (Method::POST, ["invocation", _, "error"] | ["init", "error"]) => {
                self.report(Report::Error(json(body).await)).await
            }
            _ => empty(StatusCode::NOT_FOUND),
        }
    }

    /// Waits for an event, as long as it takes.
    async fn next(&self) -> Response<Full<Bytes>> {
        self.polls.send_modify(|polls| *polls += 1);
        let Some((event, time)) = self.events.lock().await.recv().await else {
            return empty(StatusCode::INTERNAL_SERVER_ERROR);
        };
        let deadline = SystemTime::now() + time;
        let deadline = deadline.duration_since(SystemTime::UNIX_EPOCH);
        let deadline_ms = deadline.expect("the clock is past 1970").as_millis();
        let arn = format!("arn:aws:lambda:{REGION}:123456789012:function:webhook");
        Response::builder()
            .header("lambda-runtime-aws-request-id", Uuid::new_v4().to_string())
            .header("lambda-runtime-deadline-ms", deadline_ms.to_string())
            .header("lambda-runtime-invoked-function-arn", arn)
            .body(Full::from(event.to_string()))
            .expect("its parts are valid")
    }

    async fn report(&self, report: Report) -> Response<Full<Bytes>> {
        // Nobody waits for it when the test has ended.
        self.reports.send(report).await.ok();
        empty(StatusCode::ACCEPTED)
    }
}

async fn json(body: Incoming) -> Value {
    let body = body.collect().await.map(|body| body.to_bytes());
    serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default()
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}
