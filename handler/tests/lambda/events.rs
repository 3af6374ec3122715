//! The same request by way of every front.

use serde_json::Value;

use crate::fronts::{Front, Sent};
use crate::function::{SECRET, SHA, Sqs, TOKEN, answer, delivery, payload, start};

/// Every front, with the body as text and in base64.
fn every_way() -> impl Iterator<Item = (Front, bool)> {
    let fronts = Front::ALL.into_iter();
    fronts.flat_map(|front| [(front, false), (front, true)])
}

/// The answer to a push is the uuid of the one message in the queue.
async fn assert_queued(sqs: &Sqs, response: &Value, way: (Front, bool)) {
    let (status, uuid) = answer(response);
    assert_eq!(status, 202, "{way:?}: {response}");
    let [message] = &sqs.take().await[..] else {
        panic!("{way:?}: not one message");
    };
    assert_eq!(message["id"], uuid.trim_end(), "{way:?}");
    assert_eq!(message["revision"]["commit"], SHA, "{way:?}");
}

#[tokio::test]
async fn a_signed_push_is_queued() {
    let sqs = Sqs::start().await;
    let mut function = start(&sqs.variables()).await;
    let body = payload();
    for way @ (front, in_base64) in every_way() {
        let event = front.event(&delivery(&body, SECRET), in_base64);
        let response = function.invoke(&event).await;
        assert_queued(&sqs, &response, way).await;
    }
}

#[tokio::test]
async fn a_forged_push_is_refused() {
    let sqs = Sqs::start().await;
    let mut function = start(&sqs.variables()).await;
    let body = payload();
    for way @ (front, in_base64) in every_way() {
        let event = front.event(&delivery(&body, "a guess"), in_base64);
        let response = function.invoke(&event).await;
        assert_eq!(answer(&response).0, 401, "{way:?}: {response}");
    }
    assert!(sqs.take().await.is_empty());
}

#[tokio::test]
async fn a_token_in_the_url_arrives_as_it_was_sent() {
    let sqs = Sqs::start().await;
    let mut variables = sqs.variables();
    variables.remove("WEBHOOK_SECRET");
    let mut function = start(&variables).await;
    let body = payload();
    let encode = |token: &str| -> String {
        let encoded = form_urlencoded::byte_serialize(token.as_bytes());
        format!("by=hand&token={}", encoded.collect::<String>())
    };
    let (right, wrong) = (encode(TOKEN), encode(&TOKEN[..4]));
    for way @ (front, in_base64) in every_way() {
        let sent = |query| Sent {
            query,
            ..delivery(&body, "a guess")
        };
        let event = front.event(&sent(&wrong), in_base64);
        let refused = function.invoke(&event).await;
        assert_eq!(answer(&refused).0, 401, "{way:?}: {refused}");
        let event = front.event(&sent(&right), in_base64);
        let response = function.invoke(&event).await;
        assert_queued(&sqs, &response, way).await;
    }
}

#[tokio::test]
async fn the_health_check_is_found_behind_every_front() {
    let sqs = Sqs::start().await;
    let mut function = start(&sqs.variables()).await;
    for front in Front::ALL {
        let asked = Sent {
            method: "GET",
            path: "/healthz",
            query: "",
            headers: Vec::new(),
            body: "",
        };
        let response = function.invoke(&front.event(&asked, false)).await;
        assert_eq!(answer(&response), (200, "ok\n"), "{front:?}");
    }
}
