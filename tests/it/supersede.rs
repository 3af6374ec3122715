//! `CANCEL_SUPERSEDED=1`: the newest push to a branch is built, older ones end where they are.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::{Endpoint, Fault, OneBox, Setup, docker};

use crate::fixture::{DEADLINE, Fixture, GATE, at_gate, log, open_gate, told};
use crate::sqs::Sqs;

/// The branch of a build that runs is looked at after this time at the earliest.
const FIRST_LOOK: Duration = Duration::from_secs(30);
/// A build that nobody else's push ends is looked at, and has ten seconds to end.
const LOOK_DEADLINE: Duration = Duration::from_secs(90);

impl Fixture {
    /// The service with a hook that waits at the gate, and the option on.
    fn superseding(&self, concurrency: &str) -> Setup {
        self.setup(&format!("echo ran; {GATE}"))
            .env("CANCEL_SUPERSEDED", "1")
            .env("CONCURRENCY", concurrency)
    }

    /// Commits, and pushes the commit to `main`.
    async fn push_another(&mut self, service: &OneBox) -> Pushed {
        self.commit("number", &self.sha.clone());
        self.pushed(service, "refs/heads/main").await
    }

    async fn pushed(&self, service: &OneBox, reference: &str) -> Pushed {
        Pushed {
            build: self.push_to(service, reference).await,
            sha: self.sha.clone(),
        }
    }

    /// What a commit was told when its build had ended, and nothing was left of it.
    async fn told_of(&self, pushed: &Pushed) -> Vec<String> {
        let statuses = self.github.wait_for_end(&pushed.sha, LOOK_DEADLINE).await;
        self.assert_nothing_left(&pushed.build).await;
        told(&statuses)
    }

    /// Lets a build end that waits at the gate, and expects it to pass.
    async fn passes(&self, pushed: &Pushed) {
        at_gate(&self.engine, &pushed.build).await;
        open_gate(&pushed.build).await;
        assert_eq!(self.told_of(pushed).await, PASSED);
    }
}

/// A commit and its build.
struct Pushed {
    sha: String,
    build: String,
}

const PASSED: [&str; 2] = ["Pending: building", "Success: passed in …"];

fn superseded_by(newer: &Pushed) -> String {
    format!("Error: error: superseded by {}", &newer.sha[..7])
}

#[tokio::test]
async fn of_three_quick_pushes_the_last_one_is_built() {
    let fixture = Fixture::plain().await;
    let setup = fixture.superseding("1");
    of_three_pushes_the_last_passes(fixture, setup).await;
}

#[tokio::test]
async fn of_three_quick_pushes_by_way_of_a_standard_queue_the_last_one_is_built() {
    of_three_pushes_by_way_of(Sqs::start("").await).await;
}

#[tokio::test]
async fn of_three_quick_pushes_by_way_of_a_fifo_queue_the_last_one_is_built() {
    of_three_pushes_by_way_of(Sqs::start(".fifo").await).await;
}

async fn of_three_pushes_by_way_of(sqs: Sqs) {
    let fixture = Fixture::plain().await;
    let setup = sqs.used_by(fixture.superseding("1"));
    let mut service = of_three_pushes_the_last_passes(fixture, setup).await;
    service.stop(DEADLINE).await;
    assert_eq!(sqs.messages().await, [0, 0]);
}

/// The first is stopped, the second never begins.
async fn of_three_pushes_the_last_passes(mut fixture: Fixture, setup: Setup) -> OneBox {
    let service = setup.start().await;
    let first = fixture.pushed(&service, "refs/heads/main").await;
    at_gate(&fixture.engine, &first.build).await;
    let second = fixture.push_another(&service).await;
    let third = fixture.push_another(&service).await;

    let of_first = fixture.told_of(&first).await;
    assert_eq!(of_first, ["Pending: building", &superseded_by(&third)]);
    // The shell may say something of the signal.
    let log_of_first = log(&service, &first.build);
    assert!(log_of_first.starts_with("ran\n"), "{log_of_first}");
    // With a queue at SQS there is a pending status before.
    let of_second = fixture.told_of(&second).await;
    assert_eq!(of_second.last(), Some(&superseded_by(&third)));
    assert_eq!(log(&service, &second.build), "");
    fixture.passes(&third).await;
    service
}

