//! What the hook writes: all of it, in order, without secrets, and no more than there is room for.

use std::fs;

use harness::{OneBox, SinkOptions, SmtpSink, TOKEN, TestRepo, WEBHOOK_SECRET};

use crate::fixture::{DEADLINE, Fixture, GATE, at_gate, by_smtp, log, open_gate};
use crate::mail::gunzip;

/// Bytes of every value, in an order that repeats itself nowhere.
fn any_bytes(count: usize) -> Vec<u8> {
    let next = |state: &u64| {
        Some(
            state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1),
        )
    };
    let states = std::iter::successors(Some(1u64), next);
    states
        .map(|state| (state >> 56) as u8)
        .take(count)
        .collect()
}

/// What is stored of a build's log, byte by byte.
fn stored(service: &OneBox, build: &str) -> Vec<u8> {
    let path = service.data_dir().join(format!("logs/{build}.log"));
    fs::read(path).expect("the log was written")
}

#[tokio::test]
async fn any_bytes_are_kept_as_they_were_written() {
    let written = any_bytes(3 << 20);
    let repo = TestRepo::new();
    let sha = repo.write("any", &written).commit("Any bytes");
    let fixture = Fixture::hosting(repo, sha).await;
    let service = fixture.setup("cat any").start().await;
    let built = fixture.build(&service).await;
    built.assert_passed();
    assert!(stored(&service, &built.id) == written, "the log differs");
}

#[tokio::test]
async fn both_outputs_stand_in_the_order_in_which_they_were_written() {
    let fixture = Fixture::plain().await;
    let hook = "for n in $(seq 1000); do echo out $n; echo err $n >&2; done";
    let built = fixture.run(fixture.setup(hook)).await;
    let expected: String = (1..=1000).map(|n| format!("out {n}\nerr {n}\n")).collect();
    assert_eq!(built.log, expected);
}

#[tokio::test]
async fn head_and_tail_of_a_log_over_its_limit_are_kept_and_the_cut_is_told() {
    let fixture = Fixture::plain().await;
    let sink = SmtpSink::start(SinkOptions::default()).await;
    let setup = by_smtp(fixture.setup("seq 1000"), &sink).env("LOG_LIMIT", "1KiB");
    let service = setup.start().await;
    let built = fixture.build(&service).await;
    built.assert_passed();

    let whole: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    let (head, tail) = (&whole[..512], &whole[whole.len() - 512..]);
    let notice = "[compose-ci: 2869 bytes of the log were left out here (LOG_LIMIT)]";
    assert_eq!(built.log, format!("{head}\n{notice}\n{tail}"));
    assert!(built.page.contains(notice), "{}", built.page);
    let mail = sink.wait_for_mails(1, DEADLINE).await.remove(0);
    assert!(gunzip(&mail.attachments[0]).contains(notice));
    let files = fs::read_dir(service.data_dir().join("logs")).expect("listed");
    assert_eq!(files.count(), 1, "nothing but the log is left");
}

#[tokio::test]
async fn a_page_shows_what_the_hook_wrote_as_text() {
    let fixture = Fixture::plain().await;
    let hook = r"printf '\033[32m</pre><script>alert(1)</script>\033[0m \377\n'";
    let service = fixture.setup(hook).start().await;
    let built = fixture.build(&service).await;
    let text = "<pre>\n&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt; \u{FFFD}\n</pre>";
    assert!(built.page.contains(text), "{}", built.page);
    let answer = service.get(&format!("/builds/{}", built.id)).await;
    let policy = answer.headers.get("content-security-policy");
    let policy = policy.and_then(|policy| policy.to_str().ok());
    assert!(policy.is_some_and(|policy| policy.starts_with("default-src 'none'")));
}

#[tokio::test]
async fn the_page_of_a_running_build_shows_what_was_written_so_far() {
    let fixture = Fixture::plain().await;
    let service = fixture.setup(&format!("seq 100; {GATE}")).start().await;
    let build = fixture.push(&service).await;
    at_gate(&fixture.engine, &build).await;
    let page = format!("/builds/{build}");
    let shows_it = async { while !service.get(&page).await.body.contains("<pre>\n1\n2\n") {} };
    let in_time = tokio::time::timeout(DEADLINE, shows_it).await;
    assert!(in_time.is_ok(), "{}", service.get(&page).await.body);
    open_gate(&build).await;
    fixture.finished(&service, build).await.assert_passed();
}

