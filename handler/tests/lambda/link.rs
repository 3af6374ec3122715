//! A way to the emulator that keeps its connections, as SQS does and the emulator does not, until
//! a test breaks them.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use harness::Aws;

/// What becomes of the connections that there are.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Break {
    /// They are closed, as SQS does with one that is idle.
    Close,
    /// Nothing passes any more, and nobody is told, as a NAT does with one that it forgot.
    Mute,
}

/// An address of the emulator's SQS. Dropping it ends all connections.
pub(crate) struct Link {
    address: SocketAddr,
    broken: watch::Sender<Option<Break>>,
    _server: JoinSet<Infallible>,
}

impl Link {
    pub(crate) async fn to(aws: Arc<Aws>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket has one");
        let broken = watch::Sender::default();
        let mut server = JoinSet::new();
        server.spawn(serve(listener, aws, broken.clone()));
        Self {
            address,
            broken,
            _server: server,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Breaks the one connection that there must be; new ones are sound.
    pub(crate) fn break_connection(&self, how: Break) {
        assert_eq!(self.broken.receiver_count(), 1, "connections");
        self.broken.send_replace(Some(how));
    }
}

async fn serve(
    listener: TcpListener,
    aws: Arc<Aws>,
    broken: watch::Sender<Option<Break>>,
) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            connections.spawn(attend(stream, Arc::clone(&aws), broken.subscribe()));
        }
    }
}

async fn attend(stream: TcpStream, aws: Arc<Aws>, mut broken: watch::Receiver<Option<Break>>) {
    let service = service_fn(|request| pass_on(&aws, request));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let how = tokio::select! {
        _ = connection.as_mut() => return,
        _ = broken.changed() => *broken.borrow(),
    };
    // Who is mute is no connection of use to anybody.
    drop(broken);
    if how == Some(Break::Mute) {
        std::future::pending().await
    }
}

async fn pass_on(aws: &Aws, request: Request<Incoming>) -> Result<Response, Infallible> {
    let action = action(request.headers());
    let body = request.into_body().collect().await;
    let body = body.expect("a whole request").to_bytes();
    let parameters = serde_json::from_slice(&body).expect("JSON");
    Ok(match aws.try_sqs(&action, parameters).await {
        Ok(answer) => answer.to_string().into_response(),
        Err(refusal) => (StatusCode::BAD_REQUEST, refusal).into_response(),
    })
}

/// `AmazonSQS.SendMessage` and so on.
fn action(headers: &HeaderMap) -> String {
    let target = headers
        .get("x-amz-target")
        .and_then(|value| value.to_str().ok());
    let (_, action) = target
        .and_then(|target| target.split_once('.'))
        .expect("a target");
    action.to_owned()
}
