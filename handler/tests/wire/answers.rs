//! Every row of the table of answers, for requests that are proven.

use std::time::Duration;

use shared::build::BuildId;

use crate::client::{head, post};
use crate::service::{CONTEXT, GUID, SECRET, SHA, Service, Settings, TOKEN, delivery, push, sign};

#[tokio::test]
async fn a_push_is_queued_and_answered_with_its_uuid() {
    let service = Service::start().await;
    let answer = service
        .answer(delivery("push", &push("refs/heads/main", "Mend it")))
        .await;
    assert_eq!(answer.status, 202);
    let id = BuildId::from_delivery(GUID, CONTEXT);
    assert_eq!(answer.body, format!("{id}\n"));
    let [request] = service.queued().await.try_into().expect("one build");
    assert_eq!(request.id, id);
    assert_eq!(request.repo.as_str(), "octo/hello");
    assert_eq!(request.revision.to_string(), SHA);
    assert_eq!(request.ref_name(), Some("main"));
}

#[tokio::test]
async fn whoever_asks_for_json_gets_json() {
    let service = Service::start().await;
    let accept =
        |request: String| request.replacen("host:", "accept: application/json\r\nhost:", 1);
    let push = delivery("push", &push("refs/tags/v1", ""));
    for (request, status, body) in [
        (
            push,
            202,
            format!(
                r#"{{"build":"{}","repository":"octo/hello","revision":"{SHA}","ref":"v1"}}"#,
                BuildId::from_delivery(GUID, CONTEXT)
            ),
        ),
        (
            delivery("ping", "{}"),
            200,
            r#"{"ignored":"pong: pushes to this webhook will build"}"#.to_owned(),
        ),
        (
            post("/", &[], ""),
            401,
            r#"{"error":"no valid proof of who sent this"}"#.to_owned(),
        ),
    ] {
        let answer = service.answer(accept(request)).await;
        assert_eq!((answer.status, answer.body), (status, body + "\n"));
        assert_eq!(answer.headers["content-type"], "application/json");
    }
}

#[tokio::test]
async fn the_same_delivery_again_is_the_same_build() {
    let service = Service::start().await;
    let mut client = service.connect().await;
    let mut uuids = Vec::new();
    for _ in 0..2 {
        client
            .send(delivery("push", &push("refs/heads/main", "")))
            .await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 202);
        uuids.push(answer.body);
    }
    assert_eq!(uuids[0], uuids[1]);
    assert_eq!(service.queued().await.len(), 1);
}

#[tokio::test]
async fn a_push_in_a_form_is_a_push() {
    let service = Service::start().await;
    let json = push("refs/heads/main", "ü & + %");
    let body = form_urlencoded::Serializer::new(String::new())
        .append_pair("payload", &json)
        .finish();
    let signature = sign(SECRET, &body);
    let headers = [
        ("content-type", "application/x-www-form-urlencoded"),
        ("x-github-event", "push"),
        ("x-hub-signature-256", signature.as_str()),
    ];
    assert_eq!(service.answer(post("/", &headers, &body)).await.status, 202);
    assert_eq!(service.queued().await.len(), 1);
}

#[tokio::test]
async fn what_does_not_build_is_told_in_one_line() {
    let service = Service::with(Settings {
        branches: "main",
        ..Settings::default()
    })
    .await;
    let deleted = format!(
        r#"{{"ref":"refs/heads/x","after":"{}","deleted":true,"head_commit":null,
            "repository":{{"full_name":"octo/hello"}}}}"#,
        "0".repeat(40)
    );
    for (event, payload, line) in [
        (
            "ping",
            "{}".to_owned(),
            "pong: pushes to this webhook will build\n",
        ),
        (
            "push",
            deleted,
            "nothing to build: the branch or tag was deleted\n",
        ),
        (
            "delete",
            "{}".to_owned(),
            "nothing to build: the branch or tag was deleted\n",
        ),
        (
            "push",
            push("refs/heads/x", ""),
            "x does not build: see BRANCHES\n",
        ),
        (
            "push",
            push("refs/heads/main", "Mend it [skip ci]"),
            "[skip ci] stands in the message of the head commit\n",
        ),
        (
            "issues",
            "{}".to_owned(),
            "the event \"issues\" builds nothing\n",
        ),
    ] {
        let answer = service.answer(delivery(event, &payload)).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, line));
    }
    assert_eq!(service.queued().await, []);
}

#[tokio::test]
async fn another_repository_is_forbidden() {
    let service = Service::start().await;
    let payload = push("refs/heads/main", "").replace("octo/hello", "octo/other");
    let answer = service.answer(delivery("push", &payload)).await;
    let line = "octo/other is not configured here\n";
    assert_eq!((answer.status, answer.body.as_str()), (403, line));
    assert_eq!(service.queued().await, []);
}

