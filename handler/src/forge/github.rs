//! GitHub's webhook: its headers, and the payloads of its events.
//!
//! <https://docs.github.com/en/webhooks/webhook-events-and-payloads>

use std::borrow::Cow;

use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use serde::Deserialize;
use shared::build::{ForgeKind, InvalidName};

use super::Delivery;
use crate::event::{Event, HeadCommit, Malformed, Manual, Push};
use crate::verify::Signature;

/// The name of the event that builds.
pub(super) const PUSH: &str = "push";

/// The event's name.
const EVENT: &str = "x-github-event";
/// The GUID of the delivery.
const DELIVERY: &str = "x-github-delivery";
/// `sha256=` and the digits of the body's HMAC.
const SIGNATURE: &str = "x-hub-signature-256";

/// Reads the head of a delivery, or of a manual trigger, which has none of these headers.
pub(super) fn delivery(headers: &HeaderMap) -> Delivery<'_> {
    let is_form = |value: &[u8]| value.starts_with(b"application/x-www-form-urlencoded");
    let content_type = headers.get(CONTENT_TYPE);
    Delivery {
        forge: ForgeKind::Github,
        id: headers.get(DELIVERY).and_then(|guid| guid.to_str().ok()),
        event: headers
            .get(EVENT)
            .map(|name| name.to_str().unwrap_or("unreadable")),
        signature: signature(headers),
        is_form: content_type.is_some_and(|value| is_form(value.as_bytes())),
    }
}

/// Takes the JSON out of a body, which may be a form.
pub(super) fn json(is_form: bool, body: &[u8]) -> Result<Cow<'_, [u8]>, Malformed> {
    // `curl -d '{…}'` calls its body a form, though it is JSON.
    match is_form && !looks_like_json(body) {
        true => form_payload(body).ok_or(Malformed::NoPayload),
        false => Ok(Cow::Borrowed(body)),
    }
}

/// Reads the JSON of the event of this name; without one, that of a manual trigger, which looks like
/// a push.
pub(super) fn event<'a>(name: Option<&'a str>, json: &'a [u8]) -> Result<Event<'a>, Malformed> {
    Ok(match name {
        None => Event::Manual(serde_json::from_slice::<ManualJson<'_>>(json)?.try_into()?),
        Some(PUSH) => Event::Push(serde_json::from_slice::<PushJson<'_>>(json)?.try_into()?),
        Some("ping") => Event::Ping,
        Some("delete") => Event::Delete,
        Some(other) => Event::Other(other),
    })
}

#[derive(Deserialize)]
struct PushJson<'a> {
    #[serde(borrow, rename = "ref")]
    git_ref: Cow<'a, str>,
    #[serde(borrow)]
    after: Cow<'a, str>,
    #[serde(default)]
    deleted: bool,
    #[serde(borrow)]
    repository: RepositoryJson<'a>,
    #[serde(borrow)]
    head_commit: Option<CommitJson<'a>>,
}

#[derive(Deserialize)]
struct ManualJson<'a> {
    #[serde(borrow)]
    after: Cow<'a, str>,
    #[serde(borrow)]
    repository: Option<RepositoryJson<'a>>,
    #[serde(rename = "ref")]
    git_ref: Option<String>,
}

#[derive(Deserialize)]
struct RepositoryJson<'a> {
    #[serde(borrow)]
    full_name: Cow<'a, str>,
}

#[derive(Deserialize)]
struct CommitJson<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    message: Cow<'a, str>,
}

impl<'a> TryFrom<PushJson<'a>> for Push<'a> {
    type Error = InvalidName;

    fn try_from(json: PushJson<'a>) -> Result<Self, Self::Error> {
        let head_commit = json.head_commit.map(|commit| HeadCommit {
            id: commit.id,
            message: commit.message,
        });
        Ok(Self {
            repo: json.repository.name()?,
            git_ref: json.git_ref,
            after: json.after,
            deleted: json.deleted,
            head_commit,
        })
    }
}

impl<'a> TryFrom<ManualJson<'a>> for Manual<'a> {
    type Error = InvalidName;

    fn try_from(json: ManualJson<'a>) -> Result<Self, Self::Error> {
        Ok(Self {
            after: json.after,
            repo: json.repository.map(RepositoryJson::name).transpose()?,
            git_ref: json.git_ref,
        })
    }
}

impl<'a> RepositoryJson<'a> {
    /// `owner/name`: GitHub has no groups within groups.
    fn name(self) -> Result<Cow<'a, str>, InvalidName> {
        match self.full_name.matches('/').count() {
            0 | 1 => Ok(self.full_name),
            _ => Err(InvalidName::Repo),
        }
    }
}

fn looks_like_json(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"{")
}

fn form_payload(body: &[u8]) -> Option<Cow<'_, [u8]>> {
    let (_, payload) = form_urlencoded::parse(body).find(|(name, _)| name == "payload")?;
    Some(match payload {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    })
}

fn signature(headers: &HeaderMap) -> Option<Signature> {
    let value = headers.get(SIGNATURE)?.as_bytes();
    decode_hex(value.strip_prefix(b"sha256=")?)
}

