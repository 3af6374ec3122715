//! GitHub's own example payloads.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::service::{Service, Settings, delivery};

async fn service() -> Service {
    Service::with(Settings {
        repos: "Codertocat/Hello-World",
        ..Settings::default()
    })
    .await
}

/// A push that is no deletion builds, everything else does not, and nothing is an error.
fn expected_status(event: &str, payload: &Value) -> u16 {
    if event == "push" && payload["deleted"] == Value::Bool(false) {
        202
    } else {
        200
    }
}

#[tokio::test]
async fn the_payloads_in_tests_data_are_answered_as_they_should() {
    let service = service().await;
    let webhooks = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/webhooks");
    for (event, count) in [("push", 7), ("ping", 4), ("create", 5), ("delete", 4)] {
        for number in 1..=count {
            let body = std::fs::read_to_string(webhooks.join(format!("{event}/{number}.json")));
            let body = body.expect("a payload");
            let payload = serde_json::from_str(&body).expect("JSON");
            let answer = service.answer(delivery(event, &body)).await;
            assert_eq!(
                answer.status,
                expected_status(event, &payload),
                "{event} {number}"
            );
        }
    }
}

#[derive(Deserialize)]
struct Examples {
    name: String,
    examples: Vec<Value>,
}

#[tokio::test]
#[ignore = "tests/run runs it, with the index that tests/data/fetch-octokit downloads"]
#[expect(
    clippy::disallowed_methods,
    reason = "a test's input is no setting of the service"
)]
async fn all_of_githubs_payloads_are_answered_as_they_should() {
    let index = std::env::var("OCTOKIT_EXAMPLES").expect("OCTOKIT_EXAMPLES names index.json");
    let index = std::fs::read_to_string(index).expect("the index");
    let events: Vec<Examples> = serde_json::from_str(&index).expect("a list of events");
    let service = service().await;
    let mut client = service.connect().await;
    let mut answered = 0;
    for event in events {
        for payload in event.examples {
            client
                .send(delivery(&event.name, &payload.to_string()))
                .await;
            let answer = client.answer().await;
            assert_eq!(
                answer.status,
                expected_status(&event.name, &payload),
                "{}",
                event.name
            );
            answered += 1;
        }
    }
    assert_eq!(answered, 329);
}
