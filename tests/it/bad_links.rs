//! GitHub sends a download on to an address that leads nowhere: the build ends and says so.

use harness::{Endpoint, Fault};

use crate::fixture::Fixture;

async fn told(location: impl Fn(&Fixture) -> String) -> String {
    let fixture = Fixture::plain().await;
    let sent_on = Fault::Answer {
        code: 302,
        headers: vec![("location", location(&fixture))],
        message: "Found",
    };
    fixture.github.fail_next(Endpoint::Tarball, 1, sent_on);
    let built = fixture.run(fixture.setup("true")).await;
    built
        .told()
        .pop()
        .expect("a status")
        .replace(&fixture.sha[..7], "<sha>")
}

#[tokio::test]
async fn a_link_of_another_scheme_ends_the_build() {
    let told = told(|_| "ftp://127.0.0.1/tarball".to_owned()).await;
    insta::assert_snapshot!(told, @"Error: error: the link that GitHub gave for the tarball of octo/hello at <sha> cannot be followed: URL scheme is not allowed");
}

#[tokio::test]
async fn a_link_that_is_no_address_ends_the_build() {
    let told = told(|_| "http://".to_owned()).await;
    insta::assert_snapshot!(told, @"Error: error: GitHub answered 302 to the tarball of octo/hello at <sha>");
}

#[tokio::test]
async fn a_link_that_loops_ends_the_build() {
    let fixture = Fixture::plain().await;
    let path = format!(
        "{}/repos/octo/hello/tarball/{}",
        fixture.github.url(),
        fixture.sha
    );
    let loops = Fault::Answer {
        code: 302,
        headers: vec![("location", path)],
        message: "Found",
    };
    fixture.github.fail_next(Endpoint::Tarball, 6, loops);
    let built = fixture.run(fixture.setup("true")).await;
    let told = built
        .told()
        .pop()
        .expect("a status")
        .replace(&fixture.sha[..7], "<sha>");
    insta::assert_snapshot!(told, @"Error: error: the link that GitHub gave for the tarball of octo/hello at <sha> cannot be followed: too many redirects");
}
