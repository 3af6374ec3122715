//! What a verified request says: the few fields of its payload that a build needs.

use std::borrow::Cow;

use serde::Deserialize;

use crate::verify::Verified;

/// GitHub's name of the event that builds.
const PUSH: &str = "push";

/// A verified request's JSON, taken out of its form where it came in one.
#[derive(Debug)]
pub(crate) struct Payload<'a> {
    event: Option<&'a str>,
    json: Cow<'a, [u8]>,
}

/// What a request is about.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// A branch or tag was made, moved or deleted.
    Push(Push<'a>),
    /// Somebody asks for a build by hand.
    Manual(Manual<'a>),
    /// GitHub tries the webhook.
    Ping,
    /// A branch or tag was deleted. Push events tell of the same deletion.
    Delete,
    /// Something else that a webhook can be subscribed to.
    Other(&'a str),
}

/// GitHub's push event. Nothing in it is checked yet.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Push<'a> {
    /// `refs/heads/…` or `refs/tags/…`.
    #[serde(borrow, rename = "ref")]
    pub(crate) git_ref: Cow<'a, str>,
    /// What the ref names now: a commit, or the object that is an annotated tag; zeros when it was
    /// deleted.
    #[serde(borrow)]
    pub(crate) after: Cow<'a, str>,
    #[serde(default)]
    pub(crate) deleted: bool,
    #[serde(borrow)]
    pub(crate) repository: Repository<'a>,
    #[serde(borrow)]
    pub(crate) head_commit: Option<HeadCommit<'a>>,
}

/// A trigger by hand. Nothing in it is checked yet.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Manual<'a> {
    /// A commit, branch, tag or short commit id.
    #[serde(borrow)]
    pub(crate) after: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) repository: Option<Repository<'a>>,
    /// `refs/heads/…` or `refs/tags/…`, where the sender knows it.
    #[serde(rename = "ref")]
    pub(crate) git_ref: Option<String>,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Repository<'a> {
    /// `owner/name`.
    #[serde(borrow)]
    pub(crate) full_name: Cow<'a, str>,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct HeadCommit<'a> {
    #[serde(borrow)]
    pub(crate) id: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) message: Cow<'a, str>,
}

/// A payload that says nothing usable, in one line for who sent it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the payload cannot be used: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the form has no field \"payload\"")]
    NoPayload,
}

impl<'a> Payload<'a> {
    pub(crate) fn of(verified: &Verified<'a>) -> Result<Self, Malformed> {
        // `curl -d '{…}'` calls its body a form, though it is JSON.
        let json = if verified.is_form && !looks_like_json(verified.body) {
            form_payload(verified.body).ok_or(Malformed::NoPayload)?
        } else {
            Cow::Borrowed(verified.body)
        };
        Ok(Self {
            event: verified.event,
            json,
        })
    }

    /// Of a push, in JSON, that needs no proof.
    pub(crate) fn of_push(json: &'a str) -> Self {
        Self {
            event: Some(PUSH),
            json: Cow::Borrowed(json.as_bytes()),
        }
    }

    pub(crate) fn event(&self) -> Result<Event<'_>, Malformed> {
        Ok(match self.event {
            None => Event::Manual(serde_json::from_slice(&self.json)?),
            Some(PUSH) => Event::Push(serde_json::from_slice(&self.json)?),
            Some("ping") => Event::Ping,
            Some("delete") => Event::Delete,
            Some(other) => Event::Other(other),
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(event: Option<&'static str>, is_form: bool, body: &'static str) -> Payload<'static> {
        let body = body.as_bytes();
        Payload::of(&Verified {
            event,
            is_form,
            body,
        })
        .expect("a payload")
    }

    fn error(event: Option<&'static str>, is_form: bool, body: &'static str) -> String {
        let body = body.as_bytes();
        match Payload::of(&Verified {
            event,
            is_form,
            body,
        }) {
            Ok(payload) => payload.event().expect_err("no event").to_string(),
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
        assert_eq!(push.repository.full_name, "octo/hello");
        let head = push.head_commit.expect("a commit");
        assert_eq!((&*head.id, &*head.message), ("0d1a", "Mend\nit"));
        assert!(matches!(push.after, Cow::Borrowed(_)));
        assert!(matches!(push.repository.full_name, Cow::Borrowed(_)));
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
        assert_eq!(push.repository.full_name, "octo/hello");
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
            assert_eq!(manual.repository.is_some(), json == full);
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
}
