//! Every way in which a build can end: what everybody is told, and nothing left on the engine.

use std::io::{self, Read};

use harness::{Endpoint, Fault, Setup, SinkOptions, SmtpSink, Tarball, docker};

use crate::fixture::{
    Built, DEADLINE, Fixture, GATE, MADE_UP, REPO, at_gate, by_smtp, without_times,
};

/// What is told about one build, for a snapshot: statuses, page and mail.
struct Story {
    told: String,
    built: Built,
}

impl Story {
    async fn of(fixture: &Fixture, setup: Setup) -> Self {
        Self::disturbed(fixture, setup, async |_| ()).await
    }

    /// As [`Story::of`], while something happens to the build of this id.
    async fn disturbed(fixture: &Fixture, setup: Setup, disturb: impl AsyncFnOnce(&str)) -> Self {
        let sink = SmtpSink::start(SinkOptions::default()).await;
        let service = by_smtp(setup, &sink).start().await;
        let build = fixture.push(&service).await;
        disturb(&build).await;
        let built = fixture.finished(&service, build).await;
        let mail = sink.wait_for_mails(1, DEADLINE).await.remove(0);
        assert!(
            mail.text
                .trim_end()
                .ends_with(&format!("Build {}", built.id))
        );

        let short = &fixture.sha[..7];
        let lines = [
            built.told().join("\n"),
            format!("page: {}", without_times(&headline(&built.page))),
            format!("mail: {}", without_times(&mail.subject)).replace(short, "<sha>"),
        ];
        Self {
            told: lines.join("\n").replace(short, "<sha>"),
            built,
        }
    }
}

/// What stands in the page's `<h1>`.
fn headline(page: &str) -> String {
    let (_, after) = page.split_once("<h1 class=\"").expect("a headline");
    let (_, text) = after.split_once("\">").expect("its text");
    let (text, _) = text.split_once("</h1>").expect("its end");
    text.replace("&lt;", "<").replace("&quot;", "\"")
}

