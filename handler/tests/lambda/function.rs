//! The function of a test, and a queue for it.

use std::collections::BTreeMap;
use std::path::Path;

use harness::{Aws, LambdaHandler, Push, Queues, sign};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::fronts::Sent;

pub(crate) const BOOTSTRAP: &str = env!("CARGO_BIN_EXE_compose-ci-handler");
pub(crate) const REPO: &str = "octo/hello";
pub(crate) const SECRET: &str = "a secret to everybody";
/// No token of GitHub has such characters; they show whether one is decoded once.
pub(crate) const TOKEN: &str = "t0ken%2B+/=&ü";
pub(crate) const SHA: &str = "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c";

/// The variables that a test gives its function.
pub(crate) type Variables = BTreeMap<&'static str, String>;

/// An emulator of AWS with the queues of one function.
pub(crate) struct Sqs {
    pub(crate) aws: Aws,
    pub(crate) queues: Queues,
}

impl Sqs {
    pub(crate) async fn start() -> Self {
        let aws = Aws::start().await;
        let queues = aws.create_queues("ci", "").await;
        Self { aws, queues }
    }

    /// What a function needs to be told in order to send here.
    pub(crate) fn variables(&self) -> Variables {
        variables(&self.queues.url, &self.aws.endpoint_url())
    }

    /// Takes what the queue holds: the bodies of its messages.
    pub(crate) async fn take(&self) -> Vec<Value> {
        let url = &self.queues.url;
        let asked = json!({ "QueueUrl": url, "MaxNumberOfMessages": 10 });
        let received = self.aws.sqs("ReceiveMessage", asked).await;
        let mut bodies = Vec::new();
        for message in received["Messages"].as_array().into_iter().flatten() {
            let lease = json!({ "QueueUrl": url, "ReceiptHandle": message["ReceiptHandle"] });
            self.aws.sqs("DeleteMessage", lease).await;
            let body = message["Body"].as_str().expect("a body");
            bodies.push(serde_json::from_str(body).expect("JSON"));
        }
        bodies
    }
}

/// A webhook with a secret, and a queue at this place.
pub(crate) fn variables(queue_url: &str, endpoint_url: &str) -> Variables {
    [
        ("GITHUB_TOKEN", TOKEN),
        ("GITHUB_REPO", REPO),
        ("WEBHOOK_SECRET", SECRET),
        ("QUEUE_URL", queue_url),
        ("AWS_ENDPOINT_URL", endpoint_url),
        ("LOG_FORMAT", "json"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .into()
}

pub(crate) async fn start(variables: &Variables) -> LambdaHandler {
    LambdaHandler::start(Path::new(BOOTSTRAP), variables).await
}

pub(crate) fn payload() -> String {
    let push = Push {
        repo: REPO,
        reference: "refs/heads/main",
        after: SHA,
        message: "Größe matters ✓",
    };
    push.payload().to_string()
}

/// A delivery of GitHub as JSON, by a new id, signed with this secret.
pub(crate) fn delivery<'a>(body: &'a str, secret: &str) -> Sent<'a> {
    Sent {
        method: "POST",
        path: "/",
        query: "",
        headers: vec![
            ("content-type", "application/json".to_owned()),
            ("x-github-event", "push".to_owned()),
            ("x-github-delivery", Uuid::new_v4().to_string()),
            ("x-hub-signature-256", sign(secret, body.as_bytes())),
        ],
        body,
    }
}

/// Status and body of a response, in whichever form the front asks for.
pub(crate) fn answer(response: &Value) -> (u64, &str) {
    let status = response["statusCode"].as_u64().expect("a status");
    assert_eq!(response["isBase64Encoded"], false, "{response}");
    (status, response["body"].as_str().unwrap_or_default())
}
