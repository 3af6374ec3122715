//! What people get by mail, and that a mail server can do nothing to a build.

use std::fs;
use std::io::Read;

use flate2::read::GzDecoder;
use futures_util::future::join;
use harness::{Attachment, Certificates, Mail, OneBox, SinkOptions, SmtpSink, Tls};

use crate::fixture::{DEADLINE, Fixture, by_smtp, told, without_times};

/// What the sink asks a client to log in with.
const LOGIN: (&str, &str) = ("ci", "the password of the tests");

async fn only_mail(sink: &SmtpSink) -> Mail {
    let mut mails = sink.wait_for_mails(1, DEADLINE).await;
    assert_eq!(mails.len(), 1, "{mails:#?}");
    mails.remove(0)
}

/// The content of a gzip file.
pub(crate) fn gunzip(file: &Attachment) -> String {
    let mut content = String::new();
    let read = GzDecoder::new(&file.bytes[..]).read_to_string(&mut content);
    read.expect("it is gzip and text");
    content
}

/// The mail's text without what differs from run to run.
pub(crate) fn generic(mail: &Mail, sha: &str, build: &str) -> String {
    let generic_line = |line: &str| match line.strip_prefix("Started") {
        Some(_) => "Started     <time>".to_owned(),
        None => without_times(line)
            .replace(sha, "<sha>")
            .replace(build, "<id>")
            .trim_end()
            .to_owned(),
    };
    let lines: Vec<_> = mail.text.lines().map(generic_line).collect();
    lines.join("\n")
}

#[tokio::test]
async fn a_mail_says_what_was_built_how_it_ended_and_what_the_hook_wrote() {
    let fixture = Fixture::plain().await;
    let sink = SmtpSink::start(SinkOptions::default()).await;
    let hook = r"printf 'plain \033[31mred\033[0m & <b>\n'; exit 3";
    let built = fixture.run(by_smtp(fixture.setup(hook), &sink)).await;
    let mail = only_mail(&sink).await;
    assert_eq!(mail.from, "ci@example.org");
    assert_eq!(mail.to, "team@example.org");
    insta::assert_snapshot!(generic(&mail, &fixture.sha, &built.id), @r"
    failed with exit code 3 after …

    Repository  octo/hello
    Branch      main
    Commit      <sha>
    Started     <time>

    The log:

    plain red & <b>

    --
    Build <id>
    ");
    let html = mail.html.expect("an HTML part");
    let coloured = "plain <span style='color:#e5534b'>red</span> &amp; &lt;b&gt;";
    assert!(html.contains(coloured), "{html}");
    assert!(mail.attachments.is_empty(), "all of the log is shown");
}

#[tokio::test]
async fn of_a_long_log_the_end_is_shown_and_the_whole_is_attached() {
    let fixture = Fixture::plain().await;
    let sink = SmtpSink::start(SinkOptions::default()).await;
    let built = fixture
        .run(by_smtp(fixture.setup("seq 10000"), &sink))
        .await;
    let mail = only_mail(&sink).await;
    let (_, shown) = mail
        .text
        .split_once("The end of the log; the whole log is attached:")
        .expect("the heading");
    let shown: Vec<_> = shown.trim_start().lines().collect();
    assert_eq!(shown.first(), Some(&"9801"));
    assert!(shown.contains(&"10000"), "{shown:?}");
    let [attachment] = &mail.attachments[..] else {
        panic!("one attachment: {:?}", mail.attachments)
    };
    assert_eq!(attachment.name, "build.log.gz");
    assert_eq!(attachment.content_type, "application/gzip");
    assert_eq!(gunzip(attachment), built.log);
    assert_eq!(built.log.lines().count(), 10_000);
}

/// Sends a mail to a sink that asks for TLS and a login, and whose authority only we know.
async fn protected<'a>(certificates: &'a Certificates, port: Option<u16>, tls: Tls<'a>) {
    let fixture = Fixture::plain().await;
    let sink = SmtpSink::start(SinkOptions {
        port,
        tls,
        login: Some(LOGIN),
        ..SinkOptions::default()
    })
    .await;
    let setup = by_smtp(fixture.setup("true"), &sink)
        .without("SMTP_TLS")
        .env("SSL_CERT_FILE", certificates.ca().display().to_string())
        .env("SMTP_USER", LOGIN.0)
        .env("SMTP_PASS", LOGIN.1);
    fixture.run(setup).await.assert_passed();
    let subject = only_mail(&sink).await.subject;
    assert!(subject.contains(" passed in "), "{subject}");
}

#[tokio::test]
async fn the_way_to_the_server_begins_in_the_clear_and_goes_on_by_starttls() {
    let certificates = Certificates::new();
    protected(&certificates, None, Tls::StartTls(&certificates)).await;
}

#[tokio::test]
async fn the_way_to_port_465_is_encrypted_from_the_first_byte() {
    let certificates = Certificates::new();
    protected(&certificates, Some(465), Tls::Implicit(&certificates)).await;
}

