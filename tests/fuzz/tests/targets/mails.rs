//! Mail addresses that people configure, and the answers of mail servers.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use fuzz::fuzz;
use fuzz::mutation::{Text, mutated};
use proptest::collection::vec;
use proptest::prelude::Strategy;
use shared::build::Outcome;
use shared::build::samples::ended;
use shared::config::{Env, MailConfig, MailOn, SmtpConfig, SmtpTls, WorkerConfig};
use tokio::runtime::{Builder, Runtime};
use worker::notify::{Links, MailLogs, Mailer, Sent};

const HOST: &str = "127.0.0.1";

/// The server has heard all once the client has closed its end.
const HEARD_DEADLINE: Duration = Duration::from_secs(10);
const PASSWORD: &str = "CANARY-password";

fn config(port: u16, to: Vec<String>) -> SmtpConfig {
    SmtpConfig {
        host: HOST.to_owned(),
        port,
        tls: SmtpTls::Off,
        credentials: Some(("ci".to_owned(), PASSWORD.into())),
        from: "The CI <ci@example.org>".to_owned(),
        to,
        on: MailOn::Always,
        ca_bundle: None,
    }
}

fn runtime() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}

async fn mailer(config: SmtpConfig) -> Result<Mailer, String> {
    let logs = MailLogs {
        data_dir: PathBuf::from("/nonexistent"),
        ..MailLogs::default()
    };
    let made = Mailer::new(
        &MailConfig::Smtp(config),
        web::mail::html,
        Links::default(),
        logs,
    )
    .await;
    let mailer = made.map_err(|error| error.to_string())?;
    Ok(mailer.expect("mail is configured"))
}

/// A mail server that says what it is given, whatever it hears.
struct Server {
    port: u16,
    scripts: Sender<Script>,
}

struct Script {
    answers: Vec<u8>,
    heard: Sender<Vec<u8>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (scripts, received) = channel::<Script>();
        thread::spawn(move || {
            let mut script = None;
            for stream in listener.incoming() {
                // The last script is for all connections until the next one comes.
                script = received.try_iter().last().or(script);
                if let (Ok(stream), Some(script)) = (stream, &script) {
                    serve(stream, script);
                }
            }
        });
        Self { port, scripts }
    }

    /// Has the server answer so from now on; what it hears comes back, connection by connection.
    fn play(&self, answers: Vec<u8>) -> Receiver<Vec<u8>> {
        let (heard, hears) = channel();
        self.scripts
            .send(Script { answers, heard })
            .expect("the server runs");
        hears
    }
}

fn serve(mut stream: TcpStream, script: &Script) {
    // A client that has heard enough is gone by now.
    let _ = stream.write_all(&script.answers);
    let _ = stream.shutdown(Shutdown::Write);
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard);
    let _ = script.heard.send(heard);
}

fn answers() -> impl Strategy<Value = Text> {
    let sound = "220 mail.example.org ESMTP\r\n250-mail.example.org\r\n250-AUTH PLAIN LOGIN\r\n250 8BITMIME\r\n235 in\r\n250 sender\r\n250 first\r\n250 second\r\n354 go on\r\n250 queued\r\n221 bye\r\n";
    let refused = sound.replace("235 in", "535 5.7.8 no: Y2kAQ0FOQVJZ");
    let no_recipient = sound.replace("250 first", "550 5.1.1 nobody\r\n250-\r\n250 reset");
    let full = sound.replace("250 queued", "452 4.3.1 full\r\n552-too\r\n552 large");
    let words = &[
        "\r\n",
        "\n",
        "\r",
        "-",
        " ",
        "220 ",
        "250 ",
        "250-",
        "354 ",
        "421 4.3.2 away\r\n",
        "451 later\r\n",
        "550 5.1.1 ",
        "552",
        "535 ",
        "999 ",
        "000",
        "2",
        "5.7.1 ",
        "\0",
        "\x1b[31m",
        "é",
        "\u{202e}",
        "AUTH LOGIN",
        "SMTPUTF8",
        "CANARY-password",
        "334 VXNlcm5hbWU6\r\n",
    ];
    let samples = [sound.to_owned(), refused, no_recipient, full].map(String::into_bytes);
    mutated(samples.into(), words)
}

#[test]
fn answers_of_a_mail_server_are_one_line() {
    let (runtime, server) = (runtime(), Server::start());
    let to = ["dev@example.org", "Ops <ops@example.org>"].map(str::to_owned);
    let mailer = runtime
        .block_on(mailer(config(server.port, to.into())))
        .expect("sound");
    let build = ended(Outcome::Passed, 1);
    fuzz("smtp answers", answers(), |Text(answers)| {
        let _heard = server.play(answers);
        match runtime.block_on(mailer.send(&build)) {
            Sent::Done => (),
            Sent::Refused(why) => assert_is_told(&why),
            Sent::Later(setback) => assert_is_told(&setback.reason),
        }
    });
}

