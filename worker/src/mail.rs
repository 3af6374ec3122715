//! Mail about builds: the message, and the server that takes it.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use flate2::Compression;
use flate2::write::GzEncoder;
use lettre::address::Envelope;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Attachment, Mailbox, MessageBuilder, MultiPart};
use lettre::transport::smtp;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use secrecy::ExposeSecret;
use shared::config::{ConfigError, MailConfig, MailOn, SmtpConfig, SmtpTls};
use uuid::Uuid;

use crate::outcome::Outcome;
use crate::record::Build;
use crate::render::{self, LogExcerpt, LogRest, MailContext};

/// How much of the log's end the mail itself shows. With these, the HTML of a log that is not
/// all colours stays under the 102 kB after which Gmail cuts a message.
const TAIL_LINES: usize = 200;
const TAIL_BYTES: u64 = 32 * 1024;

/// The largest compressed log that is attached, in bytes. Base64 makes 8.3 MiB of it: Postfix
/// takes 10,240,000 bytes by default, and SES 10 MB.
const ATTACHMENT_MAX_BYTES: usize = 6 * 1024 * 1024;

/// How long the server may take for all of a small message.
const SEND_DEADLINE: Duration = Duration::from_secs(30);
/// The slowest line, in bytes a second, over which a large message still arrives in time.
const SLOWEST_LINE: usize = 128 * 1024;

/// Tells people by mail how a build ended, if the configuration names any.
#[derive(Debug, Clone)]
pub struct Mailer {
    transport: Transport,
}

/// The ways to send a message. All of them send the same one.
#[derive(Debug, Clone)]
enum Transport {
    Off,
    Smtp(Box<Smtp>),
}

#[derive(Debug, Clone)]
struct Smtp {
    client: AsyncSmtpTransport<Tokio1Executor>,
    /// `host:port`, for the errors.
    server: String,
    addresses: Addresses,
    on: MailOn,
}

/// From whom, to whom.
#[derive(Debug, Clone)]
struct Addresses {
    from: Mailbox,
    /// At least one.
    to: Vec<Mailbox>,
}

/// Why a mail was not sent, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MailError {
    /// The next attempt may succeed.
    #[error("{0}")]
    Transient(String),
    /// No attempt will, until somebody changes something.
    #[error("{0}")]
    Permanent(String),
}

impl Mailer {
    /// A mailer for this configuration. Nothing is connected yet.
    ///
    /// # Errors
    /// An address is none, or the certificates cannot be used. The error names the variable.
    pub fn new(config: &MailConfig) -> anyhow::Result<Self> {
        let transport = match config {
            MailConfig::Off => Transport::Off,
            MailConfig::Smtp(config) => Transport::Smtp(Box::new(Smtp::new(config)?)),
        };
        Ok(Self { transport })
    }

    /// Whether anybody wants to hear of this outcome; `previous` is the one before on the branch.
    pub fn wants(&self, outcome: &Outcome, previous: Option<&Outcome>) -> bool {
        match &self.transport {
            Transport::Off => false,
            Transport::Smtp(smtp) => is_wanted(smtp.on, outcome, previous),
        }
    }

    /// Sends the mail about a finished build. `log` is the file of its log; it may be missing.
    ///
    /// # Errors
    /// See [`MailError`]. The mail may have arrived all the same when the server's last answer
    /// was lost; its `Message-ID` is the same in every attempt.
    pub async fn send(
        &self,
        build: &Build,
        context: &MailContext<'_>,
        log: &Path,
    ) -> Result<(), MailError> {
        match &self.transport {
            Transport::Off => Ok(()),
            Transport::Smtp(smtp) => {
                let (envelope, message) = compose(&smtp.addresses, build, context, log).await?;
                smtp.send(&envelope, &message).await
            }
        }
    }
}

impl Smtp {
    fn new(config: &SmtpConfig) -> anyhow::Result<Self> {
        let addresses = Addresses::new(config)?;
        // The container's host name means nothing to the server; some servers insist on a domain.
        let name = ClientId::Domain(addresses.from.email.domain().to_owned());
        let mut client = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&config.host)
            .port(config.port)
            .hello_name(name)
            .tls(tls(config)?);
        if let Some((user, password)) = &config.credentials {
            let password = password.expose_secret().to_owned();
            client = client.credentials(Credentials::new(user.clone(), password));
        }
        Ok(Self {
            client: client.build(),
            server: format!("{}:{}", config.host, config.port),
            addresses,
            on: config.on,
        })
    }

    async fn send(&self, envelope: &Envelope, message: &[u8]) -> Result<(), MailError> {
        let deadline = send_deadline(message.len());
        let sent = tokio::time::timeout(deadline, self.client.send_raw(envelope, message));
        match sent.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.classify(&error)),
            Err(_) => {
                let seconds = deadline.as_secs();
                Err(MailError::Transient(
                    self.problem(&format!("not done after {seconds} s")),
                ))
            }
        }
    }

    fn classify(&self, error: &smtp::Error) -> MailError {
        let problem = self.problem(&cause(error));
        // A "client" error is one where our side gives up: no STARTTLS, no way to log in.
        if error.is_permanent() || error.is_client() {
            MailError::Permanent(problem)
        } else {
            MailError::Transient(problem)
        }
    }

    fn problem(&self, what: &str) -> String {
        format!("mail server {}: {}", self.server, render::one_line(what))
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

impl Addresses {
    fn new(config: &SmtpConfig) -> Result<Self, ConfigError> {
        let to = config.to.iter().map(|text| address("SMTP_TO", text));
        let to = to.collect::<Result<Vec<_>, _>>()?;
        if to.is_empty() {
            return Err(ConfigError {
                variable: "SMTP_TO",
                problem: "no address".to_owned(),
            });
        }
        Ok(Self {
            from: address("SMTP_FROM", &config.from)?,
            to,
        })
    }
}

fn address(variable: &'static str, text: &str) -> Result<Mailbox, ConfigError> {
    text.parse().map_err(|_| ConfigError {
        variable,
        problem: format!("not a mail address: {text}"),
    })
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
        for root in shared::tls::bundle_certificates(bundle)? {
            parameters = parameters.add_root_certificate(Certificate::from_der(root.to_vec())?);
        }
    } else {
        parameters = parameters.certificate_store(CertificateStore::WebpkiRoots);
    }
    parameters
        .build_rustls()
        .context("SMTP_HOST: TLS cannot be set up")
}

