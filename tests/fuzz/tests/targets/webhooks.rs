//! Webhooks up to the decision, and the messages of the queue.

use std::fs;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use fuzz::fuzz;
use fuzz::mutation::{Text, mutated};
use handler::webhook::Judge;
use hmac::{Hmac, KeyInit, Mac};
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use serde_json::Value;
use sha2::Sha256;
use shared::build::{BuildRequest, GitRef, Revision};
use shared::config::WebhookConfig;
use shared::message::Message;

const TOKEN: &str = "t0ken";
const SECRET: &str = "It's a Secret to Everybody";
const REPOS: &str = "octo/hello,Codertocat/*";

const PUSH: &str = r#"{"ref":"refs/heads/main","after":"0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c","deleted":false,"repository":{"full_name":"octo/hello"},"head_commit":{"id":"5b1ed9d5be1e5a2d1c5d5a0c0a8e7f3f4a6b7c8d","message":"a \"message\"\n\u00e9"}}"#;
const TAG: &str = r#"{"ref":"refs/tags/v1","after":"0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c","repository":{"full_name":"octo/hello"},"head_commit":{"id":"5b1ed9d5be1e5a2d1c5d5a0c0a8e7f3f4a6b7c8d","message":""}}"#;
const MANUAL: &str =
    r#"{"after":"main","ref":"refs/heads/main","repository":{"full_name":"octo/hello"}}"#;
const FORM: &str = "payload=%7B%22after%22%3A%22v1.0%22%2C%22repository%22%3A%7B%22full_name%22%3A%22octo%2Fhello%22%7D%7D";

const JSON_WORDS: &[&str] = &[
    "\"",
    "\\",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "null",
    "true",
    "1e999",
    "-0",
    "\\u0000",
    "\\ud800",
    "\\u2028",
    "\\n",
    "\u{202e}",
    "\u{0}",
    "é",
    "/",
    "..",
    "@{",
    ".lock",
    "refs/heads/",
    "refs/tags/",
    "[skip ci]",
    "octo/hello",
    "Codertocat/x",
    "/../",
    "0000000000000000000000000000000000000000",
    "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c",
    "\"after\":\"main\",",
    "\"deleted\":true,",
    "\"head_commit\":null,",
    "\"ref\":\"refs/heads/x\",",
    "payload=",
    "&",
    "%00",
    "%7B",
    "+",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
];

fn judge(token: Option<&str>, secrets: &[&str]) -> Judge {
    Judge::new(&WebhookConfig {
        token: token.map(Into::into),
        secrets: secrets.iter().map(|&secret| secret.into()).collect(),
        repos: REPOS.parse().expect("repositories"),
        branches: Default::default(),
        status_context: "ci".to_owned(),
    })
}

/// The payloads of GitHub's own examples, less what stands in them for no reader here.
fn payloads() -> Vec<Vec<u8>> {
    let mut samples: Vec<Vec<u8>> = [PUSH, TAG, MANUAL, FORM, ""].map(Into::into).into();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/webhooks");
    for path in ["push/1.json", "push/5.json", "ping/4.json", "delete/1.json"] {
        samples.push(fs::read(format!("{folder}/{path}")).expect("an example"));
    }
    samples
}

fn event_name() -> impl Strategy<Value = Option<&'static str>> {
    // A push more often than anything else: it is read most deeply.
    select(
        &[
            Some("push"),
            Some("push"),
            None,
            Some("ping"),
            Some("delete"),
            Some("crea\tte"),
        ][..],
    )
}

/// What a head may say; some of it proves the request.
#[derive(Debug, Clone)]
struct Head {
    event: Option<&'static str>,
    delivery: Option<Text>,
    content_type: Option<Text>,
    authorization: Option<Text>,
    signature: Option<Text>,
    signs: bool,
    query: Option<String>,
}

