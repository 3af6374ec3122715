//! The message: the same for every transport.

use std::io;
use std::path::Path;

use lettre::Message;
use lettre::address::Envelope;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Attachment, Mailbox, MessageBuilder, MultiPart};
use shared::build::Build;
use shared::config::ConfigError;
use shared::mask::Secrets;
use shared::words::{self, MailContext};
use uuid::Uuid;

use super::excerpt::read_log;
use super::{MailError, MailHtml};

/// From whom, to whom.
#[derive(Debug, Clone)]
pub(super) struct Addresses {
    pub(super) from: Mailbox,
    /// At least one.
    to: Vec<Mailbox>,
}

impl Addresses {
    /// Reads the addresses that these variables hold.
    pub(super) fn new(
        (from_variable, from): (&'static str, &str),
        (to_variable, to): (&'static str, &[String]),
    ) -> Result<Self, ConfigError> {
        let to = to.iter().map(|text| address(to_variable, text));
        let to = to.collect::<Result<Vec<_>, _>>()?;
        if to.is_empty() {
            return Err(ConfigError {
                variable: to_variable,
                problem: "no address".to_owned(),
            });
        }
        Ok(Self {
            from: address(from_variable, from)?,
            to,
        })
    }
}

fn address(variable: &'static str, text: &str) -> Result<Mailbox, ConfigError> {
    text.parse().map_err(|_| ConfigError {
        variable,
        problem: format!("not a mail address: {}", words::one_line(text)),
    })
}

/// The message as it goes over the wire, which is the same for every transport.
pub(super) async fn compose(
    addresses: &Addresses,
    build: &Build,
    context: &MailContext<'_>,
    log: &Path,
    html: MailHtml,
    secrets: &Secrets,
) -> Result<(Envelope, Vec<u8>), MailError> {
    let path = log.to_owned();
    let read = tokio::task::spawn_blocking(move || read_log(&path));
    let read = read
        .await
        .unwrap_or_else(|panic| Err(io::Error::other(panic)));
    let (excerpt, attachment) = read.map_err(|error| {
        MailError::Transient(format!("reading the log {}: {error}", log.display()))
    })?;
    let body = body(
        secrets.mask(&words::mail_text(build, context, &excerpt)),
        secrets.mask(&html(build, context, &excerpt)),
        attachment,
    );
    let message = headers(addresses, build, secrets)
        .multipart(body)
        .expect("there is a sender and a recipient");
    Ok((message.envelope().clone(), message.formatted()))
}

fn headers(addresses: &Addresses, build: &Build, secrets: &Secrets) -> MessageBuilder {
    let domain = addresses.from.email.domain();
    let thread = format!("<{}@{domain}>", thread_id(build));
    let date = build.ended_at.unwrap_or(build.claimed_at);
    let mut headers = Message::builder()
        .from(addresses.from.clone())
        .subject(secrets.mask(&words::mail_subject(build)))
        .date(date)
        .message_id(Some(format!("<{}@{domain}>", build.request.id)))
        .in_reply_to(thread.clone())
        .references(thread)
        // RFC 3834: nobody's holiday note answers it.
        .raw_header(HeaderValue::new(
            HeaderName::new_from_ascii_str("Auto-Submitted"),
            "auto-generated".to_owned(),
        ));
    for to in &addresses.to {
        headers = headers.to(to.clone());
    }
    headers
}

/// The mails of one branch refer to one message, which never existed, and so are one thread.
fn thread_id(build: &Build) -> Uuid {
    let repo = build.request.repo.as_str().to_ascii_lowercase();
    let branch = build.request.ref_name().unwrap_or_default();
    Uuid::new_v5(
        &Uuid::NAMESPACE_URL,
        format!("{repo}/tree/{branch}").as_bytes(),
    )
}

fn body(text: String, html: String, attachment: Option<Vec<u8>>) -> MultiPart {
    let readable = MultiPart::alternative_plain_html(text, html);
    let Some(log) = attachment else {
        return readable;
    };
    let gzip = ContentType::parse("application/gzip").expect("a media type");
    MultiPart::mixed()
        .multipart(readable)
        .singlepart(Attachment::new("build.log.gz".to_owned()).body(log, gzip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::build::Outcome;
    use shared::build::samples::ended;

    #[test]
    fn mails_of_one_branch_are_one_thread() {
        let main = ended(Outcome::Passed, 1);
        let mut other = main.clone();
        other.request.git_ref = Some("refs/heads/other".parse().expect("ref"));
        let mut shouted = main.clone();
        shouted.request.repo = "OCTO/Hello".parse().expect("repo");
        assert_eq!(thread_id(&main), thread_id(&shouted));
        assert_ne!(thread_id(&main), thread_id(&other));
    }
}
