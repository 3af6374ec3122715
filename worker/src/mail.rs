//! Mail about builds: the message, and the ways to send it.

mod excerpt;
mod message;
mod smtp;
mod ses;

use std::path::Path;
use std::time::Duration;

use shared::config::{MailConfig, MailOn};
use shared::net::aws;

use self::message::{Addresses, compose};
use self::ses::Ses;
use self::smtp::Smtp;
use crate::outcome::Outcome;
use crate::record::Build;
use crate::render::{self, MailContext};

/// How long the server may take for all of a small message.
const SEND_DEADLINE: Duration = Duration::from_secs(30);
/// The slowest line, in bytes a second, over which a large message still arrives in time.
const SLOWEST_LINE: usize = 128 * 1024;

/// Tells people by mail how a build ended, if the configuration names any.
#[derive(Debug, Clone)]
pub struct Mailer(Option<Post>);

/// To whom mail goes, about what, and by which way.
#[derive(Debug, Clone)]
struct Post {
    addresses: Addresses,
    on: MailOn,
    transport: Transport,
}

/// The ways to send a message. All of them send the same one.
#[derive(Debug, Clone)]
enum Transport {
    Smtp(Box<Smtp>),
    Ses(Ses),
}

/// Why a mail was not sent, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MailError {
    /// A later attempt may succeed, be it because somebody mends the settings.
    #[error("{0}")]
    Transient(String),
    /// This very mail, or one of its recipients, is not wanted.
    #[error("{0}")]
    Permanent(String),
}

impl Mailer {
    /// A mailer for this configuration. Nothing is connected yet.
    ///
    /// # Errors
    /// An address is none, the certificates cannot be used, or the region of SES is not known. The
    /// error names the variable.
    pub async fn new(config: &MailConfig) -> anyhow::Result<Self> {
        let post = match config {
            MailConfig::Off => return Ok(Self(None)),
            MailConfig::Smtp(config) => {
                let (from, to) = (("SMTP_FROM", &*config.from), ("SMTP_TO", &*config.to));
                let addresses = Addresses::new(from, to)?;
                let smtp = Smtp::new(config, addresses.from.email.domain())?;
                Post {
                    addresses,
                    on: config.on,
                    transport: Transport::Smtp(Box::new(smtp)),
                }
            }
            MailConfig::Ses(config) => {
                let (from, to) = (("SES_FROM", &*config.from), ("SES_TO", &*config.to));
                let addresses = Addresses::new(from, to)?;
                let sdk = aws::sdk_config(None, config.ca_bundle.as_deref()).await?;
                Post {
                    addresses,
                    on: config.on,
                    transport: Transport::Ses(Ses::new(&sdk)?),
                }
            }
        };
        Ok(Self(Some(post)))
    }

    /// Whether anybody wants to hear of this outcome; `previous` is the one before on the branch.
    pub fn wants(&self, outcome: &Outcome, previous: Option<&Outcome>) -> bool {
        let post = self.0.as_ref();
        post.is_some_and(|post| is_wanted(post.on, outcome, previous))
    }

    /// Sends the mail about a finished build. `log` is the file of its log; it may be missing.
    ///
    /// # Errors
    /// See [`MailError`]. The mail may have arrived all the same when the server's last answer
    /// was lost; its `Message-ID` is the same in every attempt, except that SES gives each its own.
    pub async fn send(
        &self,
        build: &Build,
        context: &MailContext<'_>,
        log: &Path,
    ) -> Result<(), MailError> {
        let Some(post) = &self.0 else {
            return Ok(());
        };
        let (envelope, message) = compose(&post.addresses, build, context, log).await?;
        match &post.transport {
            Transport::Smtp(smtp) => smtp.send(&envelope, &message).await,
            Transport::Ses(ses) => ses.send(&envelope, message).await,
        }
    }
}

fn is_wanted(on: MailOn, outcome: &Outcome, previous: Option<&Outcome>) -> bool {
    match on {
        MailOn::Always => true,
        MailOn::Failure | MailOn::Change if !outcome.is_verdict_on_branch() => false,
        MailOn::Failure => !outcome.is_success(),
        MailOn::Change => previous.map(render::status_state) != Some(render::status_state(outcome)),
    }
}

/// How long sending a message of this size may take.
fn send_deadline(message_bytes: usize) -> Duration {
    SEND_DEADLINE + Duration::from_secs((message_bytes / SLOWEST_LINE) as u64)
}

fn too_slow(deadline: Duration) -> String {
    format!("not done after {} s", deadline.as_secs())
}

#[cfg(test)]
mod tests;
