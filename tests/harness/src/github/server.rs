//! The accept loop and the way of one request, faults included.

use std::convert::Infallible;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::answer::{answer, error};
use super::fault::{Fault, cut_after, stall_after};
use super::hosting::Way;
use super::record::{self, Host};
use super::route::Route;
use super::{Body, State};

/// Serves until it is aborted; its connections end with it.
pub(super) async fn serve(listener: TcpListener, host: Host, state: Arc<State>) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                connections.spawn(connection(stream, host, Arc::clone(&state)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, host: Host, state: Arc<State>) {
    let service = service_fn(|request| one_request(&state, host, request));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // A connection that breaks is a fault that the test planned, or the client's doing.
    connection.await.ok();
}

/// hyper ends the connection without an answer when the service fails.
#[derive(Debug, thiserror::Error)]
#[error("the answer was lost, as the test planned")]
struct LostAnswer;

async fn one_request(
    state: &Arc<State>,
    host: Host,
    request: Request<Incoming>,
) -> Result<Response<Body>, LostAnswer> {
    state
        .record
        .send_modify(|record| record.requests.push(noted(host, &request)));
    let path = match state.way(request.uri().path()) {
        Way::Straight(path) => path,
        Way::SentOn { code, path } => return Ok(sent_on(code, path, request.uri().query())),
    };
    let route = Route::of(host, request.method(), &path);
    let fault = route
        .endpoint()
        .and_then(|endpoint| state.take_fault(endpoint));
    match fault {
        None => Ok(answer(state, route, request).await),
        Some(Fault::Answer {
            code,
            headers,
            message,
        }) => Ok(with_headers(error(code, message), headers)),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::CutAfter(limit)) => Ok(answer(state, route, request)
            .await
            .map(|body| cut_after(body, limit))),
        Some(Fault::StallAfter(limit)) => Ok(answer(state, route, request)
            .await
            .map(|body| stall_after(body, limit))),
        Some(Fault::LoseAnswer) => {
            answer(state, route, request).await;
            Err(LostAnswer)
        }
    }
}

fn sent_on(code: u16, path: String, query: Option<&str>) -> Response<Body> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let location = vec![("location", format!("{path}{query}"))];
    with_headers(error(code, "Moved Permanently"), location)
}

fn noted(host: Host, request: &Request<Incoming>) -> record::Request {
    record::Request {
        host,
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        had_authorization: request.headers().contains_key(header::AUTHORIZATION),
    }
}

fn with_headers(
    mut response: Response<Body>,
    headers: Vec<(&'static str, String)>,
) -> Response<Body> {
    for (name, value) in headers {
        let value = HeaderValue::try_from(value).expect("a test plans valid headers");
        response
            .headers_mut()
            .insert(HeaderName::from_static(name), value);
    }
    response
}