fn is_wanted(on: MailOn, outcome: &Outcome, previous: Option<&Outcome>) -> bool {
    match on {
        MailOn::Always => true,
        MailOn::Failure => !outcome.is_success(),
        MailOn::Change => previous.map(render::status_state) != Some(render::status_state(outcome)),
    }
}

fn send_deadline(message_bytes: usize) -> Duration {
    SEND_DEADLINE + Duration::from_secs((message_bytes / SLOWEST_LINE) as u64)
}

/// The message as it goes over the wire, which is the same for every transport.
async fn compose(
    addresses: &Addresses,
    build: &Build,
    context: &MailContext<'_>,
    log: &Path,
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
        render::mail_text(build, context, &excerpt),
        render::mail_html(build, context, &excerpt),
        attachment,
    );
    let message = headers(addresses, build)
        .multipart(body)
        .expect("there is a sender and a recipient");
    Ok((message.envelope().clone(), message.formatted()))
}

fn headers(addresses: &Addresses, build: &Build) -> MessageBuilder {
    let domain = addresses.from.email.domain();
    let thread = format!("<{}@{domain}>", thread_id(build));
    let date = build
        .finished
        .as_ref()
        .map_or(build.started_at, |finished| finished.at);
    let mut headers = Message::builder()
        .from(addresses.from.clone())
        .subject(render::mail_subject(build))
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

/// The end of the log and, where that is not all of it, the whole log compressed.
fn read_log(path: &Path) -> io::Result<(LogExcerpt, Option<Vec<u8>>)> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        // The build ended before its hook began.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok((
                LogExcerpt {
                    tail: String::new(),
                    rest: LogRest::Shown,
                },
                None,
            ));
        }
        Err(error) => return Err(error),
    };
    let (tail, is_whole) = read_tail(&mut file)?;
    if is_whole {
        return Ok((
            LogExcerpt {
                tail,
                rest: LogRest::Shown,
            },
            None,
        ));
    }
    file.rewind()?;
    let attachment = compress(file, ATTACHMENT_MAX_BYTES)?;
    let rest = match attachment {
        Some(_) => LogRest::Attached,
        None => LogRest::TooLong,
    };
    Ok((LogExcerpt { tail, rest }, attachment))
}

/// The last lines of a file, and whether they are all of it.
fn read_tail(file: &mut File) -> io::Result<(String, bool)> {
    let size_bytes = file.metadata()?.len();
    let start = size_bytes.saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // A carriage return alone begins a line anew; in a mail it begins another one.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let whole_lines = match text.split_once('\n') {
        Some((_, rest)) if start > 0 => rest,
        _ => &text,
    };
    let tail = last_lines(whole_lines, TAIL_LINES);
    Ok((
        tail.to_owned(),
        start == 0 && tail.len() == whole_lines.len(),
    ))
}

fn last_lines(text: &str, count: usize) -> &str {
    let end = text.strip_suffix('\n').unwrap_or(text);
    match end.rmatch_indices('\n').nth(count - 1) {
        Some((newline, _)) => &text[newline + 1..],
        None => text,
    }
}

/// The compressed content, or `None` if that is more than `max_bytes`.
fn compress(mut content: impl Read, max_bytes: usize) -> io::Result<Option<Vec<u8>>> {
    let bounded = Bounded {
        bytes: Vec::new(),
        max_bytes,
    };
    let mut encoder = GzEncoder::new(bounded, Compression::default());
    let compressed = io::copy(&mut content, &mut encoder).and_then(|_| encoder.finish());
    match compressed {
        Ok(bounded) => Ok(Some(bounded.bytes)),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Ok(None),
        Err(error) => Err(error),
    }
}

/// A buffer that refuses what goes beyond its limit with [`io::ErrorKind::FileTooLarge`].
struct Bounded {
    bytes: Vec<u8>,
    max_bytes: usize,
}

impl Write for Bounded {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + piece.len() > self.max_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
