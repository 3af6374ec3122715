//! What SES is sent, and what is made of its answers.

use std::path::Path;

use aws_sdk_ses::config::Region;
use harness::{Aws, REGION, SinkOptions, SmtpSink};
use shared::config::{MailConfig, MailOn, SmtpConfig, SmtpTls};

use super::*;
use crate::notify::mail::excerpt::ATTACHMENT_MAX_BYTES;
use crate::notify::mail::message::Addresses;
use crate::notify::mail::tests::{log_file, long_log, noise};
use crate::notify::mail::{Mailer, Transport};
use crate::notify::tests::html;
use crate::notify::{Links, MailLogs};
use shared::build::Outcome;
use shared::build::samples::ended;
use shared::net::aws::samples;
use shared::words::MailContext;

const FROM: &str = "The CI <ci@example.org>";

fn to() -> Vec<String> {
    ["dev@example.org", "Ops <ops@example.org>"]
        .map(str::to_owned)
        .into()
}

async fn sdk(endpoint_url: &str) -> SdkConfig {
    samples::sdk_config(REGION, endpoint_url).await
}

/// An account that has verified the domain of all addresses.
async fn verified() -> Aws {
    let aws = Aws::start().await;
    aws.verify_email("example.org").await;
    aws
}

async fn send(sdk: &SdkConfig, log: &Path) -> Result<(), MailError> {
    let addresses = Addresses::new(("SES_FROM", FROM), ("SES_TO", &to()));
    let mailer = Mailer {
        addresses: addresses.expect("addresses"),
        on: MailOn::Always,
        transport: Transport::Ses(Ses::new(sdk).expect("there is a region")),
        html,
        links: Links::default(),
        logs: MailLogs::default(),
    };
    send_by(&mailer, log).await
}

async fn send_by(mailer: &Mailer, log: &Path) -> Result<(), MailError> {
    let build = ended(Outcome::Failed { exit_code: 3 }, 12);
    mailer.deliver(&build, &MailContext::default(), log).await
}

/// The line of an error after which it is tried again.
async fn transient(aws: &Aws) -> String {
    match refused(aws).await {
        MailError::Transient(line) => line,
        error => panic!("{error:?}"),
    }
}

async fn refused(aws: &Aws) -> MailError {
    let (_dir, log) = log_file("ok\n");
    let sent = send(&sdk(&aws.endpoint_url()).await, &log).await;
    sent.expect_err("refused")
}

#[tokio::test]
async fn ses_gets_the_message_that_a_mail_server_would_get() {
    let (aws, sink) = (
        verified().await,
        SmtpSink::start(SinkOptions::default()).await,
    );
    let (_dir, log) = log_file(format!("{}\x1b[31mlast ä\x1b[0m\n", long_log(1000)));
    let by_smtp = MailConfig::Smtp(SmtpConfig {
        host: "localhost".to_owned(),
        port: sink.address().port(),
        tls: SmtpTls::Off,
        credentials: None,
        from: FROM.to_owned(),
        to: to(),
        on: MailOn::Always,
        ca_bundle: None,
    });
    let by_smtp = Mailer::new(&by_smtp, html, Links::default(), MailLogs::default());
    let by_smtp = by_smtp.await.expect("valid").expect("it names people");

    send(&sdk(&aws.endpoint_url()).await, &log)
        .await
        .expect("sent");
    send_by(&by_smtp, &log).await.expect("sent");

    let (mails, smtp_mails) = (aws.sent_mails().await, sink.mails());
    let ([mail], [smtp_mail]) = (&mails[..], &smtp_mails[..]) else {
        panic!("{mails:?} {smtp_mails:?}");
    };
    assert_eq!(mail.from, smtp_mail.from);
    assert_eq!(mail.to, smtp_mail.to);
    assert_eq!(mail.subject, smtp_mail.subject);
    assert_eq!(mail.text, smtp_mail.text);
    assert_eq!(mail.html, smtp_mail.html);
    let ([log], [smtp_log]) = (&mail.attachments[..], &smtp_mail.attachments[..]) else {
        panic!("{mails:?} {smtp_mails:?}");
    };
    assert_eq!(log.name, smtp_log.name);
    assert!(log.bytes == smtp_log.bytes, "the same log");
    let of_a_program = |mail: &harness::Mail| {
        String::from_utf8_lossy(&mail.raw).contains("\r\nAuto-Submitted: auto-generated\r\n")
    };
    assert!(of_a_program(mail) && of_a_program(smtp_mail));
}

/// Half of this log, which cannot be compressed, just fits; its last lines swell in HTML.
#[tokio::test]
async fn the_largest_message_stays_below_the_limit_of_ses() {
    let aws = verified().await;
    let nearly = ATTACHMENT_MAX_BYTES - 10_000;
    let mut content: Vec<u8> = noise().map(|n| (n >> 56) as u8).take(2 * nearly).collect();
    let coloured = "\x1b[31mä\x1b[32m\x1b[1mö".repeat(20) + "\n";
    content.extend(coloured.repeat(200).bytes());
    let (_dir, log) = log_file(&content);

    send(&sdk(&aws.endpoint_url()).await, &log)
        .await
        .expect("sent");

    let mail = aws.sent_mails().await.remove(0);
    let attached_bytes = mail.attachments[0].bytes.len();
    let limit = ATTACHMENT_MAX_BYTES - 60_000..=ATTACHMENT_MAX_BYTES;
    assert!(limit.contains(&attached_bytes), "{attached_bytes} bytes");
    let size_bytes = mail.raw.len();
    assert!(size_bytes < 10_000_000, "{size_bytes} bytes");
    assert!(mail.text.contains("as much as fits is attached:"));
}

