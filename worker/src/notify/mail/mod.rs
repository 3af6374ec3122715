//! Mail about builds: the message, and the ways to send it.

mod excerpt;
mod message;
mod smtp;
mod ses;

use std::path::{Path, PathBuf};
use std::time::Duration;

use shared::build::{Build, Outcome, log_path};
use shared::config::{MailConfig, MailOn};
use shared::mask::Secrets;
use shared::net::aws;
use shared::words::{LogExcerpt, MailContext};

use self::message::{Addresses, compose};
use self::ses::Ses;
use self::smtp::Smtp;
use super::{Links, Sent};

/// How long the server may take for all of a small message.
const SEND_DEADLINE: Duration = Duration::from_secs(30);
/// The slowest line, in bytes a second, over which a large message still arrives in time.
const SLOWEST_LINE: usize = 128 * 1024;

/// Makes the HTML of a mail about a build.
pub type MailHtml = fn(&Build, &MailContext<'_>, &LogExcerpt) -> String;

/// Tells people by mail how a build ended.
#[derive(Debug)]
pub struct Mailer {
    addresses: Addresses,
    on: MailOn,
    transport: Transport,
    html: MailHtml,
    links: Links,
    logs: MailLogs,
}

/// The logs that mails quote.
#[derive(Debug, Default)]
pub struct MailLogs {
    /// The folder below which they lie.
    pub data_dir: PathBuf,
    /// True if `docker logs <uuid>` works after the build.
    pub containers_kept: bool,
    /// The values that no mail must show, not even as a branch's name.
    pub secrets: Secrets,
}

/// The ways to send a message. All of them send the same one.
#[derive(Debug, Clone)]
enum Transport {
    Smtp(Box<Smtp>),
    Ses(Ses),
}

/// Why a mail was not sent, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum MailError {
    /// A later attempt may succeed, be it because somebody mends the settings.
    #[error("{0}")]
    Transient(String),
    /// This very mail, or one of its recipients, is not wanted.
    #[error("{0}")]
    Permanent(String),
}

impl Mailer {
    /// A mailer for this configuration; nothing if it names nobody. Nothing is connected yet.
    ///
    /// # Errors
    /// An address is none, the certificates cannot be used, or the region of SES is not known. The
    /// error names the variable.
    pub async fn new(
        config: &MailConfig,
        html: MailHtml,
        links: Links,
        logs: MailLogs,
    ) -> anyhow::Result<Option<Self>> {
        let (addresses, on, transport) = match config {
            MailConfig::Off => return Ok(None),
            MailConfig::Smtp(config) => {
                let (from, to) = (("SMTP_FROM", &*config.from), ("SMTP_TO", &*config.to));
                let addresses = Addresses::new(from, to)?;
                let smtp = Smtp::new(config, addresses.from.email.domain())?;
                (addresses, config.on, Transport::Smtp(Box::new(smtp)))
            }
            MailConfig::Ses(config) => {
                let (from, to) = (("SES_FROM", &*config.from), ("SES_TO", &*config.to));
                let addresses = Addresses::new(from, to)?;
                let sdk = aws::sdk_config(None, config.ca_bundle.as_deref()).await?;
                (addresses, config.on, Transport::Ses(Ses::new(&sdk)?))
            }
        };
        Ok(Some(Self {
            addresses,
            on,
            transport,
            html,
            links,
            logs,
        }))
    }

    /// Whether this outcome is mailed; `previous` is the one before on the branch.
    pub(super) fn wants(&self, outcome: &Outcome, previous: Option<&Outcome>) -> bool {
        is_wanted(self.on, outcome, previous)
    }

    /// Sends the mail about an ended build. It may arrive twice when the server's last answer was lost;
    /// its `Message-ID` is the same in every attempt, except that SES gives each its own.
    pub async fn send(&self, build: &Build) -> Sent {
        let page_url = self.links.build_page(build.request.id);
        let context = MailContext {
            site: self.links.site.as_ref(),
            page_url: page_url.as_deref(),
            container_kept: self.logs.containers_kept,
        };
        let log = log_path(&self.logs.data_dir, build.request.id);
        match self.deliver(build, &context, &log).await {
            Ok(()) => Sent::Done,
            Err(MailError::Transient(reason)) => Sent::later(reason),
            Err(MailError::Permanent(reason)) => Sent::Refused(reason),
        }
    }

    async fn deliver(
        &self,
        build: &Build,
        context: &MailContext<'_>,
        log: &Path,
    ) -> Result<(), MailError> {
        let composed = compose(
            &self.addresses,
            build,
            context,
            log,
            self.html,
            &self.logs.secrets,
        );
        let (envelope, message) = composed.await?;
        match &self.transport {
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
        MailOn::Change => previous.map(Outcome::commit_state) != Some(outcome.commit_state()),
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