#[tokio::test]
async fn a_build_that_waits_for_github_ends_as_soon_as_the_worker_hears_of_a_newer_push() {
    let mut fixture = Fixture::plain().await;
    let limit = Fault::secondary_limit(3000);
    fixture.github.fail_next(Endpoint::Tarball, 1, limit);
    let service = fixture.superseding("2").start().await;
    let first = fixture.pushed(&service, "refs/heads/main").await;
    service.wait_for_log("waiting for GitHub", DEADLINE).await;
    let second = fixture.push_another(&service).await;

    let of_first = fixture.told_of(&first).await;
    assert_eq!(of_first, ["Pending: building", &superseded_by(&second)]);
    assert_eq!(log(&service, &first.build), "");
    fixture.passes(&second).await;
}

#[tokio::test]
async fn a_build_that_runs_is_stopped_as_soon_as_the_worker_hears_of_a_newer_push() {
    let mut fixture = Fixture::plain().await;
    let hook = format!("trap 'echo stopped; exit 0' TERM; {GATE}");
    let setup = fixture.superseding("2").env("HOOK", hook);
    let service = setup.start().await;
    let began = Instant::now();
    let older = fixture.pushed(&service, "refs/heads/main").await;
    at_gate(&fixture.engine, &older.build).await;
    let newer = fixture.push_another(&service).await;

    let of_older = fixture.told_of(&older).await;
    assert!(began.elapsed() < FIRST_LOOK, "{:?}", began.elapsed());
    assert_eq!(of_older, ["Pending: building", &superseded_by(&newer)]);
    let log_of_older = log(&service, &older.build);
    assert!(log_of_older.ends_with("stopped\n"), "{log_of_older}");
    fixture.passes(&newer).await;
}

#[tokio::test]
async fn other_branches_and_tags_are_left_alone() {
    let mut fixture = Fixture::plain().await;
    let service = fixture.superseding("4").start().await;
    fixture.repo.tag("v1");
    let tag = fixture.pushed(&service, "refs/tags/v1").await;
    let main = fixture.push_another(&service).await;
    fixture.repo.branch("other");
    fixture.commit("number", "3");
    let older = fixture.pushed(&service, "refs/heads/other").await;
    at_gate(&fixture.engine, &older.build).await;
    fixture.commit("number", "4");
    let newer = fixture.pushed(&service, "refs/heads/other").await;

    let of_older = fixture.told_of(&older).await;
    assert_eq!(of_older, ["Pending: building", &superseded_by(&newer)]);
    for untouched in [&tag, &main, &newer] {
        fixture.passes(untouched).await;
    }
}

