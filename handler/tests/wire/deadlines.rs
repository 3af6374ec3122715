//! Peers that are too slow, or too many.

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::time::Instant;

use compose_ci_handler::limits::Limits;

use crate::client::head;
use crate::service::{Service, Settings};

const SHORT: Duration = Duration::from_millis(200);

/// Limits that no test reaches but by the one that it shortens.
fn patient() -> Limits {
    Limits {
        head: Duration::from_secs(60),
        body: Duration::from_secs(60),
        idle: Duration::from_secs(60),
        stall: Duration::from_secs(60),
        handshake: Duration::from_secs(60),
        ..Limits::default()
    }
}

fn health() -> String {
    head("GET", "/healthz", &[])
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let service = Service::with_limits(Limits {
        head: SHORT,
        ..patient()
    })
    .await;
    service.connect().await.closed().await;
}

#[tokio::test]
async fn a_head_that_trickles_in_is_cut_at_the_deadline() {
    let service = Service::with_limits(Limits {
        head: SHORT,
        ..patient()
    })
    .await;
    let mut client = service.connect().await;
    let started = Instant::now();
    while !client.is_closed_within(SHORT / 10).await {
        client.send_what_is_taken("x").await;
        assert!(started.elapsed() < Duration::from_secs(10), "never cut");
    }
    assert!(started.elapsed() >= SHORT);
}

#[tokio::test]
async fn a_second_head_that_trickles_in_is_cut_too() {
    let service = Service::with_limits(Limits {
        head: SHORT,
        ..patient()
    })
    .await;
    let mut client = service.connect().await;
    client.send(health()).await;
    assert_eq!(client.answer().await.status, 200);
    client.send("GET /healthz HTTP/1.1\r\n").await;
    client.closed().await;
}

#[tokio::test]
async fn an_idle_connection_outlives_the_deadline_of_a_head() {
    let service = Service::with_limits(Limits {
        head: SHORT,
        ..patient()
    })
    .await;
    let mut client = service.connect().await;
    client.send(health()).await;
    assert_eq!(client.answer().await.status, 200);
    assert!(
        !client.is_closed_within(SHORT * 3).await,
        "closed while idle"
    );
    client.send(health()).await;
    assert_eq!(client.answer().await.status, 200);
}

#[tokio::test]
async fn an_idle_connection_is_closed_at_its_own_deadline() {
    let service = Service::with_limits(Limits {
        idle: SHORT,
        ..patient()
    })
    .await;
    let mut client = service.connect().await;
    client.send(health()).await;
    assert_eq!(client.answer().await.status, 200);
    let answered = Instant::now();
    client.closed().await;
    assert!(answered.elapsed() >= SHORT / 2);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_a_408() {
    let service = Service::with_limits(Limits {
        body: SHORT,
        ..patient()
    })
    .await;
    let bearer = [("authorization", "Bearer t0ken"), ("content-length", "100")];
    let answer = service.answer(head("POST", "/", &bearer) + "{").await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (408, "the body took too long\n")
    );
}

#[tokio::test]
async fn a_peer_that_does_not_read_its_answer_is_cut() {
    // Larger than what the kernel buffers for both sides.
    let large = || async { vec![b'x'; 64 << 20] };
    let service = Service::with(Settings {
        limits: Limits {
            stall: SHORT,
            ..patient()
        },
        pages: Router::new().route("/large", get(large)),
        ..Settings::default()
    })
    .await;
    let mut client = service.connect().await;
    client.send(head("GET", "/large", &[])).await;
    // Stopping waits for connections, so it ends early only if this one was cut.
    service.shutdown.drain.cancel();
    let started = Instant::now();
    service.serving.await.expect("served");
    assert!(started.elapsed() < Duration::from_secs(5));
    drop(client);
}

#[tokio::test]
async fn a_peer_that_stays_after_its_last_answer_does_not_keep_its_slot() {
    let service = Service::with_limits(Limits {
        connections: 1,
        linger: SHORT,
        ..patient()
    })
    .await;
    let mut staying = service.connect().await;
    staying
        .send(head("POST", "/", &[("content-length", "1000")]))
        .await;
    assert_eq!(staying.answer().await.status, 401);
    assert_eq!(service.answer(health()).await.status, 200);
    drop(staying);
}

#[tokio::test]
async fn a_new_connection_takes_the_place_of_the_one_idle_longest() {
    let service = Service::with_limits(Limits {
        connections: 2,
        ..patient()
    })
    .await;
    let mut first = service.connect().await;
    let mut second = service.connect().await;
    for client in [&mut first, &mut second] {
        client.send(health()).await;
        assert_eq!(client.answer().await.status, 200);
    }
    let mut third = service.connect().await;
    third.send(health()).await;
    assert_eq!(third.answer().await.status, 200);
    first.closed().await;
    second.send(health()).await;
    assert_eq!(second.answer().await.status, 200);
}

#[tokio::test]
async fn peers_that_send_half_a_request_hold_no_push_up() {
    let service = Service::with_limits(Limits {
        connections: 4,
        ..patient()
    })
    .await;
    let mut strangers = Vec::new();
    for part in [
        String::new(),
        "POST / HT".to_owned(),
        head(
            "POST",
            "/",
            &[
                ("content-length", "1000"),
                ("x-hub-signature-256", "sha256=00"),
            ],
        ),
        health(),
    ] {
        for _ in 0..4 {
            let mut stranger = service.connect().await;
            stranger.send(part.clone()).await;
            strangers.push(stranger);
        }
        assert_eq!(service.answer(health()).await.status, 200);
    }
    drop(strangers);
}
