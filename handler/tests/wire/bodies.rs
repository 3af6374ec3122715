//! Bodies that are too large, too many, or broken.

use std::time::Duration;

use compose_ci_handler::limits::Limits;
use tokio::net::TcpStream;

use crate::client::{Client, head, post};
use crate::service::{Service, push};

const BEARER: (&str, &str) = ("authorization", "Bearer t0ken");
const CHUNKED: (&str, &str) = ("transfer-encoding", "chunked");
const MIB: usize = 1 << 20;

fn chunk(size: usize) -> Vec<u8> {
    let mut chunk = format!("{size:x}\r\n").into_bytes();
    chunk.resize(chunk.len() + size, b' ');
    chunk.extend_from_slice(b"\r\n");
    chunk
}

fn padded(json: &str, size: usize) -> String {
    json.to_owned() + &" ".repeat(size - json.len())
}

#[tokio::test]
async fn a_body_that_is_announced_as_too_large_is_refused_at_once() {
    let service = Service::start().await;
    let length = (25 * MIB + 1).to_string();
    let answer = service
        .answer(head("POST", "/", &[BEARER, ("content-length", &length)]))
        .await;
    let line = "the body is larger than 25 MiB\n";
    assert_eq!((answer.status, answer.body.as_str()), (413, line));
}

#[tokio::test]
async fn a_sender_of_too_much_is_heard_out_and_sees_why() {
    let service = Service::start().await;
    let mut client = service.connect().await;
    let length = (26 * MIB).to_string();
    client
        .send(head("POST", "/", &[BEARER, ("content-length", &length)]))
        .await;
    client.send(vec![b' '; 26 * MIB]).await;
    assert_eq!(client.answer().await.status, 413);
}

#[tokio::test]
async fn a_chunked_body_is_refused_when_it_grows_too_large() {
    let service = Service::start().await;
    let mut client = service.connect().await;
    client.send(head("POST", "/", &[BEARER, CHUNKED])).await;
    for _ in 0..26 {
        client.send(chunk(MIB)).await;
    }
    assert_eq!(client.answer().await.status, 413);
}

#[tokio::test]
async fn bodies_up_to_the_limit_are_read_whole() {
    let service = Service::start().await;
    let json = push("refs/heads/main", "");
    for size in [json.len(), 20_000, 100_000, 25 * MIB] {
        let body = padded(&json, size);
        let answer = service
            .answer(post("/", &[BEARER, ("x-github-event", "push")], &body))
            .await;
        assert_eq!(answer.status, 202, "{size} bytes: {}", answer.body);
    }
}

#[tokio::test]
async fn a_chunked_body_is_read_whole() {
    let service = Service::start().await;
    let mut client = service.connect().await;
    client
        .send(head(
            "POST",
            "/",
            &[BEARER, CHUNKED, ("x-github-event", "push")],
        ))
        .await;
    let json = push("refs/heads/main", "");
    for byte in json.chars() {
        client.send(format!("1\r\n{byte}\r\n")).await;
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 202);
}

#[tokio::test]
async fn a_malformed_chunk_is_a_400() {
    let service = Service::start().await;
    let request = head("POST", "/", &[BEARER, CHUNKED]) + "xyz\r\n";
    let answer = service.answer(request).await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (400, "the body broke off\n")
    );
}

const PING: [(&str, &str); 2] = [BEARER, ("x-github-event", "ping")];

/// A service for one large body at a time, and a client of it that has sent this much of one.
async fn half_way(body: &str, sent_bytes: usize) -> (Service, Client<TcpStream>) {
    let service = Service::with_limits(Limits {
        large_bodies: 1,
        ..Limits::default()
    })
    .await;
    let length = body.len().to_string();
    let expect = ("expect", "100-continue");
    let headers = [&PING[..], &[("content-length", &length), expect]].concat();
    let mut client = service.connect().await;
    client.send(head("POST", "/", &headers)).await;
    // The server asks for the body once it has begun to read it.
    assert_eq!(client.answer().await.status, 100);
    client.send(&body[..sent_bytes]).await;
    (service, client)
}

#[tokio::test]
async fn a_large_body_waits_for_another_and_a_small_one_does_not() {
    let body = padded("{}", 100_000);
    let (service, mut first) = half_way(&body, 90_000).await;
    assert_eq!(service.answer(post("/", &PING, "{}")).await.status, 200);
    let mut second = service.connect().await;
    second.send(post("/", &PING, &body)).await;
    assert_eq!(service.answer(post("/", &PING, "{}")).await.status, 200);
    assert!(!second.is_answered_within(Duration::from_millis(200)).await);
    first.send(&body[90_000..]).await;
    assert_eq!(first.answer().await.status, 200);
    assert_eq!(second.answer().await.status, 200);
}

#[tokio::test]
async fn a_large_body_that_is_only_announced_keeps_nobody_waiting() {
    let body = padded("{}", 100_000);
    let (service, mut first) = half_way(&body, 1000).await;
    assert_eq!(service.answer(post("/", &PING, &body)).await.status, 200);
    first.send(&body[1000..]).await;
    assert_eq!(first.answer().await.status, 200);
}

#[tokio::test]
async fn a_large_body_that_finds_no_room_is_a_503() {
    let service = Service::with_limits(Limits {
        large_bodies: 0,
        body: Duration::from_millis(200),
        ..Limits::default()
    })
    .await;
    let answer = service
        .answer(post("/", &[BEARER], &" ".repeat(100_000)))
        .await;
    let line = "too many large requests at a time, deliver this again later\n";
    assert_eq!((answer.status, answer.body.as_str()), (503, line));
}