fn head() -> impl Strategy<Value = Head> {
    let words = &[
        "Bearer ",
        "token ",
        TOKEN,
        "sha256=",
        " ",
        "\t",
        "=",
        "é",
        "application/json",
    ];
    let header = move |samples: &[&str]| {
        let samples = samples.iter().map(|sample| (*sample).into()).collect();
        option::of(mutated(samples, words))
    };
    let signature = format!("sha256={}", "0f".repeat(32));
    (
        event_name(),
        header(&["72d3162e-cc78-11e3-81ab-4c9367dc0958", ""]),
        header(&["application/json", "application/x-www-form-urlencoded"]),
        header(&["Bearer t0ken", "token t0ken"]),
        header(&[&signature, "sha256="]),
        any::<bool>(),
        option::of(prop_oneof![
            Just(format!("token={TOKEN}")),
            "(token|a)=[t0ken%&=+]{0,8}(&token=t0ken)?",
        ]),
    )
        .prop_map(
            |(event, delivery, content_type, authorization, signature, signs, query)| Head {
                event,
                delivery,
                content_type,
                authorization,
                signature,
                signs,
                query,
            },
        )
}

impl Head {
    fn headers(&self, body: &[u8]) -> HeaderMap {
        let signed = self.signs.then(|| Text(signature(body).into_bytes()));
        let event = self.event.map(|name| Text(name.into()));
        let named = [
            ("x-github-event", &event),
            ("x-github-delivery", &self.delivery),
            ("content-type", &self.content_type),
            ("authorization", &self.authorization),
            (
                "x-hub-signature-256",
                if self.signs { &signed } else { &self.signature },
            ),
        ];
        let values = named.into_iter().filter_map(|(name, text)| {
            // Others never reach the webhook: the server refuses them.
            let value = HeaderValue::from_bytes(&text.as_ref()?.0).ok()?;
            Some((HeaderName::from_static(name), value))
        });
        values.collect()
    }

    fn bears_token(&self) -> bool {
        let Some(Text(value)) = &self.authorization else {
            return false;
        };
        let value = value.trim_ascii_end();
        value.ends_with(TOKEN.as_bytes())
    }
}

fn signature(body: &[u8]) -> String {
    let mut hmac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length");
    hmac.update(body);
    let digits = hmac.finalize().into_bytes();
    let hex: String = digits.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={hex}")
}

#[test]
fn nobody_builds_without_proof() {
    let (signed, by_token) = (judge(Some(TOKEN), &[SECRET]), judge(Some(TOKEN), &[]));
    fuzz(
        "webhooks",
        (head(), mutated(payloads(), JSON_WORDS)),
        |(head, Text(body))| {
            let headers = head.headers(&body);
            let query = head.query.as_deref();
            let judged = signed.judge(query, &headers, &body);
            assert!(
                judged.is_err() || head.signs || head.bears_token(),
                "{judged:?}"
            );
            assert_is_one_line(&judged);

            let judged = by_token.judge(query, &headers, &body);
            let in_url = query.is_some_and(|query| query.contains("token="));
            assert!(
                judged.is_err() || in_url || head.bears_token(),
                "{judged:?}"
            );
            assert_is_one_line(&judged);
        },
    );
}

#[test]
fn events_ask_for_the_build_that_they_name() {
    let judge = judge(Some(TOKEN), &[]);
    let inputs = (event_name(), any::<bool>(), mutated(payloads(), JSON_WORDS));
    fuzz("events", inputs, |(event, is_form, Text(body))| {
        let content_type = match is_form {
            true => "application/x-www-form-urlencoded",
            false => "application/json",
        };
        let mut headers = HeaderMap::new();
        headers.insert("authorization", HeaderValue::from_static("Bearer t0ken"));
        headers.insert("content-type", HeaderValue::from_static(content_type));
        if let Some(event) = event {
            headers.insert("x-github-event", HeaderValue::from_static(event));
        }
        let judged = judge.judge(None, &headers, &body);
        assert_is_one_line(&judged);
        if let Ok(Some(request)) = judged {
            assert!(matches!(event, None | Some("push")), "{event:?} builds");
            assert_is_sound(&request);
            if let Ok(json) = serde_json::from_slice(&body) {
                assert_is_named(&request, event.is_some(), &json);
            }
        }
    });
}