#[tokio::test]
async fn passed() {
    let fixture = Fixture::plain().await;
    let story = Story::of(&fixture, fixture.setup("cat README.md")).await;
    insta::assert_snapshot!(story.told, @r"
    Pending: building
    Success: passed in …
    page: passed in …
    mail: [octo/hello] main <sha> passed in …
    ");
    assert_eq!(story.built.log, "hello\n");
    assert!(story.built.page.contains("<pre>\nhello\n</pre>"));
}

#[tokio::test]
async fn failed_with_the_exit_code_of_the_hook() {
    let fixture = Fixture::plain().await;
    let story = Story::of(&fixture, fixture.setup("echo out; echo err >&2; exit 3")).await;
    insta::assert_snapshot!(story.told, @r"
    Pending: building
    Failure: failed with exit code 3 after …
    page: failed with exit code 3 after …
    mail: [octo/hello] main <sha> failed with exit code 3 after …
    ");
    assert_eq!(story.built.log, "out\nerr\n");
}

#[tokio::test]
async fn a_hook_out_of_time_may_say_goodbye() {
    let fixture = Fixture::plain().await;
    let hook = "trap 'echo goodbye; exit 0' TERM; while :; do sleep 0.1; done";
    let setup = fixture.setup(hook).env("BUILD_TIMEOUT", "2s");
    let story = Story::of(&fixture, setup).await;
    insta::assert_snapshot!(story.told, @r"
    Pending: building
    Failure: timed out after 2s
    page: timed out after 2s
    mail: [octo/hello] main <sha> timed out after 2s
    ");
    assert!(
        story.built.log.ends_with("goodbye\n"),
        "{}",
        story.built.log
    );
}

#[tokio::test]
async fn a_hook_out_of_time_that_ignores_it_is_killed_after_ten_seconds() {
    let fixture = Fixture::plain().await;
    let hook = "trap '' TERM; while :; do sleep 0.1; done";
    let setup = fixture.setup(hook).env("BUILD_TIMEOUT", "1s");
    let story = Story::of(&fixture, setup).await;
    insta::assert_snapshot!(story.told, @r"
    Pending: building
    Failure: timed out after 1s
    page: timed out after 1s
    mail: [octo/hello] main <sha> timed out after 1s
    ");
}

/// Takes four times the memory that the builds of these tests may have.
const HOG: &str = "perl -e '$x = \"x\" x (128 << 20)'";

#[tokio::test]
async fn out_of_memory() {
    let fixture = Fixture::plain().await;
    let setup = fixture.setup(HOG).env("BUILD_MEMORY", "32MiB");
    let story = Story::of(&fixture, setup).await;
    insta::assert_snapshot!(story.told, @r"
    Pending: building
    Failure: out of memory (limit 32MiB) after …
    page: out of memory (limit 32MiB) after …
    mail: [octo/hello] main <sha> out of memory (limit 32MiB) after …
    ");
}

#[tokio::test]
async fn out_of_memory_is_no_success_when_the_hook_goes_on() {
    let fixture = Fixture::plain().await;
    let hook = format!("{HOG}; echo went on; exit 0");
    let setup = fixture.setup(&hook).env("BUILD_MEMORY", "32MiB");
    let story = Story::of(&fixture, setup).await;
    insta::assert_snapshot!(story.told, @r"
Pending: building
Failure: out of memory (limit 32MiB) after …
page: out of memory (limit 32MiB) after …
mail: [octo/hello] main <sha> out of memory (limit 32MiB) after …
");
    assert!(story.built.log.contains("went on"), "{}", story.built.log);
}

#[tokio::test]
async fn an_image_that_is_nowhere() {
    let fixture = Fixture::plain().await;
    let setup = fixture
        .setup("true")
        .env("BUILD_IMAGE", "127.0.0.1:1/nope:1");
    let story = Story::of(&fixture, setup).await;
    insta::assert_snapshot!(story.told, @r"
Pending: building
Error: error: the build image 127.0.0.1:1/nope:1 is not there and cannot be pulled
page: error: the build image 127.0.0.1:1/nope:1 is not there and cannot be pulled
mail: [octo/hello] main <sha> error: the build image 127.0.0.1:1/nope:1 is not there and cannot be pulled (after …)
");
}

#[tokio::test]
async fn a_tarball_that_does_not_exist() {
    let fixture = Fixture::plain().await;
    fixture
        .github
        .fail_next(Endpoint::Tarball, 1, Fault::code(404));
    let story = Story::of(&fixture, fixture.setup("true")).await;
    insta::assert_snapshot!(story.told, @r"
Pending: building
Error: error: GitHub answered 404 to the tarball of octo/hello at <sha> (does it exist, and may GITHUB_TOKEN see it?)
page: error: GitHub answered 404 to the tarball of octo/hello at <sha> (does it exist, and may GITHUB_TOKEN see it?)
mail: [octo/hello] main <sha> error: GitHub answered 404 to the tarball of octo/hello at <sha> (does it exist, and may GITHUB_TOKEN see it?) (after …)
");
}

#[tokio::test]
async fn a_token_that_may_not_read() {
    let fixture = Fixture::plain().await;
    fixture
        .github
        .fail_next(Endpoint::Tarball, 1, Fault::code(401));
    let story = Story::of(&fixture, fixture.setup("true")).await;
    insta::assert_snapshot!(story.told, @r"
Pending: building
Error: error: GitHub answered 401 to the tarball of octo/hello at <sha> (is GITHUB_TOKEN still valid?)
page: error: GitHub answered 401 to the tarball of octo/hello at <sha> (is GITHUB_TOKEN still valid?)
mail: [octo/hello] main <sha> error: GitHub answered 401 to the tarball of octo/hello at <sha> (is GITHUB_TOKEN still valid?) (after …)
");
}

#[tokio::test]
async fn a_tarball_that_is_cut_short() {
    let Tarball::Bytes(whole) = Tarball::with_entries(MADE_UP, |archive| {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(1 << 20);
        archive.append_data(&mut header, "top/zeros", io::repeat(0).take(1 << 20))
    }) else {
        unreachable!("with_entries packs bytes");
    };
    let half = Tarball::Bytes(whole.slice(..whole.len() / 2));
    let fixture = Fixture::made_up(half).await;
    let story = Story::of(&fixture, fixture.setup("echo the hook ran")).await;
    insta::assert_snapshot!(story.told, @r"
    Pending: building
    Error: error: the tarball is damaged or cut short
    page: error: the tarball is damaged or cut short
    mail: [octo/hello] main <sha> error: the tarball is damaged or cut short (after …)
    ");
    assert_eq!(story.built.log, "");
}

#[tokio::test]
async fn a_tarball_that_would_write_outside() {
    let hostile = Tarball::with_entries(MADE_UP, |archive| {
        let mut link = tar::Header::new_ustar();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        archive.append_link(&mut link, "top/etc", "/etc")?;
        let mut file = tar::Header::new_ustar();
        file.set_mode(0o644);
        file.set_size(0);
        archive.append_data(&mut file, "top/etc/passwd", io::empty())
    });
    let fixture = Fixture::made_up(hostile).await;
    let story = Story::of(&fixture, fixture.setup("echo the hook ran")).await;
    insta::assert_snapshot!(story.told, @r#"
    Pending: building
    Error: error: the tarball holds an entry that git does not make: "top/etc/passwd" lies behind a symbolic link
    page: error: the tarball holds an entry that git does not make: "top/etc/passwd" lies behind a symbolic link
    mail: [octo/hello] main <sha> error: the tarball holds an entry that git does not make: "top/etc/passwd" lies behind a symbolic link (after …)
    "#);
    assert_eq!(story.built.log, "");
}

#[tokio::test]
async fn a_file_name_that_linux_does_not_take() {
    let long = Tarball::with_entries(MADE_UP, |archive| {
        let mut file = tar::Header::new_gnu();
        file.set_mode(0o644);
        file.set_size(0);
        archive.append_data(&mut file, format!("top/{}", "n".repeat(256)), io::empty())
    });
    let fixture = Fixture::made_up(long).await;
    let story = Story::of(&fixture, fixture.setup("echo the hook ran")).await;
    insta::assert_snapshot!(story.told, @r#"
    Pending: building
    Error: error: the commit cannot be checked out: "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn" has a name of 256 bytes
    page: error: the commit cannot be checked out: "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn" has a name of 256 bytes
    mail: [octo/hello] main <sha> error: the commit cannot be checked out: "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn" has a name of 256 bytes (after …)
    "#);
}

#[tokio::test]
async fn a_tarball_of_another_commit() {
    let other = Tarball::with_entries(&MADE_UP.replace('0', "f"), |_| Ok(()));
    let fixture = Fixture::made_up(other).await;
    let story = Story::of(&fixture, fixture.setup("echo the hook ran")).await;
    insta::assert_snapshot!(story.told, @r"
Pending: building
Error: error: the tarball is not of the commit that was asked for
page: error: the tarball is not of the commit that was asked for
mail: [octo/hello] main <sha> error: the tarball is not of the commit that was asked for (after …)
");
    assert_eq!(story.built.log, "");
}

/// Does something to the container of a build whose hook answers a TERM with exit code 0.
async fn interrupted_by(arguments: &[&str]) -> String {
    let fixture = Fixture::plain().await;
    let hook = format!("trap 'exit 0' TERM; {GATE}");
    let disturb = async |build: &str| {
        at_gate(&fixture.engine, build).await;
        docker(&[arguments, &[build]].concat()).await;
    };
    Story::disturbed(&fixture, fixture.setup(&hook), disturb)
        .await
        .told
}

#[tokio::test]
async fn a_container_that_somebody_else_removes() {
    insta::assert_snapshot!(interrupted_by(&["rm", "--force"]).await, @r"
    Pending: building
    Error: error: the build container was removed by somebody else
    page: error: the build container was removed by somebody else
    mail: [octo/hello] main <sha> error: the build container was removed by somebody else (after …)
    ");
}

#[tokio::test]
async fn a_container_that_somebody_else_kills() {
    insta::assert_snapshot!(interrupted_by(&["kill"]).await, @r"
    Pending: building
    Error: error: the hook was interrupted (container exit code 137, no end mark)
    page: error: the hook was interrupted (container exit code 137, no end mark)
    mail: [octo/hello] main <sha> error: the hook was interrupted (container exit code 137, no end mark) (after …)
    ");
}

#[tokio::test]
async fn a_container_that_somebody_else_stops_is_no_success_whatever_the_hook_answers() {
    insta::assert_snapshot!(interrupted_by(&["stop"]).await, @r"
    Pending: building
    Error: error: the hook was interrupted (container exit code 143, no end mark)
    page: error: the hook was interrupted (container exit code 143, no end mark)
    mail: [octo/hello] main <sha> error: the hook was interrupted (container exit code 143, no end mark) (after …)
    ");
}

#[tokio::test]
async fn statuses_and_mail_link_to_the_page() {
    let fixture = Fixture::plain().await;
    let setup = fixture
        .setup("echo \"$build_url\"")
        .env("PUBLIC_URL", "https://ci.example.org/")
        .env("STATUS_CONTEXT", "ci/compose");
    let sink = SmtpSink::start(SinkOptions::default()).await;
    let built = fixture.run(by_smtp(setup, &sink)).await;
    let page = format!("https://ci.example.org/builds/{}", built.id);
    for status in &built.statuses {
        assert_eq!(status.target_url.as_deref(), Some(&*page));
        assert_eq!(status.context, "ci/compose");
        assert_eq!(status.repo, REPO);
    }
    assert_eq!(built.log, format!("{page}\n"));
    let mail = sink.wait_for_mails(1, DEADLINE).await.remove(0);
    assert!(mail.text.contains(&page), "{}", mail.text);
}