/// Which of these builds of one branch are mailed with this `MAIL_ON`: failed, failed, passed,
/// passed, failed. The last one must be, for nobody can wait for a mail that does not come.
async fn mailed(mail_on: &str) -> Vec<usize> {
    let mut fixture = Fixture::plain().await;
    let sink = SmtpSink::start(SinkOptions::default()).await;
    let setup = by_smtp(fixture.setup("sh ./tests"), &sink).env("MAIL_ON", mail_on);
    let service = setup.start().await;
    let mut commits = Vec::new();
    for exit_code in [1, 1, 0, 0, 1] {
        let tests = format!("exit {exit_code}");
        fixture.commit("tests", &tests);
        let built = fixture.build(&service).await;
        let passed = told(&built.statuses)[1].starts_with("Success");
        assert_eq!(passed, exit_code == 0, "{:?} {}", built.statuses, built.log);
        commits.push(fixture.sha.clone());
    }
    let of_the_last = |mail: &Mail| mail.text.contains(&commits[4]);
    let mut mails = sink.wait_for_mails(1, DEADLINE).await;
    while !mails.iter().any(of_the_last) {
        mails = sink.wait_for_mails(mails.len() + 1, DEADLINE).await;
    }
    let of = |mail: &Mail| commits.iter().position(|sha| mail.text.contains(sha));
    mails.iter().filter_map(of).collect()
}

#[tokio::test]
async fn mail_on_chooses_which_outcomes_are_mailed() {
    let (failures, changes) = join(mailed("failure"), mailed("change")).await;
    assert_eq!(failures, [0, 1, 4]);
    assert_eq!(changes, [0, 2, 4]);
}

#[tokio::test]
async fn a_server_that_refuses_at_first_gets_the_mail_later_and_the_status_does_not_wait() {
    let fixture = Fixture::plain().await;
    let sink = SmtpSink::start(SinkOptions {
        refuse_first: Some((1, "451 try later")),
        ..SinkOptions::default()
    })
    .await;
    let service = by_smtp(fixture.setup("true"), &sink).start().await;
    let built = fixture.build(&service).await;
    built.assert_passed();
    let mail = only_mail(&sink).await;
    assert!(mail.text.contains(&built.id), "{}", mail.text);
    assert_eq!(sink.refused(), 1);
}

/// The lines of the service's log about mail, without what differs from run to run.
fn about_mail(service: &OneBox, sink: &SmtpSink, build: &str) -> Vec<String> {
    let log = service.log();
    let lines = log.lines().filter(|line| line.contains("report=\"mail\""));
    let without_time = lines.filter_map(|line| line.split_once("Z "));
    without_time
        .map(|(_time, line)| line.trim_start().replace(build, "<id>"))
        .map(|line| line.replace(&sink.address().to_string(), "<server>"))
        .collect()
}

#[tokio::test]
async fn a_password_that_is_refused_is_told_once_in_the_services_log_and_may_be_renewed() {
    let fixture = Fixture::plain().await;
    let sink = SmtpSink::start(SinkOptions {
        login: Some(LOGIN),
        ..SinkOptions::default()
    })
    .await;
    let secrets = tempfile::tempdir().expect("a directory");
    let password = secrets.path().join("password");
    fs::write(&password, "an old password").expect("written");
    let mut service = by_smtp(fixture.setup("echo built"), &sink)
        .env("SMTP_USER", LOGIN.0)
        .env("SMTP_PASS_FILE", password.display().to_string())
        .start()
        .await;
    let built = fixture.build(&service).await;
    built.assert_passed();
    // It is tried again.
    sink.wait_for_wrong_logins(3, DEADLINE).await;
    service.stop(DEADLINE).await;
    insta::assert_snapshot!(about_mail(&service, &sink, &built.id).join("\n"), @r#"WARN failed to report; trying for a day build=<id> report="mail" reason="mail server <server>: 535 5.7.8 Authentication credentials invalid""#);
    assert!(sink.mails().is_empty());

    fs::write(&password, LOGIN.1).expect("written");
    service.start_again().await;
    let mail = only_mail(&sink).await;
    assert!(mail.text.contains(&built.id), "{}", mail.text);
}

#[tokio::test]
async fn without_a_server_nobody_is_mailed_and_nothing_is_wrong() {
    let fixture = Fixture::plain().await;
    let sink = SmtpSink::start(SinkOptions::default()).await;
    let setup = by_smtp(fixture.setup("echo built"), &sink).without("SMTP_HOST");
    let mut service = setup.start().await;
    let built = fixture.build(&service).await;
    built.assert_passed();
    // What is owed at the end is sent before the end.
    service.stop(DEADLINE).await;
    assert_eq!(about_mail(&service, &sink, &built.id), [""; 0]);
    assert!(sink.mails().is_empty());
}
