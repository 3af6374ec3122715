//! `/builds/<uuid>/log`: the log as it is, from any byte on, and as it grows.

use std::io::Read;

use flate2::read::GzDecoder;
use futures_util::StreamExt;
use harness::OneBox;
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, RANGE};
use reqwest::{Client, Response, StatusCode};
use tokio::time::timeout;

use crate::fixture::{DEADLINE, Fixture, GATE, at_gate, open_gate};

fn client() -> Client {
    let client = Client::builder().timeout(DEADLINE);
    client.build().expect("a client")
}

async fn ask(service: &OneBox, build: &str, query: &str, headers: HeaderMap) -> Response {
    let url = service.url(&format!("/builds/{build}/log{query}"));
    let asked = client().get(url).headers(headers).send();
    asked.await.expect("an answer")
}

fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    let value = answer.headers().get(name);
    value.map_or("", |value| value.to_str().expect("text"))
}

fn one(name: reqwest::header::HeaderName, value: &str) -> HeaderMap {
    [(name, value.parse().expect("a value"))]
        .into_iter()
        .collect()
}

/// Reads on until this text has come.
async fn read_until(
    answer: &mut (impl StreamExt<Item = reqwest::Result<bytes::Bytes>> + Unpin),
    text: &str,
) -> String {
    let mut read = String::new();
    while !read.contains(text) {
        let next = timeout(DEADLINE, answer.next()).await.expect("in time");
        let chunk = next.expect("more").expect("readable");
        read.push_str(&String::from_utf8_lossy(&chunk));
    }
    read
}

#[tokio::test]
async fn log_is_answered_from_any_byte_on() {
    let fixture = Fixture::plain().await;
    let service = fixture.setup("echo one; echo two").start().await;
    let build = fixture.push(&service).await;
    let built = fixture.finished(&service, build.clone()).await;
    assert_eq!(built.log, "one\ntwo\n");

    let all = ask(&service, &build, "", HeaderMap::new()).await;
    assert_eq!(all.status(), StatusCode::OK);
    assert_eq!(header(&all, "content-type"), "text/plain; charset=utf-8");
    assert_eq!(header(&all, "x-content-type-options"), "nosniff");
    assert_eq!(header(&all, "log-next"), "8");
    assert_eq!(header(&all, "log-more"), "false");
    assert_eq!(header(&all, "content-length"), "8");
    assert_eq!(all.text().await.expect("text"), "one\ntwo\n");

    for (query, from, text) in [
        ("?from=4", "4", "two\n"),
        ("?from=4&follow=1", "4", "two\n"),
        ("?from=8", "8", ""),
        ("?from=99", "8", ""),
    ] {
        let part = ask(&service, &build, query, HeaderMap::new()).await;
        assert_eq!(header(&part, "log-from"), from, "{query}");
        assert_eq!(part.text().await.expect("text"), text, "{query}");
    }
    let file = ask(&service, &build, "?download=1", HeaderMap::new()).await;
    let name = format!("attachment; filename=\"{build}.log\"");
    assert_eq!(header(&file, "content-disposition"), name);
    let wrong = ask(&service, &build, "?from=-1", HeaderMap::new()).await;
    assert_eq!(wrong.status(), StatusCode::BAD_REQUEST);
    let none = ask(
        &service,
        "11111111-1111-4111-8111-111111111111",
        "",
        HeaderMap::new(),
    )
    .await;
    assert_eq!(none.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn log_is_answered_in_ranges_and_packed() {
    let fixture = Fixture::plain().await;
    let service = fixture.setup("echo one; echo two").start().await;
    let build = fixture.push(&service).await;
    fixture.finished(&service, build.clone()).await;
    for (range, status, content_range, text) in [
        ("bytes=4-", 206, "bytes 4-7/8", "two\n"),
        ("bytes=0-2", 206, "bytes 0-2/8", "one"),
        ("bytes=-4", 206, "bytes 4-7/8", "two\n"),
        ("bytes=8-", 416, "bytes */8", ""),
        ("lines=1-", 200, "", "one\ntwo\n"),
    ] {
        let part = ask(&service, &build, "", one(RANGE, range)).await;
        assert_eq!(part.status().as_u16(), status, "{range}");
        assert_eq!(header(&part, "content-range"), content_range, "{range}");
        assert_eq!(part.text().await.expect("text"), text, "{range}");
    }
    let packed = ask(&service, &build, "", one(ACCEPT_ENCODING, "br, gzip")).await;
    assert_eq!(header(&packed, "content-encoding"), "gzip");
    let packed = packed.bytes().await.expect("bytes");
    let mut text = String::new();
    let read = GzDecoder::new(&packed[..]).read_to_string(&mut text);
    read.expect("gzip");
    assert_eq!(text, "one\ntwo\n");

    let url = service.url(&format!("/builds/{build}/log"));
    let head = client().head(url).send().await.expect("an answer");
    assert_eq!(header(&head, "content-length"), "8");
    assert_eq!(head.bytes().await.expect("none").len(), 0);
}

#[tokio::test]
async fn log_is_followed_to_the_builds_end_without_a_gap() {
    let fixture = Fixture::plain().await;
    let hook = format!("echo one; {GATE}; echo two; seq 100000");
    let service = fixture.setup(&hook).start().await;
    let build = fixture.push(&service).await;
    at_gate(&fixture.engine, &build).await;
    let answer = ask(&service, &build, "?follow=1", HeaderMap::new()).await;
    assert_eq!(header(&answer, "log-more"), "true");
    let mut first = answer.bytes_stream();
    assert_eq!(read_until(&mut first, "one\n").await, "one\n");
    // The connection is cut; another one goes on from the next byte.
    drop(first);
    let rest = ask(&service, &build, "?from=4&follow=1", HeaderMap::new()).await;
    open_gate(&build).await;
    let rest = rest.text().await.expect("it ends with the build");
    let built = fixture.finished(&service, build).await;
    assert_eq!(format!("one\n{rest}"), built.log);
}

#[tokio::test]
async fn followed_log_does_not_hold_up_the_end_of_the_service() {
    let fixture = Fixture::plain().await;
    let mut service = fixture.setup(&format!("echo one; {GATE}")).start().await;
    let build = fixture.push(&service).await;
    at_gate(&fixture.engine, &build).await;
    let answer = ask(&service, &build, "?follow=1", HeaderMap::new()).await;
    let mut followed = answer.bytes_stream();
    read_until(&mut followed, "one\n").await;
    let (stopped, rest) = tokio::join!(service.stop(DEADLINE), followed.next());
    assert!(rest.is_none(), "{rest:?} {stopped:?}");
    service.start_again().await;
    open_gate(&build).await;
    fixture.finished(&service, build).await.assert_passed();
}
