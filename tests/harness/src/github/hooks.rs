//! Webhooks, and what became of the deliveries to them.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::payload::sign;

/// GitHub gives up on a webhook that does not answer in this time.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long GitHub remembers a delivery.
const REMEMBERED: Duration = Duration::from_secs(3 * 24 * 60 * 60);
/// The status codes that GitHub notes where there was no answer.
const NOT_REACHED: u16 = 502;
const NO_ANSWER_IN_TIME: u16 = 504;

/// A webhook that GitHub has been told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook(pub(super) u64);

/// What became of one attempt to deliver an event.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// GitHub's number of it.
    pub id: u64,
    /// What all attempts to deliver the event have in common.
    pub guid: String,
    /// What the webhook answered, or GitHub's code for no answer.
    pub status_code: u16,
    pub(super) event: String,
    pub(super) payload: Value,
    pub(super) is_redelivery: bool,
    pub(super) delivered_at: SystemTime,
}

/// A webhook with all that was delivered to it, oldest first.
#[derive(Debug)]
pub(super) struct KnownHook {
    pub(super) id: u64,
    /// `owner/name`, or the name of an organization.
    pub(super) owner: String,
    pub(super) url: String,
    pub(super) secret: Option<String>,
    pub(super) deliveries: Vec<Delivery>,
}

impl KnownHook {
    /// The deliveries that GitHub has not forgotten yet, oldest first.
    pub(super) fn remembered(&self) -> impl DoubleEndedIterator<Item = &Delivery> {
        let is_remembered = |delivery: &&Delivery| {
            let age = delivery.delivered_at.elapsed();
            age.unwrap_or_default() < REMEMBERED
        };
        self.deliveries.iter().filter(is_remembered)
    }

    pub(super) fn json(&self) -> Value {
        let secret = self.secret.as_ref().map(|_| "********");
        json!({
            "type": "Repository",
            "id": self.id,
            "name": "web",
            "active": true,
            "events": ["push"],
            "config": { "url": self.url, "content_type": "json", "secret": secret },
        })
    }
}

impl Delivery {
    /// As in a list of deliveries.
    pub(super) fn json(&self) -> Value {
        json!({
            "id": self.id,
            "guid": self.guid,
            "delivered_at": humantime::format_rfc3339_seconds(self.delivered_at).to_string(),
            "redelivery": self.is_redelivery,
            "duration": 0.1,
            "status": if self.status_code < 300 { "OK" } else { "failed" },
            "status_code": self.status_code,
            "event": self.event,
            "action": null,
        })
    }

    /// As it is answered alone: with what was sent.
    pub(super) fn whole_json(&self) -> Value {
        let mut whole = self.json();
        whole["request"] = json!({
            "headers": { "X-GitHub-Event": self.event, "X-GitHub-Delivery": self.guid },
            "payload": self.payload,
        });
        whole
    }
}

/// An event that is to be delivered.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) url: String,
    pub(super) secret: Option<String>,
    pub(super) guid: String,
    pub(super) name: String,
    pub(super) payload: Value,
    pub(super) is_redelivery: bool,
}

impl Event {
    /// One that nobody was told of yet.
    pub(super) fn new(hook: &KnownHook, name: &str, payload: &Value) -> Self {
        Self {
            url: hook.url.clone(),
            secret: hook.secret.clone(),
            guid: Uuid::new_v4().to_string(),
            name: name.to_owned(),
            payload: payload.clone(),
            is_redelivery: false,
        }
    }

    /// The same once more.
    pub(super) fn again(hook: &KnownHook, delivery: &Delivery) -> Self {
        Self {
            guid: delivery.guid.clone(),
            is_redelivery: true,
            ..Self::new(hook, &delivery.event, &delivery.payload)
        }
    }

    /// Delivers it over HTTP; the number is given when it is noted.
    pub(super) async fn deliver(self) -> Delivery {
        let status_code = self.post().await;
        Delivery {
            id: 0,
            guid: self.guid,
            status_code,
            event: self.name,
            payload: self.payload,
            is_redelivery: self.is_redelivery,
            delivered_at: SystemTime::now(),
        }
    }

    async fn post(&self) -> u16 {
        let body = self.payload.to_string();
        // An error says that the process has a provider already, which serves as well.
        let provider = rustls::crypto::ring::default_provider();
        provider.install_default().ok();
        let client = reqwest::Client::builder().timeout(DELIVERY_TIMEOUT).build();
        let client = client.expect("the client's settings are valid");
        let mut request = client
            .post(&self.url)
            .header("content-type", "application/json")
            .header("user-agent", "GitHub-Hookshot/044aadd")
            .header("x-github-event", &self.name)
            .header("x-github-delivery", &self.guid);
        if let Some(secret) = &self.secret {
            request = request.header("x-hub-signature-256", sign(secret, body.as_bytes()));
        }
        match request.body(body).send().await {
            Ok(answer) => answer.status().as_u16(),
            Err(error) if error.is_timeout() => NO_ANSWER_IN_TIME,
            Err(_) => NOT_REACHED,
        }
    }
}