#[tokio::test]
async fn a_payload_that_cannot_be_used_is_answered_in_one_line() {
    let service = Service::start().await;
    let good = push("refs/heads/main", "");
    for (payload, line) in [
        (
            "ref=main".to_owned(),
            "the payload cannot be used: expected value at line 1 column 1\n",
        ),
        (
            "{}".to_owned(),
            "the payload cannot be used: missing field `ref` at line 1 column 2\n",
        ),
        (
            good.replace(SHA, "main"),
            "a commit id has 40 or 64 hexadecimal digits\n",
        ),
        (
            good.replace("heads/main", "heads/a b"),
            "not a valid branch, tag or commit name\n",
        ),
        (
            good.replace("octo/hello", "octo"),
            "a repository is written owner/name\n",
        ),
    ] {
        let answer = service.answer(delivery("push", &payload)).await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (400, line),
            "{payload}"
        );
    }
    assert_eq!(service.queued().await, []);
}

#[tokio::test]
async fn the_curl_of_the_first_compose_ci_triggers_a_build() {
    let service = Service::start_as_the_seed().await;
    let form = [("content-type", "application/x-www-form-urlencoded")];
    for revision in [SHA, "feature/x", "v1.0", "0d1a26e"] {
        let body = format!(r#"{{"after": "{revision}"}}"#);
        let answer = service
            .answer(post(&format!("/?token={TOKEN}"), &form, &body))
            .await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        let [request] = service.queued().await.try_into().expect("one build");
        assert_eq!(answer.body, format!("{}\n", request.id));
        assert_eq!(request.revision.to_string(), revision);
        assert_eq!(request.repo.as_str(), "octo/hello");
    }
}

#[tokio::test]
async fn a_manual_trigger_without_a_usable_commit_or_repository_is_told_so() {
    let service = Service::start().await;
    let bearer = [("authorization", "Bearer t0ken")];
    let name_one = "several repositories build here: \
        name one as \"repository\": {\"full_name\": \"owner/name\"}\n";
    for (body, line) in [
        (r#"{"after":"main"}"#, name_one),
        (
            r"{}",
            "the payload cannot be used: missing field `after` at line 1 column 2\n",
        ),
        (
            "",
            "the payload cannot be used: EOF while parsing a value at line 1 column 0\n",
        ),
        (
            r#"{"after":"a b","repository":{"full_name":"corp/x"}}"#,
            "not a valid branch, tag or commit name\n",
        ),
    ] {
        let answer = service.answer(post("/", &bearer, body)).await;
        assert_eq!((answer.status, answer.body.as_str()), (400, line), "{body}");
    }
    let named = r#"{"after":"main","repository":{"full_name":"corp/x"}}"#;
    assert_eq!(service.answer(post("/", &bearer, named)).await.status, 202);
}

#[tokio::test]
async fn without_the_queue_nothing_is_accepted_and_the_health_check_fails() {
    let service = Service::start().await;
    let locked = service.lock_queue();
    let answer = service
        .answer(delivery("push", &push("refs/heads/main", "")))
        .await;
    let line = "the queue cannot be reached, deliver this again later\n";
    assert_eq!((answer.status, answer.body.as_str()), (503, line));
    let answer = service.answer(head("GET", "/healthz", &[])).await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (503, "the queue cannot be reached\n")
    );
    drop(locked);
    let answer = service
        .answer(delivery("push", &push("refs/heads/main", "")))
        .await;
    assert_eq!(answer.status, 202);
    assert_eq!(service.queued().await.len(), 1);
}

#[tokio::test]
async fn a_sender_who_has_nothing_more_to_send_is_answered() {
    let service = Service::start().await;
    let queue_waits = service.lock_queue();
    let mut client = service.connect().await;
    client
        .send(delivery("push", &push("refs/heads/main", "")))
        .await;
    client.close_writing().await;
    let early = client.is_answered_within(Duration::from_millis(200)).await;
    assert!(!early, "nor is the connection closed while the queue waits");
    drop(queue_waits);
    assert_eq!(client.answer().await.status, 202);
}

#[tokio::test]
async fn the_health_check_needs_no_proof() {
    let service = Service::start().await;
    let answer = service.answer(head("GET", "/healthz", &[])).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok\n"));
    let mut client = service.connect().await;
    client.send(head("HEAD", "/healthz", &[])).await;
    assert_eq!(client.answer_to("HEAD").await.status, 200);
}

#[tokio::test]
async fn other_methods_and_paths_are_refused() {
    let service = Service::start().await;
    for (method, target, status) in [
        ("GET", "/", 405),
        ("PUT", "/", 405),
        ("POST", "/healthz", 405),
        ("GET", "/builds", 404),
        ("POST", "//", 404),
    ] {
        let answer = service
            .answer(head(method, target, &[("content-length", "0")]))
            .await;
        assert_eq!(answer.status, status, "{method} {target}");
    }
}
