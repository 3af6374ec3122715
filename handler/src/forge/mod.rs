//! What differs from forge to forge: how the head of a request tells what it delivers, and how its
//! payload is read.

mod github;

use std::borrow::Cow;

use axum::http::HeaderMap;
use shared::build::{BuildId, ForgeKind};

use crate::event::{Event, Malformed};
use crate::verify::{Signature, Verified};

/// What the head of a request tells. No signature covers it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delivery<'a> {
    /// The forge that has sent it, or whose words a manual trigger uses.
    pub(crate) forge: ForgeKind,
    /// The same when it is delivered again; a manual trigger has none.
    pub(crate) id: Option<&'a str>,
    /// The event's name, in the forge's words; a manual trigger has none.
    pub(crate) event: Option<&'a str>,
    /// The signature of the body.
    pub(crate) signature: Option<Signature>,
    is_form: bool,
}

/// The JSON of a delivery, taken out of its form where it came in one.
#[derive(Debug)]
pub(crate) struct Payload<'a> {
    delivery: Delivery<'a>,
    json: Cow<'a, [u8]>,
}

impl<'a> Delivery<'a> {
    /// Reads the head of a request.
    pub(crate) fn of(headers: &'a HeaderMap) -> Self {
        github::delivery(headers)
    }

    /// The delivery of a push that never came in: the forge itself has told of it.
    #[cfg(feature = "reconcile")]
    pub(crate) fn of_missed_push(forge: ForgeKind, id: &'a str) -> Self {
        let event = match forge {
            ForgeKind::Github => github::PUSH,
        };
        Self {
            forge,
            id: Some(id),
            event: Some(event),
            signature: None,
            is_form: false,
        }
    }

    /// The build that it asks for: the same delivery, the same build. Without an id every request is
    /// a new one.
    pub(crate) fn build_id(&self, status_context: &str) -> BuildId {
        match (self.forge, self.id) {
            (ForgeKind::Github, Some(guid)) => BuildId::from_delivery(guid, status_context),
            (ForgeKind::Github, None) => BuildId::random(),
        }
    }
}

impl<'a> Payload<'a> {
    /// Takes the JSON out of a body.
    pub(crate) fn of(delivery: Delivery<'a>, body: &Verified<'a>) -> Result<Self, Malformed> {
        let json = match delivery.forge {
            ForgeKind::Github => github::json(delivery.is_form, body.bytes)?,
        };
        Ok(Self { delivery, json })
    }

    /// The JSON that the forge itself was asked for; it needs no proof.
    #[cfg(feature = "reconcile")]
    pub(crate) fn of_forge(delivery: Delivery<'a>, json: &'a str) -> Self {
        let json = Cow::Borrowed(json.as_bytes());
        Self { delivery, json }
    }

    /// Reads the few fields that a build needs.
    pub(crate) fn event(&self) -> Result<Event<'_>, Malformed> {
        match self.delivery.forge {
            ForgeKind::Github => github::event(self.delivery.event, &self.json),
        }
    }
}