#[tokio::test]
async fn a_log_is_recorded_after_its_folder_was_removed() {
    let fixture = Fixture::plain().await;
    let service = fixture.setup("echo recorded").start().await;
    std::fs::remove_dir_all(service.data_dir().join("logs")).expect("removed");
    let built = fixture.build(&service).await;
    built.assert_passed();
    assert_eq!(built.log, "recorded\n");
}

#[tokio::test]
async fn a_process_that_the_hook_leaves_behind_holds_nothing_up() {
    let fixture = Fixture::plain().await;
    let built = fixture.run(fixture.setup("sleep 600 & echo done")).await;
    built.assert_passed();
    assert_eq!(built.log, "done\n");
}

/// A secret that is written in two halves.
const HALVED: (&str, &str) = ("the-first-half-and-", "the-second-half");

const PRIVATE_KEY: [&str; 3] = [
    "-----BEGIN PRIVATE KEY-----",
    "bm90IGEga2V5LCBidXQgYXMgbG9uZyBhcyBhIGxpbmUgb2Ygb25l",
    "-----END PRIVATE KEY-----",
];

const SMTP_PASSWORD: &str = "the password of the tests";

#[tokio::test]
async fn secrets_stand_nowhere_whatever_the_hook_does_with_them() {
    let fixture = Fixture::plain().await;
    let sink = SmtpSink::start(SinkOptions {
        login: Some(("ci", SMTP_PASSWORD)),
        ..SinkOptions::default()
    })
    .await;
    let hook = format!(
        "env; echo $DEPLOY_TOKEN | grep --color=always {half}
        printf %s \"user:$DEPLOY_TOKEN\" | base64 --wrap=0; echo
        printf 'a\\033]0;b\\a%s\\n' $DEPLOY_TOKEN | sed 's/{half}/\\x00\\x1b[m&/'
        echo \"$DEPLOY_PRIVATE_KEY\" | sed 's/^/  key: /'
        printf %s \"${{DEPLOY_TOKEN%{half}}}\"; {GATE}; echo {half}
        for n in $(seq 500); do echo \"$n $GITHUB_TOKEN\"; done",
        half = HALVED.1
    );
    let service = by_smtp(fixture.setup(&hook), &sink)
        .env("SMTP_USER", "ci")
        .env("SMTP_PASS", SMTP_PASSWORD)
        .env("DEPLOY_TOKEN", [HALVED.0, HALVED.1].concat())
        .env("DEPLOY_PRIVATE_KEY", PRIVATE_KEY.join("\n"))
        .env("LOG_LEVEL", "trace")
        .start()
        .await;
    let build = fixture.push(&service).await;
    at_gate(&fixture.engine, &build).await;
    let while_it_ran = service.get(&format!("/builds/{build}")).await.body;
    let log_while_it_ran = log(&service, &build);
    open_gate(&build).await;
    let built = fixture.finished(&service, build).await;
    built.assert_passed();
    let mail = sink.wait_for_mails(1, DEADLINE).await.remove(0);

    for told in [
        "GITHUB_TOKEN=***\n",
        "  key: ***\n",
        "\n***\n1 ***\n",
        "500 ***\n",
    ] {
        assert!(built.log.contains(told), "{told:?} in {}", built.log);
    }
    let places = [
        ("the page while it ran", while_it_ran),
        ("the log while it ran", log_while_it_ran),
        ("the page", built.page),
        ("the log", built.log),
        ("the subject", mail.subject),
        ("the mail's text", mail.text),
        ("the mail's HTML", mail.html.unwrap_or_default()),
        ("the mail's attachment", gunzip(&mail.attachments[0])),
        ("the service's log", service.log()),
        ("a status", format!("{:?}", built.statuses)),
    ];
    let secrets = [TOKEN, WEBHOOK_SECRET, SMTP_PASSWORD, HALVED.0];
    for (place, text) in places {
        assert!(!text.is_empty(), "{place} is empty");
        for secret in secrets.iter().chain(&PRIVATE_KEY) {
            assert!(
                !text.contains(secret),
                "{secret} stands in {place}:\n{text}"
            );
        }
    }
}
