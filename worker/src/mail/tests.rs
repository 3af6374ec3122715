//! What arrives at a mail server, and what is made of its answers.

use std::path::PathBuf;

use flate2::read::GzDecoder;
use harness::{Certificates, SinkOptions, SmtpSink};
use tempfile::TempDir;

use super::*;
use crate::render::tests::finished;

const ARRIVAL_DEADLINE: Duration = Duration::from_secs(10);

/// Lines that compress badly, as many as asked for.
fn long_log(lines: usize) -> String {
    let random = std::iter::successors(Some(1u64), |n| {
        Some(n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1))
    });
    random
        .take(lines)
        .map(|n| format!("{n:016x}{:016x}\n", n.rotate_left(17)))
        .collect()
}

fn log_file(content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("build.log");
    std::fs::write(&path, content).expect("written");
    (dir, path)
}

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

fn mailer(config: SmtpConfig) -> Mailer {
    Mailer::new(&MailConfig::Smtp(config)).expect("the configuration is good")
}

async fn send(config: SmtpConfig, log: &Path) -> Result<(), MailError> {
    let build = finished(Outcome::Failed { exit_code: 3 }, 12);
    mailer(config)
        .send(&build, &MailContext::default(), log)
        .await
}

async fn only_mail(sink: &SmtpSink) -> harness::Mail {
    let mut mails = sink.wait_for_mails(1, ARRIVAL_DEADLINE).await;
    assert_eq!(mails.len(), 1);
    mails.remove(0)
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
    assert!(
        html.contains("<span style='color:#e5534b'>last ä</span>"),
        "{html}"
    );
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
        matches!(&sent, Err(MailError::Permanent(why)) if why.contains("STARTTLS")),
        "{sent:?}"
    );
    assert!(sink.mails().is_empty());
}

#[tokio::test]
async fn a_wrong_password_is_permanent_and_stays_secret() {
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
    let debug = format!("{:?}", mailer(config.clone()));
    assert!(!debug.contains("wrong-one"), "{debug}");

    let sent = send(config, &log).await;

    let Err(MailError::Permanent(why)) = &sent else {
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
    for (answer, transient) in [("451 try later", true), ("554 no thank you", false)] {
        let refuse_first = Some((1, answer));
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
    let smtp = Smtp::new(&config(
        silent.local_addr().expect("bound").port(),
        SmtpTls::Off,
    ));
    let smtp = smtp.expect("the configuration is good");
    let envelope = Envelope::new(None, vec!["dev@example.org".parse().expect("address")]);

    let sent = smtp.send(&envelope.expect("a recipient"), b"x").await;

    assert!(
        matches!(&sent, Err(MailError::Transient(why)) if why.contains("30 s")),
        "{sent:?}"
    );
}

#[test]
fn an_address_that_is_none_is_named_with_its_variable() {
    let problem = |change: fn(&mut SmtpConfig)| {
        let mut config = config(25, SmtpTls::Off);
        change(&mut config);
        Mailer::new(&MailConfig::Smtp(config))
            .expect_err("refused")
            .to_string()
    };
    let from = problem(|config| config.from = "nobody".to_owned());
    assert_eq!(from, "SMTP_FROM: not a mail address: nobody");
    let to = problem(|config| config.to = vec!["a@b.org".to_owned(), "x y".to_owned()]);
    assert_eq!(to, "SMTP_TO: not a mail address: x y");
    assert_eq!(problem(|config| config.to.clear()), "SMTP_TO: no address");
    let bundle = problem(|config| {
        config.tls = SmtpTls::Implicit;
        config.ca_bundle = Some("/nowhere.pem".into());
    });
    assert!(
        bundle.starts_with("SSL_CERT_FILE: /nowhere.pem: "),
        "{bundle}"
    );
}

#[test]
fn nobody_gets_mail_that_nobody_wants() {
    let (passed, failed, error) = (
        Outcome::Passed,
        Outcome::Failed { exit_code: 1 },
        Outcome::error("x"),
    );
    assert!(is_wanted(MailOn::Always, &passed, Some(&passed)));
    assert!(is_wanted(MailOn::Failure, &failed, Some(&failed)));
    assert!(!is_wanted(MailOn::Failure, &passed, Some(&failed)));
    assert!(is_wanted(MailOn::Change, &passed, None));
    assert!(is_wanted(MailOn::Change, &passed, Some(&failed)));
    assert!(is_wanted(MailOn::Change, &error, Some(&failed)));
    assert!(!is_wanted(
        MailOn::Change,
        &failed,
        Some(&Outcome::TimedOut { timeout_s: 1 })
    ));
    let off = Mailer::new(&MailConfig::Off).expect("off");
    assert!(!off.wants(&failed, None));
}

#[test]
fn mails_of_one_branch_are_one_thread() {
    let main = finished(Outcome::Passed, 1);
    let mut other = main.clone();
    other.request.git_ref = Some("refs/heads/other".parse().expect("ref"));
    let mut shouted = main.clone();
    shouted.request.repo = "OCTO/Hello".parse().expect("repo");
    assert_eq!(thread_id(&main), thread_id(&shouted));
    assert_ne!(thread_id(&main), thread_id(&other));
}

#[test]
fn a_log_that_fits_is_shown_whole() {
    let (_dir, path) = log_file("one\r\n10%\r20%\ntwo\n");
    let (excerpt, attachment) = read_log(&path).expect("read");
    assert_eq!(
        excerpt,
        LogExcerpt {
            tail: "one\n10%\n20%\ntwo\n".into(),
            rest: LogRest::Shown
        }
    );
    assert_eq!(attachment, None);
}

#[test]
fn a_missing_log_is_an_empty_one() {
    let (excerpt, attachment) = read_log(Path::new("/nowhere/build.log")).expect("no error");
    assert_eq!(
        excerpt,
        LogExcerpt {
            tail: String::new(),
            rest: LogRest::Shown
        }
    );
    assert_eq!(attachment, None);
}

#[test]
fn the_tail_of_a_long_log_is_whole_lines() {
    let (_dir, many_lines) = log_file(long_log(TAIL_LINES + 1));
    let (excerpt, attachment) = read_log(&many_lines).expect("read");
    assert_eq!(excerpt.tail.lines().count(), TAIL_LINES);
    assert_eq!(excerpt.rest, LogRest::Attached);
    assert!(attachment.is_some());

    let wide = format!("{}\n", "x".repeat(20_000)).repeat(3);
    let (_dir, wide_lines) = log_file(wide);
    let (excerpt, _) = read_log(&wide_lines).expect("read");
    assert_eq!(excerpt.tail.len(), 20_001);

    let (_dir, one_line) = log_file("ä".repeat(20_000));
    let (excerpt, _) = read_log(&one_line).expect("read");
    assert!(excerpt.tail.len() <= TAIL_BYTES as usize && excerpt.tail.ends_with('ä'));
}

#[test]
fn a_log_that_compresses_to_too_much_is_not_attached() {
    let log = long_log(100);
    let compressed = compress(log.as_bytes(), usize::MAX)
        .expect("in memory")
        .expect("fits");
    let size = compressed.len();
    assert_eq!(
        compress(log.as_bytes(), size).expect("in memory"),
        Some(compressed)
    );
    assert_eq!(compress(log.as_bytes(), size - 1).expect("in memory"), None);
}

#[test]
fn a_large_message_is_given_the_time_that_a_slow_line_needs() {
    assert_eq!(send_deadline(1000), Duration::from_secs(30));
    assert_eq!(send_deadline(8 * 1024 * 1024), Duration::from_secs(30 + 64));
}
