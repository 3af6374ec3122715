//! Mail by Amazon SES: what people get is what a mail server would have brought them.

use harness::{Aws, Mail, REGION, Setup, SinkOptions, SmtpSink};

use crate::fixture::{DEADLINE, Fixture, by_smtp, refused, told, without_times};
use crate::mail::{generic, gunzip};

/// An account that has verified the sender's domain, and the recipients'.
async fn verified() -> Aws {
    let aws = Aws::start().await;
    aws.verify_email("example.org").await;
    aws
}

/// The service with mail by this emulator.
fn by_ses(setup: Setup, aws: &Aws) -> Setup {
    setup
        .env("SES_FROM", "ci@example.org")
        .env("SES_TO", "team@example.org")
        .env("AWS_ENDPOINT_URL", aws.endpoint_url())
        .env("AWS_REGION", REGION)
        .env("AWS_ACCESS_KEY_ID", "an-id")
        .env("AWS_SECRET_ACCESS_KEY", "the secret key")
}

async fn only_mail(aws: &Aws) -> Mail {
    let mut mails = aws.wait_for_mails(1).await;
    assert_eq!(mails.len(), 1, "{mails:#?}");
    mails.remove(0)
}

#[tokio::test]
async fn a_build_is_told_by_ses_as_it_is_by_smtp() {
    let hook = r"printf '\033[31mred\033[0m\n'; seq 1000; exit 3";
    let fixture = Fixture::plain().await;
    let aws = verified().await;
    let built = fixture.run(by_ses(fixture.setup(hook), &aws)).await;
    let mail = only_mail(&aws).await;

    let smtp_fixture = Fixture::hosting(fixture.repo, fixture.sha).await;
    let sink = SmtpSink::start(SinkOptions::default()).await;
    let setup = by_smtp(smtp_fixture.setup(hook), &sink);
    let smtp_built = smtp_fixture.run(setup).await;
    let smtp_mail = sink.wait_for_mails(1, DEADLINE).await.remove(0);

    let sha = &smtp_fixture.sha;
    assert_eq!(told(&built.statuses), told(&smtp_built.statuses));
    assert_eq!([&mail.from, &mail.to], [&smtp_mail.from, &smtp_mail.to]);
    assert_eq!(
        without_times(&mail.subject),
        without_times(&smtp_mail.subject)
    );
    assert_eq!(
        generic(&mail, sha, &built.id),
        generic(&smtp_mail, sha, &smtp_built.id)
    );
    let parts = |mail: &Mail| {
        let files = mail.attachments.iter();
        let files: Vec<_> = files
            .map(|file| (file.name.clone(), file.content_type.clone(), gunzip(file)))
            .collect();
        (mail.html.is_some(), files)
    };
    assert_eq!(parts(&mail), parts(&smtp_mail));
}

#[tokio::test]
async fn the_hook_gets_the_addresses_and_the_mail_no_secret() {
    let fixture = Fixture::plain().await;
    let aws = verified().await;
    let hook = "echo from $SES_FROM to $SES_TO; echo key $AWS_SECRET_ACCESS_KEY";
    fixture.run(by_ses(fixture.setup(hook), &aws)).await;
    let text = only_mail(&aws).await.text;
    let told = "from ci@example.org to team@example.org\r\nkey ***\r\n";
    assert!(text.contains(told), "{text}");
}

#[tokio::test]
async fn a_quota_that_is_used_up_delays_the_mail_and_not_the_status() {
    let fixture = Fixture::plain().await;
    let aws = verified().await;
    let quota = "Maximum sending rate exceeded.";
    aws.refuse_mail(400, "Throttling", quota).await;
    let service = by_ses(fixture.setup("true"), &aws).start().await;
    let built = fixture.build(&service).await;
    built.assert_passed();
    let mail = only_mail(&aws).await;
    assert!(mail.text.contains(&built.id), "{}", mail.text);
    service.wait_for_log(quota, DEADLINE).await;
}

#[tokio::test]
async fn a_sender_that_is_not_verified_is_told_once_in_the_services_log_and_may_be_verified() {
    let fixture = Fixture::plain().await;
    let aws = Aws::start().await;
    let mut service = by_ses(fixture.setup("true"), &aws).start().await;
    fixture.build(&service).await.assert_passed();
    service
        .wait_for_log("failed to report; trying for a day", DEADLINE)
        .await;
    aws.verify_email("example.org").await;
    only_mail(&aws).await;
    service.stop(DEADLINE).await;
    let log = service.log();
    let about_mail = |line: &&str| line.contains("report=\"mail\"");
    let lines: Vec<_> = log.lines().filter(about_mail).collect();
    let [line] = lines[..] else {
        panic!("{lines:?}")
    };
    let what_to_do = "verify the sender in the SES console of this region";
    assert!(line.contains(what_to_do), "{line}");
}

#[tokio::test]
async fn settings_that_do_not_fit_together_are_told_at_the_start() {
    let fixture = Fixture::plain().await;
    let setup = || {
        fixture
            .setup("true")
            .env("SES_FROM", "ci@example.org")
            .env("SES_TO", "team@example.org")
            // Not to ask a machine at AWS where it is.
            .env("AWS_EC2_METADATA_DISABLED", "true")
    };
    let mut told = String::new();
    for setup in [
        setup(),
        setup().env("AWS_REGION", REGION).env("SES_TO", "nobody"),
        setup().without("SES_TO"),
        setup().env("SMTP_HOST", "mail.example.org"),
    ] {
        told.push_str(&refused(&setup, "serve").await);
    }
    insta::assert_snapshot!(told, @"
    compose-ci: AWS_REGION: missing (SES_FROM does not name the region)
    compose-ci: SES_TO: not a mail address: nobody
    compose-ci: SES_TO: missing (recipients, comma separated, needed with SES_FROM)
    compose-ci: SMTP_HOST: set either SMTP_HOST or SES_FROM and SES_TO
    ");
}