fn assert_is_told(why: &str) {
    assert!(!why.contains(char::is_control), "{why:?}");
    assert!(why.starts_with("mail server 127.0.0.1:"), "{why:?}");
}

fn addresses() -> impl Strategy<Value = Vec<Text>> {
    let samples = [
        "dev@example.org",
        "Ops <ops@example.org>",
        "\"Doe, Jane\" <j.doe@example.org>",
        "ü@exämple.org",
        "Jürgen <j@example.org>",
        "\"a b\"@example.org",
        "x@[127.0.0.1]",
        "x@[IPv6:::1]",
        "",
    ];
    let words = &[
        "@",
        "<",
        ">",
        "\"",
        "\\",
        "\r\n",
        "\n",
        "\r",
        "\0",
        ",",
        ";",
        ":",
        "(",
        ")",
        "Bcc: x@example.org\r\n",
        "\r\n\r\n",
        " ",
        "\t",
        "é",
        "\u{202e}",
        "\u{2028}",
        ".",
        "..",
        "[",
        "]",
        "=?utf-8?q?=0D=0A?=",
        "example.org",
        "RCPT TO:<y@example.org>\r\n",
    ];
    vec(mutated(samples.map(Into::into).into(), words), 1..3)
}

#[test]
fn addresses_put_nothing_into_a_mail_but_themselves() {
    let (runtime, server) = (runtime(), Server::start());
    let script = "220 x\r\n250 AUTH PLAIN\r\n235 in\r\n250 a\r\n250 b\r\n250 c\r\n354 d\r\n250 e\r\n221 f\r\n";
    let build = ended(Outcome::Passed, 1);
    fuzz("addresses", addresses(), |texts| {
        let texts: Vec<_> = texts
            .iter()
            .map(|Text(text)| String::from_utf8_lossy(text))
            .collect();
        let made = configured(&texts.join(",")).and_then(|to| {
            let recipients = to.len();
            let mailer = runtime.block_on(mailer(config(server.port, to)))?;
            Ok((recipients, mailer))
        });
        let (recipients, mailer) = match made {
            Ok(made) => made,
            Err(why) => {
                assert!(why.starts_with("SMTP_TO: "), "{why:?}");
                assert!(!why.contains(char::is_control), "{why:?}");
                return;
            }
        };
        let heard = server.play(script.into());
        let _sent = runtime.block_on(mailer.send(&build));
        let first = heard.recv_timeout(HEARD_DEADLINE).expect("a connection");
        for spoken in [first].into_iter().chain(heard.try_iter()) {
            assert_speaks_to(recipients, &String::from_utf8_lossy(&spoken));
        }
    });
}

/// The recipients that this value of the variable names.
fn configured(text: &str) -> Result<Vec<String>, String> {
    let env = Env::from([
        ("HOOK", "true"),
        ("GITHUB_TOKEN", "t0ken"),
        ("GITHUB_REPO", "octo/hello"),
        ("SMTP_HOST", HOST),
        ("SMTP_FROM", "ci@example.org"),
        ("SMTP_TO", text),
    ]);
    let config = WorkerConfig::load(&env).map_err(|error| error.to_string())?;
    match config.mail {
        MailConfig::Smtp(smtp) => Ok(smtp.to),
        other => panic!("{other:?}"),
    }
}

/// No more recipients than were configured, and no header but those of every mail.
fn assert_speaks_to(recipients: usize, spoken: &str) {
    let (commands, message) = spoken.split_once("\r\nDATA\r\n").unwrap_or((spoken, ""));
    let named = commands.lines().filter(|line| line.starts_with("RCPT"));
    assert!(named.count() <= recipients, "{commands:?}");
    for command in commands.split("\r\n").filter(|line| !line.is_empty()) {
        let known = [
            "EHLO ",
            "AUTH ",
            "MAIL FROM:<ci@example.org>",
            "RCPT TO:<",
            "RSET",
            "QUIT",
        ];
        assert!(
            known.iter().any(|word| command.starts_with(word)),
            "{command:?}"
        );
        assert!(!command.contains(char::is_control), "{command:?}");
    }
    let headers = message.split("\r\n\r\n").next().unwrap_or_default();
    let begins = headers
        .split("\r\n")
        .filter(|line| !line.starts_with([' ', '\t']));
    for line in begins.filter(|line| !line.is_empty()) {
        let name = line.split(':').next().unwrap_or_default();
        let known = [
            "From",
            "To",
            "Subject",
            "Date",
            "Message-ID",
            "In-Reply-To",
            "References",
            "Auto-Submitted",
            "MIME-Version",
            "Content-Type",
        ];
        assert!(known.contains(&name), "{line:?}");
    }
    let others = |c: char| c.is_control() && !"\r\n\t".contains(c);
    assert!(!headers.contains(others), "{headers:?}");
}