#[tokio::test]
async fn a_build_by_hand_of_an_older_commit_is_left_alone() {
    let mut fixture = Fixture::plain().await;
    let older = fixture.sha.clone();
    fixture.commit("number", "2");
    let setup = fixture.superseding("1").env("HOOK", "true");
    let service = setup.start().await;
    let bearer = format!("Bearer {}", fixture.github.token());
    let headers = [("authorization", bearer.as_str())];
    let body = format!(r#"{{"after": "{older}"}}"#);
    let build = service.post("/", &headers, body).await.build_id();
    let by_hand = Pushed { build, sha: older };
    assert_eq!(fixture.told_of(&by_hand).await, PASSED);
}

#[tokio::test]
async fn without_the_option_every_push_is_built() {
    let mut fixture = Fixture::plain().await;
    let service = fixture.setup(GATE).env("CONCURRENCY", "1").start().await;
    let first = fixture.pushed(&service, "refs/heads/main").await;
    let second = fixture.push_another(&service).await;
    let third = fixture.push_another(&service).await;
    for pushed in [&first, &second, &third] {
        fixture.passes(pushed).await;
    }
    let asked = fixture.github.requests();
    assert!(!asked.iter().any(|request| request.path.contains("/heads")));
}

#[tokio::test]
async fn a_branch_that_is_pushed_back_by_force_is_built_where_it_is() {
    let mut fixture = Fixture::plain().await;
    let older = fixture.sha.clone();
    let service = fixture.superseding("2").start().await;
    let given_up = fixture.push_another(&service).await;
    at_gate(&fixture.engine, &given_up.build).await;
    fixture.repo.reset_to(&older);
    fixture.sha = older;
    let head = fixture.pushed(&service, "refs/heads/main").await;

    fixture.passes(&head).await;
    let of_given_up = fixture.told_of(&given_up).await;
    assert_eq!(of_given_up, ["Pending: building", &superseded_by(&head)]);
}

#[tokio::test]
async fn a_push_is_built_that_github_does_not_tell_of_yet() {
    let mut fixture = Fixture::plain().await;
    // `main` itself stays behind.
    fixture.repo.branch("soon-main");
    let setup = fixture.superseding("1").env("HOOK", "true");
    let service = setup.start().await;
    let fresh = fixture.push_another(&service).await;
    assert_eq!(fixture.told_of(&fresh).await, PASSED);
}

#[tokio::test]
async fn a_push_back_is_built_that_github_does_not_tell_of_yet() {
    let mut fixture = Fixture::plain().await;
    let setup = fixture.superseding("1").env("HOOK", "true");
    let service = setup.start().await;
    let older = fixture.pushed(&service, "refs/heads/main").await;
    assert_eq!(fixture.told_of(&older).await, PASSED);
    let newer = fixture.push_another(&service).await;
    assert_eq!(fixture.told_of(&newer).await, PASSED);
    // GitHub goes on to say that `main` is at the newer one.
    fixture.sha = older.sha.clone();
    let back = fixture.pushed(&service, "refs/heads/main").await;
    let twice = |statuses: &[harness::Status]| statuses.len() == 4;
    let github = &fixture.github;
    let statuses = github.wait_for_status(&back.sha, twice, DEADLINE).await;
    assert_eq!(told(&statuses), [PASSED, PASSED].concat());
}

#[tokio::test]
async fn while_github_cannot_say_where_the_branch_is_the_build_runs() {
    let built_without = async |endpoint| {
        let mut fixture = Fixture::plain().await;
        let older = fixture.sha.clone();
        fixture.commit("number", "2");
        fixture.sha = older;
        fixture.github.fail_next(endpoint, 1, Fault::code(500));
        let setup = fixture.superseding("1").env("HOOK", "true");
        fixture.run(setup).await.assert_passed();
    };
    let endpoints = [Endpoint::Commit, Endpoint::Compare, Endpoint::GitCommit];
    join_all(endpoints.map(built_without)).await;
}

#[tokio::test]
async fn a_newer_commit_that_is_not_built_supersedes_nothing() {
    let fixture = Fixture::plain().await;
    fixture.repo.commit("Words [skip ci]");
    let setup = fixture.superseding("1").env("HOOK", "true");
    fixture.run(setup).await.assert_passed();
}

#[tokio::test]
async fn a_service_that_is_killed_while_it_stops_a_build_tells_why_it_was_stopped() {
    let mut fixture = Fixture::plain().await;
    let hook = format!("echo ran; trap 'touch /tmp/stopping' TERM; {GATE}");
    let setup = fixture.superseding("2").env("HOOK", hook);
    let mut service = setup.start().await;
    let older = fixture.pushed(&service, "refs/heads/main").await;
    at_gate(&fixture.engine, &older.build).await;
    let newer = fixture.push_another(&service).await;
    // The signal goes to all that runs in the container.
    let stopping = "trap '' TERM; until [ -e /tmp/stopping ]; do sleep 0.02; done";
    docker(&["exec", &older.build, "sh", "-c", stopping]).await;
    service.kill();
    // What was decided holds, whatever the hook comes to now, and wherever the branch is.
    open_gate(&older.build).await;
    fixture.repo.reset_to(&older.sha);
    service.start_again().await;

    let of_older = fixture.told_of(&older).await;
    assert_eq!(of_older, ["Pending: building", &superseded_by(&newer)]);
    let log_of_older = log(&service, &older.build);
    assert!(log_of_older.starts_with("ran\n"), "{log_of_older}");
    fixture.passes(&newer).await;
}

#[tokio::test]
async fn a_hook_that_has_come_to_its_end_is_told_as_it_ended_wherever_the_branch_is_by_then() {
    let mut fixture = Fixture::plain().await;
    let mut service = fixture.superseding("2").start().await;
    let older = fixture.pushed(&service, "refs/heads/main").await;
    at_gate(&fixture.engine, &older.build).await;
    service.kill();
    open_gate(&older.build).await;
    let ended = fixture.engine.wait_until_ended(&older.build, DEADLINE);
    ended.await;
    fixture.commit("README.md", "another\n");
    service.start_again().await;
    assert_eq!(fixture.told_of(&older).await, PASSED);
}
