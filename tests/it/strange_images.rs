//! Build images that lack what most have, and hooks that remove it: a build ends as its hook did.

use std::fs;

use harness::{AtEnd, docker};
use uuid::Uuid;

use crate::fixture::{Fixture, without_times};

/// An image with nothing but a shell to begin with.
const BASE: &str = "debian:trixie-slim";

/// An image that is made by these lines of a Dockerfile.
async fn image(at_end: &mut AtEnd, lines: &str) -> String {
    let name = format!("strange-{}", Uuid::new_v4().simple());
    let context = tempfile::tempdir().expect("a directory");
    let dockerfile = format!("FROM {BASE}\n{lines}\n");
    fs::write(context.path().join("Dockerfile"), dockerfile).expect("written");
    let context = context.path().display().to_string();
    at_end.docker(&["rmi", &name]);
    docker(&["build", "--quiet", "--force-rm", "--tag", &name, &context]).await;
    name
}

/// The hook's end in this image, in the words of the status.
async fn ending(image: &str, hook: &str) -> String {
    let fixture = Fixture::plain().await;
    let setup = fixture.setup(hook).env("BUILD_IMAGE", image);
    let built = fixture.run(setup).await;
    let last = built.statuses.last().expect("a status").clone();
    without_times(&last.description.unwrap_or_default())
}

#[tokio::test]
async fn an_image_without_tmp_builds() {
    let mut at_end = AtEnd::new();
    let image = image(&mut at_end, "RUN rm -rf /tmp").await;
    assert_eq!(ending(&image, "echo ok").await, "passed in …");
    assert_eq!(
        ending(&image, "exit 3").await,
        "failed with exit code 3 after …"
    );
}

#[tokio::test]
async fn an_image_whose_user_can_write_nowhere_builds() {
    let mut at_end = AtEnd::new();
    let lines = "RUN chmod 0755 /tmp /var/tmp && rm -rf /run/lock\nUSER 1234";
    let image = image(&mut at_end, lines).await;
    assert_eq!(ending(&image, "echo ok").await, "passed in …");
    assert_eq!(
        ending(&image, "exit 3").await,
        "failed with exit code 3 after …"
    );
}

#[tokio::test]
async fn a_hook_may_remove_tmp() {
    for (code, expected) in [(0, "passed in …"), (3, "failed with exit code 3 after …")] {
        let hook = format!("rm -rf /tmp /var/tmp; exit {code}");
        assert_eq!(ending(BASE, &hook).await, expected);
    }
}

/// Nothing proves then that the hook came to its end by itself.
#[tokio::test]
async fn a_hook_that_removes_our_directory_keeps_its_exit_code() {
    let told = ending(BASE, "rm -rf /.compose-ci; exit 3").await;
    assert_eq!(told, "failed with exit code 3 after …");
    let told = ending(BASE, "rm -rf /.compose-ci; exit 0").await;
    assert_eq!(told, "passed in …");
}
