//! How the server ends.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use compose_ci_handler::limits::Limits;

use crate::client::head;
use crate::service::{Service, push};

const BEARER: (&str, &str) = ("authorization", "Bearer t0ken");

/// A service that waits longer for connections than a test does.
async fn patient_service() -> Service {
    Service::with_limits(Limits {
        drain: Duration::from_secs(600),
        ..Limits::default()
    })
    .await
}

#[tokio::test]
async fn a_request_in_flight_is_answered_before_the_end() {
    let service = patient_service().await;
    let body = push("refs/heads/main", "");
    let length = body.len().to_string();
    let mut client = service.connect().await;
    let headers = [
        BEARER,
        ("x-github-event", "push"),
        ("content-length", &length),
        ("expect", "100-continue"),
    ];
    client.send(head("POST", "/", &headers)).await;
    assert_eq!(
        client.answer().await.status,
        100,
        "the request is in flight"
    );
    service.shutdown.drain.cancel();
    client.send(body).await;
    assert_eq!(client.answer().await.status, 202);
    client.closed().await;
    service.serving.await.expect("served");
}

#[tokio::test]
async fn idle_connections_do_not_delay_the_end() {
    let service = patient_service().await;
    let mut used = service.connect().await;
    used.send(head("GET", "/healthz", &[])).await;
    assert_eq!(used.answer().await.status, 200);
    let mut unused = service.connect().await;
    service.shutdown.drain.cancel();
    used.closed().await;
    unused.closed().await;
    timeout(Duration::from_secs(5), service.serving)
        .await
        .expect("ended")
        .expect("served");
    assert!(
        TcpStream::connect(service.address).await.is_err(),
        "still listening"
    );
}

#[tokio::test]
async fn the_end_waits_only_so_long() {
    let service = Service::with_limits(Limits {
        drain: Duration::from_millis(200),
        ..Limits::default()
    })
    .await;
    let mut client = service.connect().await;
    let headers = [
        BEARER,
        ("content-length", "100"),
        ("expect", "100-continue"),
    ];
    client.send(head("POST", "/", &headers)).await;
    assert_eq!(
        client.answer().await.status,
        100,
        "the request is in flight"
    );
    let started = Instant::now();
    service.shutdown.drain.cancel();
    service.serving.await.expect("served");
    assert!(started.elapsed() < Duration::from_secs(5));
    client.closed().await;
}

#[tokio::test]
async fn the_second_signal_ends_everything_at_once() {
    let service = patient_service().await;
    let mut client = service.connect().await;
    let headers = [
        BEARER,
        ("content-length", "100"),
        ("expect", "100-continue"),
    ];
    client.send(head("POST", "/", &headers)).await;
    assert_eq!(
        client.answer().await.status,
        100,
        "the request is in flight"
    );
    service.shutdown.drain.cancel();
    service.shutdown.abort.cancel();
    timeout(Duration::from_secs(5), service.serving)
        .await
        .expect("ended")
        .expect("served");
}
