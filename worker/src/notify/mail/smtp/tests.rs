//! What arrives at a mail server, and what is made of its answers.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use flate2::read::GzDecoder;
use harness::{Certificates, SinkOptions, SmtpSink};
use shared::config::{MailConfig, MailOn};

use super::*;
use crate::notify::mail::Mailer;
use crate::notify::mail::tests::{log_file, long_log};
use crate::notify::tests::html;
use crate::notify::{Links, MailLogs};
use shared::build::Outcome;
use shared::build::samples::ended;
use shared::words::MailContext;

const ARRIVAL_DEADLINE: Duration = Duration::from_secs(10);

fn config(port: u16, tls: SmtpTls) -> SmtpConfig {
    SmtpConfig {
        host: "localhost".to_owned(),
        port,
        tls,
        credentials: None,
        from: "The CI <ci@example.org>".to_owned(),
        to: vec![
            "dev@example.org".to_owned(),
            "Ops <ops@example.org>".to_owned(),
        ],
        on: MailOn::Always,
        ca_bundle: None,
    }
}

async fn mailer(config: SmtpConfig) -> Mailer {
    let config = MailConfig::Smtp(config);
    let mailer = Mailer::new(&config, html, Links::default(), MailLogs::default()).await;
    mailer
        .expect("the configuration is good")
        .expect("it names people")
}

async fn send(config: SmtpConfig, log: &Path) -> Result<(), MailError> {
    let build = ended(Outcome::Failed { exit_code: 3 }, 12);
    mailer(config)
        .await
        .deliver(&build, &MailContext::default(), log)
        .await
}

async fn only_mail(sink: &SmtpSink) -> harness::Mail {
    let mut mails = sink.wait_for_mails(1, ARRIVAL_DEADLINE).await;
    assert_eq!(mails.len(), 1);
    mails.remove(0)
}

#[tokio::test]
async fn answer_that_is_no_smtp_is_a_servers_failure() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let serving = std::thread::spawn(move || {
        let (mut client, _) = listener.accept()?;
        // An extension whose name is a space.
        client.write_all(b"220 here\r\n250-here\r\n250- \r\n250 SIZE\r\n")?;
        client.read_to_end(&mut Vec::new())
    });
    let (_dir, log) = log_file("");
    let error = send(config(port, SmtpTls::Off), &log).await;
    let error = error.expect_err("it got nothing").to_string();
    assert!(error.ends_with("its answer is no SMTP"), "{error}");
    let served = serving.join().expect("no panic");
    served.expect("served");
}

#[tokio::test]
async fn a_mail_arrives_with_a_text_an_html_and_the_whole_log() {
    let sink = SmtpSink::start(SinkOptions::default()).await;
    let (_dir, log) = log_file(format!("{}\x1b[31mlast ä\x1b[0m\n", long_log(1000)));

    send(config(sink.address().port(), SmtpTls::Off), &log)
        .await
        .expect("sent");

    let mail = only_mail(&sink).await;
    assert_eq!(mail.from, "ci@example.org");
    assert_eq!(mail.to, "dev@example.org, ops@example.org");
    assert_eq!(
        mail.subject,
        "[octo/hello] feature/ümlaut 0d1a26e failed with exit code 3 after 12s"
    );
    assert!(mail.text.contains("last ä\r\n\r\n-- \r\n"), "{}", mail.text);
    let html = mail.html.expect("an HTML part");
    assert!(html.contains("last ä"), "{html}");
    let [attachment] = &mail.attachments[..] else {
        panic!("one attachment")
    };
    assert_eq!(attachment.name, "build.log.gz");
    assert_eq!(attachment.content_type, "application/gzip");
    let mut whole = Vec::new();
    GzDecoder::new(&attachment.bytes[..])
        .read_to_end(&mut whole)
        .expect("gzip");
    assert!(
        whole == std::fs::read(&log).expect("log"),
        "the attachment is the log"
    );
}

#[tokio::test]
async fn the_headers_say_that_a_program_wrote_and_which_thread_it_belongs_to() {
    let sink = SmtpSink::start(SinkOptions::default()).await;
    let (_dir, log) = log_file("short\n");

    send(config(sink.address().port(), SmtpTls::Off), &log)
        .await
        .expect("sent");

    let mail = only_mail(&sink).await;
    assert!(mail.attachments.is_empty(), "a short log is in the text");
    let raw = String::from_utf8(mail.raw).expect("ASCII");
    for header in [
        "Auto-Submitted: auto-generated",
        "Date: Sat, 22 Nov 2025 18:00:12 +0000",
        "Message-ID: <5f9ef6b0-94f6-5a58-8b5e-3d1f0a3b6c1d@example.org>",
        "References: <",
    ] {
        assert!(raw.contains(&format!("\r\n{header}")), "{header} in {raw}");
    }
}

#[tokio::test]
async fn starttls_and_tls_from_the_first_byte_protect_the_password() {
    let files = Certificates::new();
    let login = Some(("ci", "right"));
    for (tls, sink_tls) in [
        (SmtpTls::StartTls, harness::Tls::StartTls(&files)),
        (SmtpTls::Implicit, harness::Tls::Implicit(&files)),
    ] {
        let options = SinkOptions {
            tls: sink_tls,
            login,
            ..SinkOptions::default()
        };
        let sink = SmtpSink::start(options).await;
        let (_dir, log) = log_file("ok\n");
        let config = SmtpConfig {
            credentials: Some(("ci".to_owned(), "right".into())),
            ca_bundle: Some(files.ca()),
            ..config(sink.address().port(), tls)
        };
        send(config, &log).await.expect("sent");
        assert_eq!(
            only_mail(&sink).await.text.lines().next(),
            Some("failed with exit code 3 after 12s")
        );
    }
}

