//! Others repeat secrets in their errors: no log, status, page or mail does.

use harness::{EngineProxy, OneBox, SinkOptions, SmtpSink};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::{DEADLINE, Fixture, by_smtp};

const CANARY: &str = "canary-in-the-mine";
/// The same in base64, behind what stands before it in a login.
const IN_BASE64: &str = "Y2FuYXJ5LWluLXRoZS1taW5l";

/// A mail server that refuses every login in the words that it got.
async fn repeating_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(repeat(client));
        }
    });
    port
}

async fn repeat(client: TcpStream) -> std::io::Result<()> {
    let mut client = BufReader::new(client);
    client.write_all(b"220 here\r\n").await?;
    let mut line = String::new();
    while client.read_line(&mut line).await? > 0 {
        let answer = match line.split_whitespace().next() {
            Some("EHLO") => "250-here\r\n250 AUTH PLAIN LOGIN\r\n".to_owned(),
            _ => format!("535 5.7.8 you said {CANARY} in {}\r\n", line.trim_end()),
        };
        client.write_all(answer.as_bytes()).await?;
        line.clear();
    }
    Ok(())
}

fn assert_unknown(service: &OneBox) {
    let log = service.log();
    for canary in [
        CANARY,
        IN_BASE64,
        "NhbmFyeS1pbi10aGUtbWlu",
        "jYW5hcnktaW4tdGhlLW1pb",
    ] {
        assert!(!log.contains(canary), "{canary}: {log}");
    }
}

#[tokio::test]
async fn a_password_that_the_mail_server_repeats_is_masked() {
    let port = repeating_server().await;
    let fixture = Fixture::plain().await;
    let service = fixture
        .setup("true")
        .env("SMTP_HOST", "127.0.0.1")
        .env("SMTP_PORT", port.to_string())
        .env("SMTP_TLS", "none")
        .env("SMTP_FROM", "ci@example.org")
        .env("SMTP_TO", "team@example.org")
        .env("SMTP_USER", "ci")
        .env("SMTP_PASS", CANARY)
        .env("LOG_LEVEL", "trace")
        .start()
        .await;
    fixture.build(&service).await.assert_passed();
    let told = "you said *** in AUTH PLAIN";
    service.wait_for_log(told, DEADLINE).await;
    assert_unknown(&service);
}

/// A registry that refuses every login in the words that it got.
async fn repeating_registry() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(refuse_login(client));
        }
    });
    port
}

async fn refuse_login(client: TcpStream) -> std::io::Result<()> {
    let mut client = BufReader::new(client);
    let (mut line, mut login) = (String::new(), String::new());
    while client.read_line(&mut line).await? > 2 {
        if line.to_lowercase().starts_with("authorization:") {
            login = line.trim_end().to_owned();
        }
        line.clear();
    }
    let message = format!("you sent {login}, which is {CANARY}");
    let error = json!({ "errors": [{ "code": "DENIED", "message": message }] });
    let body = error.to_string();
    let head = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"here\"\r\n\
        Content-Type: application/json\r\nConnection: close\r\nContent-Length:";
    let answer = format!("{head} {}\r\n\r\n{body}", body.len());
    client.write_all(answer.as_bytes()).await
}

#[tokio::test]
async fn a_login_that_the_registry_repeats_is_masked() {
    let registry = format!("127.0.0.1:{}", repeating_registry().await);
    let fixture = Fixture::plain().await;
    let setup = fixture.setup("true");
    let service = setup
        .env("BUILD_IMAGE", format!("{registry}/team/build:1"))
        .env("DOCKER_REGISTRY", &registry)
        .env("REGISTRY_USER", "ci")
        .env("REGISTRY_PASS", CANARY)
        .env("LOG_LEVEL", "trace")
        .start()
        .await;
    let built = fixture.build(&service).await;
    let status = format!("{:?}", built.statuses);
    assert!(status.contains("cannot be pulled"), "{status}");
    assert!(!status.contains(CANARY) && !built.page.contains(CANARY));
    let told = "which is ***";
    service.wait_for_log(told, DEADLINE).await;
    assert_unknown(&service);
}

#[tokio::test]
async fn a_variable_that_the_engine_repeats_is_masked() {
    let proxy = EngineProxy::start(true);
    let mut fixture = Fixture::plain().await;
    let sink = SmtpSink::start(SinkOptions::default()).await;
    let service = by_smtp(fixture.setup("true"), &sink)
        .env("DOCKER_HOST", proxy.docker_host())
        .env("API_TOKEN", CANARY)
        .start()
        .await;
    // Not while the service looks for its surroundings.
    fixture.build(&service).await.assert_passed();
    sink.wait_for_mails(1, DEADLINE).await;
    proxy.repeat_creations();
    fixture.commit("another", "file");
    let built = fixture.build(&service).await;
    let mail = sink.wait_for_mails(2, DEADLINE).await.remove(1);
    let status = format!("{:?}", built.statuses);
    assert!(status.contains("the Docker engine refused"), "{status}");
    for text in [
        status,
        built.page,
        mail.subject,
        mail.text,
        mail.html.unwrap_or_default(),
    ] {
        assert!(!text.contains(CANARY), "{text}");
    }
    assert_unknown(&service);
}

#[tokio::test]
async fn a_branch_that_is_named_like_a_secret_is_masked() {
    let fixture = Fixture::plain().await;
    let sink = SmtpSink::start(SinkOptions::default()).await;
    let service = by_smtp(fixture.setup("true"), &sink)
        .env("API_TOKEN", CANARY)
        .start()
        .await;
    let reference = format!("refs/heads/{CANARY}");
    let build = fixture.push_to(&service, &reference).await;
    let built = fixture.finished(&service, build).await;
    let mail = sink.wait_for_mails(1, DEADLINE).await.remove(0);
    for text in [
        built.page,
        mail.subject,
        mail.text,
        mail.html.unwrap_or_default(),
    ] {
        assert!(text.contains("***") && !text.contains(CANARY), "{text}");
    }
    assert_unknown(&service);
}
