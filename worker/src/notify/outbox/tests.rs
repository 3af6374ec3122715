//! What is sent, in which order, and what is not, to a stand-in for GitHub.

use harness::{CommitState, Endpoint, Fault, GitHub, TestRepo};
use shared::build::{BuildRequest, ForgeKind, Outcome};
use shared::config::GithubConfig;
use shared::forge::Forge;
use shared::ledger::{Ledger, STATUS};
use tempfile::TempDir;

use super::*;
use crate::notify::Links;
use crate::notify::status::CommitStatuses;

/// An outbox and the forge that it reports to.
struct Desk {
    github: GitHub,
    repo: TestRepo,
    sha: String,
    notifiers: Notifiers,
    _dir: TempDir,
}

impl Desk {
    async fn new() -> Self {
        let (repo, sha) = TestRepo::with_files(&[("README.md", "hello\n")]);
        let github = GitHub::start().await;
        github.host("octo/hello", repo.path());
        let dir = tempfile::tempdir().expect("a directory");
        let forge = forge(&github.url(), github.token());
        let statuses = CommitStatuses::new(forge, Links::default());
        let notifiers = Notifiers {
            all: vec![Notifier::Status(statuses)].into(),
            ledger: Ledger::open(dir.path(), None).await.expect("opened"),
            changed: tokio::sync::watch::Sender::default(),
        };
        Self {
            github,
            repo,
            sha,
            notifiers,
            _dir: dir,
        }
    }

    /// A build of the commit that ended so and owes its status.
    async fn owe(&self, outcome: Outcome) -> BuildId {
        let request = self.request();
        let ledger = &self.notifiers.ledger;
        ledger.claim(&request).await.expect("claimed");
        let ended = ledger.end(request.id, &outcome, &[STATUS]);
        ended.await.expect("ended");
        request.id
    }

    fn request(&self) -> BuildRequest {
        BuildRequest {
            id: BuildId::random(),
            forge: ForgeKind::Github,
            repo: "octo/hello".parse().expect("a repository"),
            revision: self.sha.parse().expect("a commit"),
            git_ref: None,
        }
    }

    /// Sends what is due. Returns the time until a report is due again.
    async fn send(&self) -> Option<Duration> {
        let notifier = &self.notifiers.all[0];
        Lane::new(&self.notifiers, notifier).send_due().await
    }

    /// Does what a restart does: what was put off is due.
    async fn resume(&self) {
        let resumed = self.notifiers.ledger.resume_reports();
        resumed.await.expect("resumed");
    }

    fn posts(&self) -> usize {
        let requests = self.github.requests();
        requests.iter().filter(|one| one.method == "POST").count()
    }
}

/// The client of a stand-in.
pub(crate) fn forge(url: &str, token: &str) -> Forge {
    let config = GithubConfig {
        api_url: url.to_owned(),
        token: token.to_owned().into(),
        status_context: "compose-ci".to_owned(),
        ca_bundle: None,
    };
    Forge::github(&config).expect("valid")
}

#[tokio::test]
async fn an_older_result_does_not_stand_in_front_of_a_newer_one() {
    let desk = Desk::new().await;
    let down = Fault::code(500);
    desk.github.fail_next(Endpoint::PostStatus, 1, down);
    desk.owe(Outcome::Failed { exit_code: 1 }).await;
    assert!(desk.send().await.is_some(), "it is put off");
    desk.owe(Outcome::Passed).await;
    desk.send().await;
    assert_eq!(desk.github.states(&desk.sha), [CommitState::Success]);

    desk.resume().await;
    assert_eq!(desk.send().await, None, "nothing is owed");
    assert_eq!(desk.github.states(&desk.sha), [CommitState::Success]);
    assert_eq!(desk.posts(), 2);
}

#[tokio::test]
async fn a_status_that_github_does_not_take_from_us_is_taken_some_time() {
    for code in [401, 403, 404] {
        let desk = Desk::new().await;
        let refusal = Fault::code(code);
        desk.github.fail_next(Endpoint::PostStatus, 1, refusal);
        desk.owe(Outcome::Passed).await;
        assert!(desk.send().await.is_some(), "{code}: it is put off");
        desk.resume().await;
        assert_eq!(desk.send().await, None);
        assert_eq!(desk.github.states(&desk.sha), [CommitState::Success]);
    }
}

#[tokio::test]
async fn a_status_that_github_never_takes_is_not_owed() {
    let desk = Desk::new().await;
    let refusal = Fault::code(422);
    desk.github.fail_next(Endpoint::PostStatus, 1, refusal);
    desk.owe(Outcome::Passed).await;
    assert_eq!(desk.send().await, None);
    assert_eq!(desk.posts(), 1);
}

