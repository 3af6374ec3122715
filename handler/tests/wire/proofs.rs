//! Nobody without a proof gets further than a 401.

use crate::client::{head, post};
use crate::service::{SECRET, Service, TOKEN, delivery, push, sign};

async fn is_refused(service: &Service, request: String) {
    let answer = service.answer(&request).await;
    assert_eq!(answer.status, 401, "{request}");
    assert_eq!(answer.headers["www-authenticate"], "Bearer");
    assert_eq!(answer.body, "no valid proof of who sent this\n");
}

#[tokio::test]
async fn a_missing_or_forged_signature_is_a_401() {
    let service = Service::start().await;
    let body = push("refs/heads/main", "");
    let forged = sign("another secret", &body);
    let of_another_body = sign(SECRET, "{}");
    for signature in [
        forged.as_str(),
        &of_another_body,
        "sha256=",
        "sha256=zz",
        "",
    ] {
        let headers = [
            ("x-github-event", "push"),
            ("x-hub-signature-256", signature),
        ];
        is_refused(&service, post("/", &headers, &body)).await;
    }
    is_refused(&service, post("/", &[("x-github-event", "push")], &body)).await;
    assert_eq!(service.queued().await, []);
}

#[tokio::test]
async fn with_a_secret_a_token_in_the_url_is_a_401() {
    let service = Service::start().await;
    is_refused(
        &service,
        post(&format!("/?token={TOKEN}"), &[], r#"{"after":"main"}"#),
    )
    .await;
}

#[tokio::test]
async fn with_a_secret_a_signed_delivery_may_still_carry_the_old_token() {
    let service = Service::start().await;
    let request = delivery("ping", "{}").replacen("POST / ", "POST /?token=old ", 1);
    assert_eq!(service.answer(request).await.status, 200);
}

#[tokio::test]
async fn a_wrong_token_is_a_401() {
    let service = Service::start_as_the_seed().await;
    let body = r#"{"after":"main"}"#;
    for target in [
        "/",
        "/?token=",
        "/?token=t0ke",
        "/?token=t0ken1",
        "/?x=t0ken",
    ] {
        is_refused(&service, post(target, &[], body)).await;
    }
    is_refused(
        &service,
        post("/", &[("authorization", "Bearer wrong")], body),
    )
    .await;
    assert_eq!(service.queued().await, []);
}

#[tokio::test]
async fn a_malformed_body_without_proof_is_a_401_and_not_a_400() {
    let service = Service::start().await;
    is_refused(
        &service,
        post("/", &[("x-hub-signature-256", "sha256=00")], "<no json>"),
    )
    .await;
}

#[tokio::test]
async fn without_even_a_claim_of_a_proof_the_body_is_not_waited_for() {
    let service = Service::start().await;
    is_refused(
        &service,
        head("POST", "/", &[("content-length", "1000000")]),
    )
    .await;
}