fn decode_hex(digits: &[u8]) -> Option<Signature> {
    let value = |digit: u8| {
        char::from(digit)
            .to_digit(16)
            .and_then(|value| u8::try_from(value).ok())
    };
    let (pairs, []) = digits.as_chunks::<2>() else {
        return None;
    };
    let mut bytes = Signature::default();
    if pairs.len() != bytes.len() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = value(*high)? << 4 | value(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forge::Payload;
    use crate::verify::Verified;

    fn payload(event: Option<&'static str>, is_form: bool, body: &'static str) -> Payload<'static> {
        let delivery = Delivery {
            forge: ForgeKind::Github,
            id: None,
            event,
            signature: None,
            is_form,
        };
        let bytes = body.as_bytes();
        Payload::of(delivery, &Verified { bytes }).expect("a payload")
    }

    fn error(name: Option<&str>, is_form: bool, body: &str) -> String {
        match json(is_form, body.as_bytes()) {
            Ok(json) => event(name, &json).expect_err("no event").to_string(),
            Err(malformed) => malformed.to_string(),
        }
    }

    const PUSH_JSON: &str = r#"{"ref":"refs/heads/main","before":"x","after":"0d1a","created":false,
        "deleted":false,"repository":{"id":1,"full_name":"octo/hello","owner":{"login":"octo"}},
        "commits":[{"message":"[skip ci]"}],"head_commit":{"id":"0d1a","message":"Mend\nit"}}"#;

    #[test]
    fn a_push_is_read_without_copying_its_plain_strings() {
        let payload = payload(Some("push"), false, PUSH_JSON);
        let Ok(Event::Push(push)) = payload.event() else {
            panic!("a push");
        };
        assert_eq!(push.git_ref, "refs/heads/main");
        assert_eq!(push.after, "0d1a");
        assert_eq!(push.repo, "octo/hello");
        let head = push.head_commit.expect("a commit");
        assert_eq!((&*head.id, &*head.message), ("0d1a", "Mend\nit"));
        assert!(matches!(push.after, Cow::Borrowed(_)));
        assert!(matches!(push.repo, Cow::Borrowed(_)));
    }

    #[test]
    fn a_deleting_push_has_no_head_commit() {
        let json = r#"{"ref":"refs/heads/x","after":"0","deleted":true,"head_commit":null,
            "repository":{"full_name":"octo/hello"}}"#;
        let payload = payload(Some("push"), false, json);
        let Ok(Event::Push(push)) = payload.event() else {
            panic!("a push");
        };
        assert!(push.deleted && push.head_commit.is_none());
    }

    #[test]
    fn a_form_carries_the_same_event() {
        let form = "x=y&payload=%7B%22ref%22%3A%22refs%2Fheads%2F%C3%BC+%2B%22%2C%22after%22%3A%220d1a%22%2C\
            %22repository%22%3A%7B%22full_name%22%3A%22octo%2Fhello%22%7D%7D";
        let payload = payload(Some("push"), true, form);
        let Ok(Event::Push(push)) = payload.event() else {
            panic!("a push");
        };
        assert_eq!(push.git_ref, "refs/heads/ü +");
        assert_eq!(push.repo, "octo/hello");
    }

    #[test]
    fn a_manual_trigger_has_no_event_name() {
        let full = r#" {"after":"v1.0","ref":"refs/tags/v1.0","repository":{"full_name":"a/b"}}"#;
        // `curl -d` says that everything is a form.
        for (is_form, json) in [(false, full), (true, full), (true, r#"{"after":"v1.0"}"#)] {
            let payload = payload(None, is_form, json);
            let Ok(Event::Manual(manual)) = payload.event() else {
                panic!("a manual trigger: {json}");
            };
            assert_eq!(manual.after, "v1.0");
            assert_eq!(manual.git_ref.is_some(), json == full);
            assert_eq!(manual.repo.is_some(), json == full);
        }
    }

    #[test]
    fn events_that_never_build_are_not_parsed() {
        for (name, event) in [
            ("ping", Event::Ping),
            ("delete", Event::Delete),
            ("issues", Event::Other("issues")),
            ("Push", Event::Other("Push")),
        ] {
            assert_eq!(
                payload(Some(name), false, "no json")
                    .event()
                    .expect("an event"),
                event
            );
        }
    }

    #[test]
    fn a_payload_that_cannot_be_used_is_told_in_one_line() {
        let unusable = "the payload cannot be used: ";
        for (event, is_form, body, line) in [
            (
                None,
                false,
                "",
                "EOF while parsing a value at line 1 column 0",
            ),
            (
                None,
                false,
                "{}",
                "missing field `after` at line 1 column 2",
            ),
            (
                None,
                false,
                r#"{"after":1}"#,
                "invalid type: integer `1`, expected a string at line 1 column 10",
            ),
            (
                Some("push"),
                false,
                "<xml>",
                "expected value at line 1 column 1",
            ),
            (
                Some("push"),
                true,
                "payload=",
                "EOF while parsing a value at line 1 column 0",
            ),
            (
                Some("push"),
                false,
                r#"{"after":"a","ref":"b"}"#,
                "missing field `repository` at line 1 column 23",
            ),
        ] {
            assert_eq!(
                error(event, is_form, body),
                format!("{unusable}{line}"),
                "{body}"
            );
        }
        assert_eq!(
            error(Some("push"), true, "a=b"),
            "the form has no field \"payload\""
        );
    }

    #[test]
    fn a_repository_lies_in_no_group_within_a_group() {
        let push = r#"{"ref":"refs/heads/x","after":"0","repository":{"full_name":"a/b/c"}}"#;
        let manual = r#"{"after":"0","repository":{"full_name":"a/b/c"}}"#;
        for (event, body) in [(Some("push"), push), (None, manual)] {
            let told = error(event, false, body);
            assert_eq!(told, "a repository is written owner/name");
        }
    }
}