#[tokio::test]
async fn a_server_whose_certificate_nobody_vouches_for_gets_no_mail() {
    let files = Certificates::new();
    let tls = harness::Tls::Implicit(&files);
    let sink = SmtpSink::start(SinkOptions {
        tls,
        ..SinkOptions::default()
    })
    .await;
    let (_dir, log) = log_file("ok\n");

    let sent = send(config(sink.address().port(), SmtpTls::Implicit), &log).await;

    assert!(
        matches!(&sent, Err(MailError::Transient(why)) if why.contains("certificate")),
        "{sent:?}"
    );
    assert!(sink.mails().is_empty());
}

#[tokio::test]
async fn a_server_without_starttls_gets_no_mail() {
    let sink = SmtpSink::start(SinkOptions::default()).await;
    let (_dir, log) = log_file("ok\n");

    let sent = send(config(sink.address().port(), SmtpTls::StartTls), &log).await;

    assert!(
        matches!(&sent, Err(MailError::Transient(why)) if why.contains("STARTTLS")),
        "{sent:?}"
    );
    assert!(sink.mails().is_empty());
}

#[tokio::test]
async fn a_password_that_is_refused_may_be_renewed_and_stays_secret() {
    let login = Some(("ci", "right"));
    let sink = SmtpSink::start(SinkOptions {
        login,
        ..SinkOptions::default()
    })
    .await;
    let (_dir, log) = log_file("ok\n");
    let credentials = Some(("ci".to_owned(), "wrong-one".into()));
    let config = SmtpConfig {
        credentials,
        ..config(sink.address().port(), SmtpTls::Off)
    };
    let debug = format!("{:?}", mailer(config.clone()).await);
    assert!(!debug.contains("wrong-one"), "{debug}");

    let sent = send(config, &log).await;

    let Err(MailError::Transient(why)) = &sent else {
        panic!("{sent:?}")
    };
    assert!(
        why.contains("535") && !why.contains("wrong-one") && !why.contains('\n'),
        "{why}"
    );
}

#[tokio::test]
async fn the_servers_answer_says_whether_another_attempt_is_worth_it() {
    let (_dir, log) = log_file("ok\n");
    // A mail that is refused for good is offered to each of the two recipients.
    for (answer, times, transient) in [
        ("451 try later", 1, true),
        ("521 not for you", 1, true),
        ("530 log in first", 1, true),
        ("554 no thank you", 3, false),
    ] {
        let refuse_first = Some((times, answer));
        let sink = SmtpSink::start(SinkOptions {
            refuse_first,
            ..SinkOptions::default()
        })
        .await;
        let config = config(sink.address().port(), SmtpTls::Off);

        let refused = send(config.clone(), &log).await;
        assert_eq!(
            matches!(refused, Err(MailError::Transient(_))),
            transient,
            "{refused:?}"
        );
        assert!(refused.is_err_and(|why| why.to_string().contains(&answer[4..])));
        send(config, &log)
            .await
            .expect("the second attempt is taken");
    }
}

#[tokio::test]
async fn a_recipient_whom_the_server_refuses_does_not_cost_the_others_their_mail() {
    let unknown = Some("dev@example.org");
    let sink = SmtpSink::start(SinkOptions {
        unknown,
        ..SinkOptions::default()
    })
    .await;
    let (_dir, log) = log_file("ok\n");

    let sent = send(config(sink.address().port(), SmtpTls::Off), &log).await;

    let mail = only_mail(&sink).await;
    assert_eq!(mail.to, "ops@example.org");
    let problem = format!(
        "mail server localhost:{}: not sent to dev@example.org: 550 5.1.1 no such user",
        sink.address().port()
    );
    assert_eq!(sent, Err(MailError::Permanent(problem)));
}

#[tokio::test]
async fn a_server_that_is_not_there_may_be_there_later() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = closed.local_addr().expect("bound").port();
    drop(closed);
    let (_dir, log) = log_file("ok\n");

    let sent = send(config(port, SmtpTls::Off), &log).await;

    assert!(matches!(sent, Err(MailError::Transient(_))), "{sent:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_given_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let smtp = Smtp::new(
        &config(silent.local_addr().expect("bound").port(), SmtpTls::Off),
        "example.org",
    );
    let smtp = smtp.expect("the configuration is good");
    let envelope = Envelope::new(None, vec!["dev@example.org".parse().expect("address")]);

    let sent = smtp.send(&envelope.expect("a recipient"), b"x").await;

    assert!(
        matches!(&sent, Err(MailError::Transient(why)) if why.contains("30 s")),
        "{sent:?}"
    );
}

#[tokio::test]
async fn an_address_that_is_none_is_named_with_its_variable() {
    let problem = async |change: fn(&mut SmtpConfig)| {
        let mut config = config(25, SmtpTls::Off);
        change(&mut config);
        let refused = Mailer::new(
            &MailConfig::Smtp(config),
            html,
            Links::default(),
            MailLogs::default(),
        )
        .await;
        refused.expect_err("refused").to_string()
    };
    let from = problem(|config| config.from = "nobody".to_owned()).await;
    assert_eq!(from, "SMTP_FROM: not a mail address: nobody");
    let to = problem(|config| config.to = vec!["a@b.org".to_owned(), "x y".to_owned()]).await;
    assert_eq!(to, "SMTP_TO: not a mail address: x y");
    assert_eq!(
        problem(|config| config.to.clear()).await,
        "SMTP_TO: no address"
    );
    let bundle = problem(|config| {
        config.tls = SmtpTls::Implicit;
        config.ca_bundle = Some("/nowhere.pem".into());
    })
    .await;
    assert!(
        bundle.starts_with("SSL_CERT_FILE: /nowhere.pem: "),
        "{bundle}"
    );
}