#[tokio::test]
async fn a_sender_whom_nobody_has_verified_is_told_with_what_to_do() {
    let aws = Aws::start().await;
    insta::assert_snapshot!(transient(&aws).await, @"SES in eu-west-1: MessageRejected: Email address is not verified. The following identities failed the check in region EU-WEST-1: ci@example.org, dev@example.org, ops@example.org (verify the sender in the SES console of this region, and while the account is in the sandbox every recipient)");
    assert!(aws.sent_mails().await.is_empty());
}

#[tokio::test]
async fn a_recipient_outside_of_the_sandbox_is_told_with_what_to_do() {
    let aws = Aws::start().await;
    for address in ["ci@example.org", "dev@example.org"] {
        aws.verify_email(address).await;
    }
    insta::assert_snapshot!(transient(&aws).await, @"SES in eu-west-1: MessageRejected: Email address is not verified. The following identities failed the check in region EU-WEST-1: ops@example.org (verify the sender in the SES console of this region, and while the account is in the sandbox every recipient)");
}

#[tokio::test]
async fn what_only_a_person_can_mend_is_told_with_what_to_do_and_tried_again() {
    let aws = verified().await;
    let mut lines = Vec::new();
    for (status, code, text) in [
        (
            400,
            "MailFromDomainNotVerifiedException",
            "The domain is not verified.",
        ),
        (400, "AccountSendingPausedException", "Sending is paused."),
        (403, "AccessDenied", "You are not\nauthorized."),
        (403, "InvalidClientTokenId", "The token is invalid."),
        (404, "NotFound", "What?"),
    ] {
        aws.refuse_mail(status, code, text).await;
        lines.push(transient(&aws).await);
    }
    insta::assert_snapshot!(lines.join("\n"), @"
    SES in eu-west-1: MailFromDomainNotVerifiedException: The domain is not verified. (verify the custom MAIL FROM domain of SES_FROM in the SES console of this region)
    SES in eu-west-1: AccountSendingPausedException: Sending is paused. (resume the account's sending in the SES console of this region)
    SES in eu-west-1: AccessDenied: You are not authorized. (allow these credentials ses:SendRawEmail from SES_FROM)
    SES in eu-west-1: InvalidClientTokenId: The token is invalid. (check the AWS credentials)
    SES in eu-west-1: NotFound: What?
    ");
}

#[tokio::test]
async fn a_message_that_ses_does_not_want_is_not_sent_again() {
    let aws = verified().await;
    for (code, text) in [
        ("MessageRejected", "Bad content."),
        ("InvalidParameterValue", "Missing final '@domain'"),
    ] {
        aws.refuse_mail(400, code, text).await;
        let line = format!("SES in {REGION}: {code}: {text}");
        assert_eq!(refused(&aws).await, MailError::Permanent(line));
    }
}

#[tokio::test]
async fn what_passes_by_itself_is_tried_again() {
    let aws = verified().await;
    let sdk = sdk(&aws.endpoint_url()).await;
    let (_dir, log) = log_file("ok\n");
    for (status, code, text) in [
        (400, "Throttling", "Maximum sending rate exceeded."),
        (400, "Throttling", "Daily message quota exceeded."),
        (429, "TooManyRequestsException", "Slow down."),
        (403, "ExpiredToken", "The token has expired."),
        (500, "InternalFailure", "Oh."),
        (503, "ServiceUnavailable", "Oh."),
    ] {
        aws.refuse_mail(status, code, text).await;
        let refused = send(&sdk, &log).await;
        let line = format!("SES in {REGION}: {code}: {text}");
        assert_eq!(refused, Err(MailError::Transient(line)));
    }
    // None of them was tried again here.
    send(&sdk, &log).await.expect("sent");
    assert_eq!(aws.sent_mails().await.len(), 1);
}

#[tokio::test]
async fn credentials_that_are_missing_may_be_there_later() {
    let nobody = samples::without_credentials(sdk("http://127.0.0.1:9").await);
    let (_dir, log) = log_file("ok\n");
    let sent = send(&nobody, &log).await;
    let Err(MailError::Transient(line)) = sent else {
        panic!("{sent:?}")
    };
    insta::assert_snapshot!(line, @"SES in eu-west-1: no AWS credentials that can be used: dispatch failure: other: the credential provider was not enabled: none here");
}

#[tokio::test]
async fn a_network_that_is_down_may_be_up_later() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint_url = format!("http://{}", closed.local_addr().expect("bound"));
    drop(closed);
    let (_dir, log) = log_file("ok\n");
    let sent = send(&sdk(&endpoint_url).await, &log).await;
    assert!(matches!(sent, Err(MailError::Transient(_))), "{sent:?}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_come_is_given_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let endpoint_url = format!("http://{}", silent.local_addr().expect("bound"));
    let (_dir, log) = log_file("ok\n");
    let sent = send(&sdk(&endpoint_url).await, &log).await;
    let line = format!("SES in {REGION}: not done after 30 s");
    assert_eq!(sent, Err(MailError::Transient(line)));
}

#[tokio::test]
async fn a_region_that_nobody_names_is_told() {
    let sdk = sdk("http://127.0.0.1:9").await;
    let nowhere = sdk.into_builder().region(None::<Region>).build();
    let error = Ses::new(&nowhere).expect_err("no region");
    insta::assert_snapshot!(error, @"AWS_REGION: missing (SES_FROM does not name the region)");
}
