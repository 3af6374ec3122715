//! Mail by SMTP.

use std::error::Error;
use std::panic::AssertUnwindSafe;

use anyhow::Context;
use futures_util::FutureExt;
use lettre::address::{Address, Envelope};
use lettre::transport::smtp;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::response::{Category, Code};
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use secrecy::ExposeSecret;
use shared::config::{SmtpConfig, SmtpTls};
use shared::words;
use tokio::time::timeout;

use super::{MailError, send_deadline, too_slow};

/// A mail server.
#[derive(Debug, Clone)]
pub(super) struct Smtp {
    client: AsyncSmtpTransport<Tokio1Executor>,
    /// How the errors call it.
    name: String,
}

impl Smtp {
    /// `domain` is where the sender lives.
    pub(super) fn new(config: &SmtpConfig, domain: &str) -> anyhow::Result<Self> {
        // The container's host name means nothing to the server; some servers insist on a domain.
        let hello = ClientId::Domain(domain.to_owned());
        let mut client = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&config.host)
            .port(config.port)
            .hello_name(hello)
            .tls(tls(config)?);
        if let Some((user, password)) = &config.credentials {
            let password = password.expose_secret().to_owned();
            client = client.credentials(Credentials::new(user.clone(), password));
        }
        Ok(Self {
            client: client.build(),
            name: format!("mail server {}:{}", config.host, config.port),
        })
    }

    /// Sends to all recipients; if the server refuses, to each of them alone.
    pub(super) async fn send(&self, envelope: &Envelope, message: &[u8]) -> Result<(), MailError> {
        let sent = match self.attempt(envelope, message).await {
            Err(refusal) if refusal.is_of_mail && envelope.to().len() > 1 => {
                self.send_to_each(envelope, message).await
            }
            sent => sent,
        };
        sent.map_err(|refusal| self.explain(refusal))
    }

    /// One bad address does not cost the others their mail. Who is refused for now is not tried
    /// again once another one was not: that one would get the mail again and again.
    async fn send_to_each(&self, envelope: &Envelope, message: &[u8]) -> Result<(), Refusal> {
        let mut refusals = Vec::new();
        for to in envelope.to() {
            let alone = Envelope::new(envelope.from().cloned(), vec![to.clone()])
                .expect("there is a recipient");
            if let Err(refusal) = self.attempt(&alone, message).await {
                refusals.push((to, refusal));
            }
        }
        if refusals.is_empty() {
            return Ok(());
        }
        let somebody_got_it = refusals.len() < envelope.to().len();
        let tell = |(to, refusal): &(&Address, Refusal)| format!("{to}: {}", refusal.why);
        let told: Vec<_> = refusals.iter().map(tell).collect();
        Err(Refusal {
            is_of_mail: somebody_got_it || refusals.iter().all(|(_, refusal)| refusal.is_of_mail),
            why: format!("not sent to {}", told.join("; ")),
        })
    }

    async fn attempt(&self, envelope: &Envelope, message: &[u8]) -> Result<(), Refusal> {
        let deadline = send_deadline(message.len());
        // lettre 0.11 panics over a server that announces a space (`250- `).
        let sending = AssertUnwindSafe(self.client.send_raw(envelope, message)).catch_unwind();
        match timeout(deadline, sending).await {
            Ok(Ok(Ok(_))) => Ok(()),
            Ok(Ok(Err(error))) => Err(Refusal::from(&error)),
            Ok(Err(_panic)) => Err(Refusal {
                is_of_mail: false,
                why: "its answer is no SMTP".to_owned(),
            }),
            Err(_) => Err(Refusal {
                is_of_mail: false,
                why: too_slow(deadline),
            }),
        }
    }

    fn explain(&self, refusal: Refusal) -> MailError {
        let problem = format!("{}: {}", self.name, words::one_line(&refusal.why));
        match refusal.is_of_mail {
            true => MailError::Permanent(problem),
            false => MailError::Transient(problem),
        }
    }
}

/// Why an attempt to send failed.
struct Refusal {
    /// The server minds the mail or one of its recipients, for good. Else it is away, or it minds us:
    /// then another attempt may succeed, once somebody has renewed a password.
    is_of_mail: bool,
    why: String,
}

impl From<&smtp::Error> for Refusal {
    fn from(error: &smtp::Error) -> Self {
        // RFC 5321, 4.2.1: x5x is about the mail system; a login is refused with x3x.
        let about_mail = |code: Code| code.category == Category::MailSystem;
        Self {
            is_of_mail: error.is_permanent() && error.status().is_some_and(about_mail),
            why: cause(error),
        }
    }
}

/// The server's own words, or what was in the way of hearing any.
fn cause(error: &smtp::Error) -> String {
    match (error.status(), error.source()) {
        (Some(code), Some(words)) => format!("{code} {words}"),
        (None, Some(cause)) => cause.to_string(),
        (_, None) => error.to_string(),
    }
}

fn tls(config: &SmtpConfig) -> anyhow::Result<Tls> {
    Ok(match config.tls {
        SmtpTls::Off => Tls::None,
        SmtpTls::Implicit => Tls::Wrapper(tls_parameters(config)?),
        SmtpTls::StartTls => Tls::Required(tls_parameters(config)?),
    })
}

fn tls_parameters(config: &SmtpConfig) -> anyhow::Result<TlsParameters> {
    let mut parameters = TlsParameters::builder(config.host.clone());
    if let Some(bundle) = &config.ca_bundle {
        parameters = parameters.certificate_store(CertificateStore::None);
        for root in shared::net::tls::bundle_certificates(bundle)? {
            parameters = parameters.add_root_certificate(Certificate::from_der(root.to_vec())?);
        }
    } else {
        parameters = parameters.certificate_store(CertificateStore::WebpkiRoots);
    }
    parameters
        .build_rustls()
        .context("SMTP_HOST: TLS cannot be set up")
}

#[cfg(test)]
mod tests;