fn assert_is_one_line(judged: &Result<Option<BuildRequest>, String>) {
    if let Err(why) = judged {
        assert!(!why.contains(char::is_control), "{why:?}");
        assert!(!why.contains(SECRET) && !why.contains(TOKEN), "{why:?}");
    }
}

/// It fits into a message, and comes out of it as it is.
fn assert_is_sound(request: &BuildRequest) {
    let allowed = request.repo.as_str() == "octo/hello"
        || request.repo.owner().eq_ignore_ascii_case("codertocat")
        || request.repo.as_str().eq_ignore_ascii_case("octo/hello");
    assert!(allowed, "{request:?}");
    let message = Message::V2(request.clone());
    let encoded = message.encode();
    assert!(encoded.len() < 2048, "{} bytes: {encoded}", encoded.len());
    assert_eq!(Message::decode(&encoded).as_ref(), Ok(&message));
}

/// The request is what another reader finds in the payload.
fn assert_is_named(request: &BuildRequest, is_push: bool, json: &Value) {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    assert_eq!(
        text(&json["repository"]["full_name"]).unwrap_or("octo/hello".into()),
        request.repo.as_str()
    );
    let git_ref = request.git_ref.as_ref().map(|git_ref| match git_ref {
        GitRef::Branch(name) => format!("refs/heads/{name}"),
        GitRef::Tag(name) => format!("refs/tags/{name}"),
    });
    assert_eq!(text(&json["ref"]), git_ref);
    let is_tag = is_push && matches!(request.git_ref, Some(GitRef::Tag(_)));
    let revision = match json["head_commit"].as_object() {
        Some(head) if is_tag => text(&head["id"]),
        _ => text(&json["after"]),
    };
    let revision = revision.expect("a revision");
    match &request.revision {
        Revision::Commit(commit) => assert_eq!(commit.as_str(), revision.to_ascii_lowercase()),
        Revision::Name(name) => assert_eq!(name.as_str(), revision),
    }
}

#[test]
fn messages_that_are_read_are_written_as_they_were() {
    let samples = [
        r#"{"version":"1","id":"67e55044-10b1-426f-9247-bb680e5fe0c8","repo":"octo/hello","revision":{"commit":"0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c"},"git_ref":{"branch":"main"}}"#,
        r#"{"version":"1","id":"67e55044-10b1-426f-9247-bb680e5fe0c8","repo":"octo/hello","revision":{"name":"v1.0"}}"#,
        r#"{"version":"2","forge":"github","id":"67e55044-10b1-426f-9247-bb680e5fe0c8","repo":"octo/hello","revision":{"commit":"0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c"},"git_ref":{"tag":"main"}}"#,
    ];
    let words = &[
        "\"",
        "\\",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "null",
        "\\u0000",
        "\\ud800",
        "\\\"",
        "\"\\\\",
        "1",
        "2",
        "3",
        "/",
        "..",
        "@{",
        "é",
        "\u{202e}",
        "tag",
        "branch",
        "name",
        "commit",
        "github",
        "version",
        "\"git_ref\":null,",
        "\"version\":\"2\",",
        "\"id\":\"x\",",
        "{\"version\":",
    ];
    let samples = samples.map(Into::into).into();
    fuzz("messages", mutated(samples, words), |Text(bytes)| {
        let body = String::from_utf8_lossy(&bytes);
        match Message::decode(&body) {
            Ok(message) => {
                let encoded = message.encode();
                assert!(encoded.len() < 2048, "{} bytes: {encoded}", encoded.len());
                assert_eq!(Message::decode(&encoded).as_ref(), Ok(&message));
                let repo = message.request().repo.as_str();
                assert!(
                    !repo.contains("..") || repo.split('/').all(|part| part != ".."),
                    "{repo}"
                );
            }
            Err(why) => assert!(!why.to_string().contains(char::is_control), "{why}"),
        }
    });
}
