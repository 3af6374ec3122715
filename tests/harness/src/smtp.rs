//! A mail server that keeps what it is sent: `smtp_sink.py`, and what arrived there.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mail_parser::{MessageParser, MessagePart, MimeHeaders, PartType};
use tempfile::TempDir;

use crate::certificates::Certificates;
use crate::process::{Process, listening_address};

const SINK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/smtp_sink.py");

/// How long Python may take to start on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// What the sink asks of its clients; by default nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct SinkOptions<'a> {
    /// The port of loopback, below 1024 for root only; a free one where it is not given.
    pub port: Option<u16>,
    /// Whether and how the connection is encrypted.
    pub tls: Tls<'a>,
    /// The user and password that a client must log in with.
    pub login: Option<(&'a str, &'a str)>,
    /// How many messages are refused first, and with what, such as `451 try later`.
    pub refuse_first: Option<(usize, &'a str)>,
    /// The recipient whom it does not know: `550 5.1.1 no such user`.
    pub unknown: Option<&'a str>,
}

/// How a mail connection is encrypted.
#[derive(Clone, Copy, Debug, Default)]
pub enum Tls<'a> {
    /// Not at all.
    #[default]
    Off,
    /// By STARTTLS, without which no mail is taken.
    StartTls(&'a Certificates),
    /// From the first byte.
    Implicit(&'a Certificates),
}

/// A running sink; dropping it ends it.
#[derive(Debug)]
pub struct SmtpSink {
    process: Process,
    address: SocketAddr,
    dir: TempDir,
}

/// A mail that arrived.
#[derive(Clone, Debug)]
pub struct Mail {
    /// The envelope's sender.
    pub from: String,
    /// The envelope's recipients, separated by `, `.
    pub to: String,
    /// The decoded `Subject`.
    pub subject: String,
    /// The decoded text part, empty when there is none.
    pub text: String,
    /// The decoded HTML part, when there is one.
    pub html: Option<String>,
    /// In the order of the message.
    pub attachments: Vec<Attachment>,
    /// The message as it was sent; the sink puts the envelope's two headers before it.
    pub raw: Vec<u8>,
}

/// A file in a mail.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The file's name.
    pub name: String,
    /// Such as `application/gzip`.
    pub content_type: String,
    /// The decoded content.
    pub bytes: Vec<u8>,
}

impl SmtpSink {
    /// Starts a sink on loopback.
    ///
    /// # Panics
    /// When Debian's `python3-aiosmtpd` is not installed.
    pub async fn start(options: SinkOptions<'_>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let process = Process::start(command(options, dir.path()));
        let address = process
            .wait_for_output(listening_address, START_DEADLINE)
            .await;
        Self {
            process,
            address,
            dir,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The mails that have arrived, oldest first.
    pub fn mails(&self) -> Vec<Mail> {
        (1..=accepted(&self.process.output()))
            .map(|number| self.mail(number))
            .collect()
    }

    /// How many messages were refused.
    pub fn refused(&self) -> usize {
        self.process
            .output()
            .lines()
            .filter(|line| line.starts_with("refused "))
            .count()
    }

    /// Waits until at least `count` mails have arrived, and answers all of them.
    ///
    /// # Panics
    /// After `deadline`, with what the sink printed.
    pub async fn wait_for_mails(&self, count: usize, deadline: Duration) -> Vec<Mail> {
        let enough = |output: &str| (accepted(output) >= count).then_some(());
        self.process.wait_for_output(enough, deadline).await;
        self.mails()
    }

    /// Waits until at least `count` logins were wrong.
    ///
    /// # Panics
    /// After `deadline`, with what the sink printed.
    pub async fn wait_for_wrong_logins(&self, count: usize, deadline: Duration) {
        let wrong = |output: &str| output.lines().filter(|line| *line == "wrong login").count();
        let enough = |output: &str| (wrong(output) >= count).then_some(());
        self.process.wait_for_output(enough, deadline).await;
    }

    fn mail(&self, number: usize) -> Mail {
        let raw = fs::read(self.dir.path().join(format!("{number}.eml")));
        parse(raw.expect("the sink writes a mail before it tells"))
    }
}

fn command(options: SinkOptions<'_>, dir: &Path) -> Command {
    // Debian's own interpreter: another one first in PATH doesn't see Debian's modules.
    let mut command = Command::new("/usr/bin/python3");
    command.arg(SINK).arg("--dir").arg(dir);
    if let Some(port) = options.port {
        command.arg("--listen").arg(format!("127.0.0.1:{port}"));
    }
    match options.tls {
        Tls::Off => {}
        Tls::StartTls(files) => {
            command
                .arg("--starttls")
                .args([files.certificate(), files.key()]);
        }
        Tls::Implicit(files) => {
            command
                .arg("--tls")
                .args([files.certificate(), files.key()]);
        }
    }
    if let Some((user, password)) = options.login {
        command.arg("--auth").arg(format!("{user}:{password}"));
    }
    if let Some(address) = options.unknown {
        command.arg("--unknown").arg(address);
    }
    if let Some((count, answer)) = options.refuse_first {
        command.arg("--fail").arg(format!("{count}:{answer}"));
    }
    command
}

fn accepted(output: &str) -> usize {
    output
        .lines()
        .filter(|line| line.starts_with("mail "))
        .count()
}

pub(crate) fn parse(raw: Vec<u8>) -> Mail {
    let message = MessageParser::default()
        .parse(&raw)
        .expect("the mail can be parsed");
    let header = |name: &str| {
        message
            .header_raw(name)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let attachments = message.attachments().map(|part| Attachment {
        name: part.attachment_name().unwrap_or_default().to_owned(),
        content_type: part.content_type().map_or_else(String::new, |kind| {
            format!("{}/{}", kind.ctype(), kind.subtype().unwrap_or_default())
        }),
        bytes: part.contents().to_vec(),
    });
    Mail {
        from: header("X-Envelope-From"),
        to: header("X-Envelope-To"),
        subject: message.subject().unwrap_or_default().to_owned(),
        text: message.text_part(0).and_then(text).unwrap_or_default(),
        html: message.html_part(0).and_then(html),
        attachments: attachments.collect(),
        raw: raw.clone(),
    }
}

// The parser would offer each of the two converted into the other when it is missing.
fn text(part: &MessagePart<'_>) -> Option<String> {
    match &part.body {
        PartType::Text(text) => Some(text.to_string()),
        _ => None,
    }
}

fn html(part: &MessagePart<'_>) -> Option<String> {
    match &part.body {
        PartType::Html(html) => Some(html.to_string()),
        _ => None,
    }
}
