//! How the program starts, on Lambda and elsewhere, and what it logs.

#![expect(clippy::disallowed_types, reason = "it starts the program")]

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use harness::{Process, listening_address};
use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fronts::Front;
use crate::function::{BOOTSTRAP, SECRET, Sqs, Variables, delivery, payload, start, variables};

const DEADLINE: Duration = Duration::from_secs(20);

fn process(variables: &Variables) -> Process {
    let mut command = Command::new(BOOTSTRAP);
    command.env_clear().envs(variables);
    Process::start(command)
}

#[tokio::test]
async fn a_missing_setting_ends_it_with_one_line_that_names_it() {
    let complete = variables("https://sqs.eu-west-1.amazonaws.com/1/builds", "");
    for on_lambda in [false, true] {
        for missing in [
            &["QUEUE_URL"][..],
            &["GITHUB_REPO"],
            &["GITHUB_TOKEN", "WEBHOOK_SECRET"],
        ] {
            let name = missing[0];
            let mut variables = complete.clone();
            variables.retain(|variable, _| !missing.contains(variable));
            if on_lambda {
                variables.insert("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9".to_owned());
            }
            let mut process = process(&variables);
            let status = process.wait_for_end(DEADLINE).await;
            assert_eq!(status.code(), Some(2), "{name}");
            let output = process.output();
            let line = format!("compose-ci-handler: {name}: missing (");
            assert!(output.starts_with(&line), "{output}");
            assert_eq!(output.lines().count(), 1, "{output}");
        }
    }
}

#[tokio::test]
async fn an_argument_is_answered_with_what_it_reads() {
    for (argument, code) in [("--help", 0), ("--port", 2)] {
        let mut command = Command::new(BOOTSTRAP);
        command.env_clear().arg(argument);
        let mut process = Process::start(command);
        let status = process.wait_for_end(DEADLINE).await;
        let output = process.output();
        assert_eq!(status.code(), Some(code), "{output}");
        assert!(output.contains("\n  QUEUE_URL "), "{output}");
    }
}

#[tokio::test]
async fn what_it_logs_is_one_json_object_a_line() {
    let sqs = Sqs::start().await;
    let mut function = start(&sqs.variables()).await;
    let body = payload();
    for secret in [SECRET, "a guess"] {
        let event = Front::HttpApi.event(&delivery(&body, secret), false);
        function.invoke(&event).await;
    }
    let complete = |log: &str| log.contains("refused").then(|| log.to_owned());
    let output = function.wait_for_log(complete).await;
    let lines: Vec<Value> = output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect();
    let messages: Vec<_> = lines.iter().map(|line| &line["message"]).collect();
    assert_eq!(messages, ["queued", "refused"], "{output}");
    // By it, Lambda's own lines about the same invocation are found.
    assert!(lines[0]["span"]["requestId"].is_string(), "{output}");
}

#[tokio::test]
async fn elsewhere_it_listens_on_a_port_and_finds_its_credentials_as_the_aws_cli() {
    let sqs = Sqs::start().await;
    let mut credentials = NamedTempFile::new().expect("a temporary file");
    let profile = "[default]\naws_access_key_id=an-id\naws_secret_access_key=a-secret\n";
    let written = credentials.write_all(profile.as_bytes());
    written.expect("it can be written");
    let path = credentials.path().display().to_string();
    let mut variables = sqs.variables();
    variables.extend([
        ("BIND", "127.0.0.1".to_owned()),
        ("PORT", "0".to_owned()),
        ("AWS_SHARED_CREDENTIALS_FILE", path),
        ("AWS_REGION", harness::REGION.to_owned()),
    ]);
    let mut process = process(&variables);
    let address = process.wait_for_output(listening_address, DEADLINE).await;
    let body = payload();
    let sent = delivery(&body, SECRET);
    let headers = sent
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"));
    let headers: String = headers.collect();
    let length = body.len();
    let request = format!("POST / HTTP/1.0\r\n{headers}content-length: {length}\r\n\r\n{body}");
    let mut answer = String::new();
    let mut connection = TcpStream::connect(address).await.expect("it listens");
    let written = connection.write_all(request.as_bytes()).await;
    written.expect("it reads");
    let read = connection.read_to_string(&mut answer).await;
    read.expect("it answers");
    assert!(answer.contains(" 202 "), "{answer}");
    assert_eq!(sqs.take().await.len(), 1);
    process.terminate();
    assert!(process.wait_for_end(DEADLINE).await.success());
}