#[tokio::test]
async fn a_limit_is_met_by_one_status_and_not_by_each() {
    let desk = Desk::new().await;
    let limit = Fault::secondary_limit(600);
    desk.github.fail_next(Endpoint::PostStatus, 1, limit);
    for _ in 0..3 {
        desk.owe(Outcome::Passed).await;
    }
    let idle = desk.send().await.expect("they are owed");
    assert!(idle > Duration::from_secs(590), "{idle:?}");
    desk.owe(Outcome::Passed).await;
    desk.send().await;
    assert_eq!(desk.posts(), 1);
}

#[tokio::test]
async fn a_limit_that_is_over_at_once_is_not_met_again_and_again() {
    let desk = Desk::new().await;
    let limit = Fault::secondary_limit(0);
    desk.github.fail_next(Endpoint::PostStatus, 1, limit);
    desk.owe(Outcome::Passed).await;
    let idle = desk.send().await.expect("it is owed");
    assert!(idle > Duration::from_secs(1), "{idle:?}");
    assert_eq!(desk.posts(), 1);
}

#[tokio::test]
async fn what_has_piled_up_leaves_once_the_other_side_answers() {
    const PILED_UP: usize = 4;
    let mut desk = Desk::new().await;
    let mut commits = Vec::new();
    for number in 0..PILED_UP {
        desk.repo.write("number", number.to_string());
        desk.sha = desk.repo.commit("Another commit");
        commits.push(desk.sha.clone());
        desk.owe(Outcome::Passed).await;
    }
    let down = Fault::code(502);
    desk.github.fail_next(Endpoint::PostStatus, PILED_UP, down);
    let mut lane = Lane::new(&desk.notifiers, &desk.notifiers.all[0]);
    let idle = lane.send_due().await;
    assert!(
        idle.is_some_and(|idle| idle >= Duration::from_secs(1)),
        "{idle:?}"
    );
    // One that is due now is enough.
    desk.sha = desk.repo.commit("The last commit");
    desk.owe(Outcome::Passed).await;
    assert_eq!(lane.send_due().await, None);
    for commit in commits {
        assert_eq!(desk.github.states(&commit), [CommitState::Success]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_report_is_given_up_after_a_day_in_which_this_process_has_tried() {
    const HOUR: Duration = Duration::from_secs(60 * 60);
    let begun = Instant::now();
    tokio::time::advance(HOUR).await;
    for (owed_for, since, count, expected) in [
        (25 * HOUR, begun, 4, true),
        (25 * HOUR, begun, 3, false),
        // The machine was off, or its clock is wrong.
        (1000 * HOUR, Instant::now(), 9, false),
        (23 * HOUR, begun, 99, false),
    ] {
        let due = DueReport {
            build: shared::build::samples::ended(Outcome::Passed, 1),
            notifier: STATUS.to_owned(),
            event: Event::Ended,
            attempts: 99,
            maybe_sent: true,
            owed_since: std::time::SystemTime::now() - owed_for,
            is_late: true,
        };
        let told = format!("{owed_for:?} {count}");
        assert_eq!(
            is_hopeless(&due, Tries { since, count }),
            expected,
            "{told}"
        );
    }
}

#[tokio::test]
async fn a_pending_status_comes_before_the_end() {
    let desk = Desk::new().await;
    let request = desk.request();
    let ledger = &desk.notifiers.ledger;
    ledger.claim(&request).await.expect("claimed");
    for _ in 0..2 {
        let owed = ledger.owe(request.id, STATUS, Event::Began, false);
        owed.await.expect("owed");
        desk.send().await;
    }
    assert_eq!(desk.github.states(&desk.sha), [CommitState::Pending]);
    let ended = ledger.end(request.id, &Outcome::Passed, &[STATUS]);
    ended.await.expect("ended");
    desk.send().await;
    let states = desk.github.states(&desk.sha);
    assert_eq!(states, [CommitState::Pending, CommitState::Success]);
}

#[tokio::test]
async fn an_end_overtakes_its_pending_status() {
    let desk = Desk::new().await;
    let request = desk.request();
    let ledger = &desk.notifiers.ledger;
    ledger.claim(&request).await.expect("claimed");
    let owed = ledger.owe(request.id, STATUS, Event::Began, false);
    owed.await.expect("owed");
    let ended = ledger.end(request.id, &Outcome::Passed, &[STATUS]);
    ended.await.expect("ended");
    assert_eq!(desk.send().await, None);
    assert_eq!(desk.github.states(&desk.sha), [CommitState::Success]);
}

#[tokio::test]
async fn a_redelivery_posts_the_end_again() {
    let desk = Desk::new().await;
    let build = desk.owe(Outcome::Passed).await;
    desk.send().await;
    let owed = desk.notifiers.ledger.owe(build, STATUS, Event::Ended, true);
    owed.await.expect("owed");
    desk.send().await;
    assert_eq!(desk.posts(), 2);
}
