//! The emulator's SES: an account in the sandbox, as every new one is.

use serde::Deserialize;

use super::{Aws, REGION};
use crate::smtp::{self, Mail};

/// What the emulator keeps of a message.
#[derive(Deserialize)]
struct Sent {
    source: String,
    destinations: Vec<String>,
    message: String,
}

impl Aws {
    /// Verifies an address or a domain: mail from it and, being in the sandbox, to it is taken.
    ///
    /// # Panics
    /// When the emulator refuses.
    pub async fn verify_email(&self, identity: &str) {
        let headers = format!(
            "content-type: application/x-www-form-urlencoded\r\n\
             authorization: AWS4-HMAC-SHA256 Credential=id/20260101/{REGION}/ses/aws4_request, \
             SignedHeaders=host, Signature=0\r\n"
        );
        let body = form_urlencoded::Serializer::new(String::new())
            .append_pair("Action", "VerifyEmailIdentity")
            .append_pair("Version", "2010-12-01")
            .append_pair("EmailAddress", identity)
            .finish();
        let answer = self.post("/", &headers, &body).await;
        assert!(answer.contains(" 200 "), "{identity}: {answer}");
    }

    /// Refuses the next mail with this HTTP status, code and text.
    ///
    /// # Panics
    /// When the emulator does not answer.
    pub async fn refuse_mail(&self, status: u16, code: &str, text: &str) {
        let path = format!("/control/ses/refuse/{status}/{code}");
        let answer = self.post(&path, "", text).await;
        assert!(answer.contains(" 204 "), "{code}: {answer}");
    }

    /// The mails that were taken, oldest first.
    ///
    /// # Panics
    /// When the emulator does not answer.
    pub async fn sent_mails(&self) -> Vec<Mail> {
        self.wait_for_mails(0).await
    }

    /// Waits until at least `count` mails were taken, and answers all of them.
    ///
    /// # Panics
    /// When there are fewer after half a minute.
    pub async fn wait_for_mails(&self, count: usize) -> Vec<Mail> {
        let answer = self
            .post(&format!("/control/ses/sent/{count}"), "", "")
            .await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        assert!(head.contains(" 200 "), "{count} mails: {answer}");
        let sent: Vec<Sent> = serde_json::from_str(body).expect("a list of messages");
        sent.into_iter().map(Mail::from).collect()
    }
}

impl From<Sent> for Mail {
    fn from(sent: Sent) -> Self {
        Self {
            from: sent.source,
            to: sent.destinations.join(", "),
            ..smtp::parse(sent.message.into_bytes())
        }
    }
}
