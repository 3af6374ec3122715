//! Every way in which a build can end: its statuses, its log, and nothing left on the engine.

use crate::fixture::{Fixture, told};

#[tokio::test]
async fn a_push_that_passes_is_pending_then_success() {
    let fixture = Fixture::plain().await;
    let service = fixture.setup("cat README.md").start().await;
    let build = fixture.push(&service).await;
    let statuses = told(&fixture.end_of(&build).await);
    assert_eq!(statuses[0], "Pending: building");
    assert!(
        statuses[1].starts_with("Success: passed in "),
        "{statuses:?}"
    );
    assert_eq!(statuses.len(), 2, "{statuses:?}");
    let page = service.get(&format!("/builds/{build}")).await;
    assert!(page.body.contains("<pre>\nhello\n</pre>"), "{}", page.body);
}

#[tokio::test]
async fn a_hook_that_fails_is_a_failure_with_its_exit_code() {
    let fixture = Fixture::plain().await;
    let service = fixture
        .setup("echo out; echo err >&2; exit 3")
        .start()
        .await;
    let build = fixture.push(&service).await;
    let statuses = told(&fixture.end_of(&build).await);
    assert!(
        statuses[1].starts_with("Failure: failed with exit code 3"),
        "{statuses:?}"
    );
}
