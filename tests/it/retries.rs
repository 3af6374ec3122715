//! A GitHub that fails: what is tried again, what is not, and that nothing is told twice.

use std::fs;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::{CommitState, Endpoint, Fault, GitHub, Mail, OneBox, Request, SinkOptions, SmtpSink};

use crate::fixture::{Built, DEADLINE, Fixture, GATE, at_gate, by_smtp, open_gate, told};

fn posts_a_status(request: &Request) -> bool {
    request.method == "POST"
}

fn posts(github: &GitHub) -> usize {
    let requests = github.requests();
    requests.iter().filter(|one| posts_a_status(one)).count()
}

/// Begins a build and waits until it was announced and its hook waits at the gate: what is
/// planned from now on meets the final status.
async fn announced(fixture: &Fixture, service: &OneBox) -> String {
    let build = fixture.push(service).await;
    let announced = |statuses: &[harness::Status]| !statuses.is_empty();
    let github = &fixture.github;
    github
        .wait_for_status(&fixture.sha, announced, DEADLINE)
        .await;
    at_gate(&fixture.engine, &build).await;
    build
}

/// A build that passes, and whose final status meets faults.
struct Met {
    built: Built,
    /// How often a status was posted, the pending one included.
    posts: usize,
    /// From the fault to the status.
    waited: Duration,
}

async fn final_status_meets(fault: Fault) -> Met {
    final_status_meets_all([(Endpoint::PostStatus, fault)]).await
}

async fn final_status_meets_all(faults: impl IntoIterator<Item = (Endpoint, Fault)>) -> Met {
    let fixture = Fixture::plain().await;
    let github = &fixture.github;
    let sink = SmtpSink::start(SinkOptions::default()).await;
    let service = by_smtp(fixture.setup(GATE), &sink).start().await;
    let build = announced(&fixture, &service).await;
    for (endpoint, fault) in faults {
        github.fail_next(endpoint, 1, fault);
    }
    open_gate(&build).await;
    github.wait_for_requests(2, posts_a_status, DEADLINE).await;
    let met = Instant::now();
    github.wait_for_end(&fixture.sha, DEADLINE).await;
    let waited = met.elapsed();
    // The mail waits for the status: after it nothing more is posted.
    sink.wait_for_mails(1, DEADLINE).await;
    Met {
        built: fixture.finished(&service, build).await,
        posts: posts(github),
        waited,
    }
}

#[tokio::test]
async fn a_final_status_that_meets_trouble_is_posted_again() {
    let too_many = Fault::Answer {
        code: 429,
        headers: vec![("retry-after", "1".to_owned())],
        message: "Too many requests",
    };
    let faults = [Fault::code(500), Fault::code(502), too_many];
    for met in join_all(faults.map(final_status_meets)).await {
        met.built.assert_passed();
        assert_eq!(met.posts, 3);
    }
}

#[tokio::test]
async fn retry_after_is_honoured_and_none_at_all_is_no_invitation() {
    for (asked_s, waited_s) in [(4, 4), (0, 2)] {
        let met = final_status_meets(Fault::secondary_limit(asked_s)).await;
        met.built.assert_passed();
        assert!(
            met.waited >= Duration::from_secs(waited_s),
            "{:?}",
            met.waited
        );
    }
}

#[tokio::test]
async fn statuses_that_have_piled_up_come_at_once_when_they_can() {
    const BUILDS: usize = 12;
    let mut fixture = Fixture::plain().await;
    let github = &fixture.github;
    // Longer than anybody waits for an answer.
    github.fail_next(Endpoint::PostStatus, 1000, Fault::Hang);
    let setup = fixture.setup("true").env("CONCURRENCY", "4");
    let service = setup.start().await;
    let mut commits = Vec::new();
    for n in 0..BUILDS {
        fixture.commit("n", &n.to_string());
        fixture.push_to(&service, &format!("refs/heads/b{n}")).await;
        commits.push(fixture.sha.clone());
    }
    // No build waits for a report.
    service.wait_for_lines(" finished ", BUILDS, DEADLINE).await;
    assert_eq!(fixture.github.all_statuses().len(), 0);
    fixture.github.heal(Endpoint::PostStatus);
    let healed = Instant::now();
    for commit in commits {
        let statuses = fixture.github.wait_for_end(&commit, DEADLINE).await;
        let told = told(&statuses);
        assert_eq!(
            told.last().map(String::as_str),
            Some("Success: passed in …")
        );
    }
    let piled_up_for = healed.elapsed();
    assert!(piled_up_for < Duration::from_secs(30), "{piled_up_for:?}");
}

#[tokio::test]
async fn while_github_limits_us_the_pending_status_of_another_build_waits_and_the_build_does_not() {
    let mut fixture = Fixture::plain().await;
    let mut service = fixture.setup(GATE).start().await;
    service.leave_unfinished();
    let first = announced(&fixture, &service).await;
    let limit = Fault::secondary_limit(3000);
    fixture.github.fail_next(Endpoint::PostStatus, 1, limit);
    open_gate(&first).await;
    service
        .wait_for_log("failed to report; trying for a day", DEADLINE)
        .await;

    fixture.commit("another", "file");
    let second = fixture.push(&service).await;
    at_gate(&fixture.engine, &second).await;
    open_gate(&second).await;
    fixture.assert_nothing_left(&second).await;
    assert_eq!(posts(&fixture.github), 2, "the limit was met once");
}

#[tokio::test]
async fn a_final_status_whose_answer_was_lost_is_not_posted_again() {
    let met = final_status_meets(Fault::LoseAnswer).await;
    met.built.assert_passed();
    assert_eq!(met.posts, 2);
}

#[tokio::test]
async fn a_lost_answer_is_looked_up_again_when_the_look_up_fails() {
    let lost = (Endpoint::PostStatus, Fault::LoseAnswer);
    let no_list = (Endpoint::ListStatuses, Fault::code(502));
    let met = final_status_meets_all([lost, no_list]).await;
    met.built.assert_passed();
    assert_eq!(met.posts, 2);
}

#[tokio::test]
async fn a_build_does_not_wait_for_its_pending_status() {
    let fixture = Fixture::plain().await;
    let fault = Fault::secondary_limit(600);
    fixture.github.fail_next(Endpoint::PostStatus, 1, fault);
    let built = fixture.run(fixture.setup("true")).await;
    assert_eq!(built.told(), ["Success: passed in …"]);
}

#[tokio::test]
async fn a_pending_status_that_meets_trouble_is_posted_once_while_the_build_runs() {
    let announced_through = async |fault: Fault| {
        let fixture = Fixture::plain().await;
        fixture.github.fail_next(Endpoint::PostStatus, 1, fault);
        let service = fixture.setup(GATE).start().await;
        let build = announced(&fixture, &service).await;
        open_gate(&build).await;
        fixture.finished(&service, build).await.assert_passed();
    };
    join_all([Fault::code(503), Fault::LoseAnswer].map(announced_through)).await;
}

#[tokio::test]
async fn a_final_status_that_github_minds_is_not_tried_again_and_told_by_mail() {
    let fixture = Fixture::plain().await;
    let github = &fixture.github;
    let sink = SmtpSink::start(SinkOptions::default()).await;
    let mut service = by_smtp(fixture.setup(GATE), &sink).start().await;
    service.leave_unfinished();
    let build = announced(&fixture, &service).await;
    github.fail_next(Endpoint::PostStatus, 1, Fault::code(422));
    open_gate(&build).await;
    let mail = sink.wait_for_mails(1, DEADLINE).await.remove(0);
    assert_eq!(posts(github), 2, "it is not tried again");
    assert_eq!(told(&github.statuses(&fixture.sha)), ["Pending: building"]);
    assert!(mail.subject.contains(" passed in "), "{}", mail.subject);
    fixture.assert_nothing_left(&build).await;
    insta::assert_snapshot!(about_status(&mail), @"The status of the commit could not be posted: GitHub answered 422 to the commit status");
}

fn about_status(mail: &Mail) -> &str {
    let mut lines = mail.text.lines();
    let problem = lines.find(|line| line.contains("status"));
    problem.unwrap_or("nothing")
}

#[tokio::test]
async fn a_final_status_that_the_token_may_not_post_is_tried_again() {
    let met = join_all([401, 403, 404].map(|code| final_status_meets(Fault::code(code)))).await;
    for met in met {
        met.built.assert_passed();
        assert_eq!(met.posts, 3);
    }
}

/// The lines of the service's log about reports, by their level and first words.
fn about_reports(service: &OneBox) -> Vec<String> {
    let log = service.log();
    let lines = log
        .lines()
        .filter(|line| line.contains(r#"report="status""#));
    let without_time = lines.filter_map(|line| line.split_once("Z "));
    let without_fields = without_time.filter_map(|(_time, line)| line.split_once(" build="));
    without_fields
        .map(|(words, _fields)| words.trim().to_owned())
        .collect()
}

#[tokio::test]
async fn a_token_that_was_renewed_posts_what_is_owed() {
    let fixture = Fixture::plain().await;
    let sink = SmtpSink::start(SinkOptions::default()).await;
    let secrets = tempfile::tempdir().expect("a directory");
    let token = secrets.path().join("token");
    fs::write(&token, "ghp_expired").expect("written");
    let setup = by_smtp(fixture.setup("true"), &sink)
        .without("GITHUB_TOKEN")
        .env("GITHUB_TOKEN_FILE", token.display().to_string());
    let mut service = setup.start().await;
    let build = fixture.push(&service).await;
    // The mail has waited for four attempts.
    let mail = sink.wait_for_mails(1, DEADLINE).await.remove(0);
    insta::assert_snapshot!(about_status(&mail), @"The status of the commit could not be posted: GitHub answered 401 to the list of commit statuses (is GITHUB_TOKEN still valid?)");
    assert!(fixture.github.statuses(&fixture.sha).is_empty());
    service.stop(DEADLINE).await;
    let told = about_reports(&service);
    assert_eq!(told, ["WARN failed to report; trying for a day"]);

    fs::write(&token, fixture.github.token()).expect("written");
    service.start_again().await;
    let built = fixture.finished(&service, build).await;
    let [told] = &built.told()[..] else {
        panic!("{:?}", built.statuses)
    };
    let error = "Error: error: GitHub answered 401 to the tarball of octo/hello";
    assert!(told.starts_with(error), "{told}");
    assert_eq!(sink.mails().len(), 1);
}

/// A build whose tarball meets these faults before it arrives.
async fn tarball_meets(endpoint: Endpoint, count: usize, fault: Fault) {
    let fixture = Fixture::plain().await;
    fixture.github.fail_next(endpoint, count, fault);
    let built = fixture.run(fixture.setup("cat README.md")).await;
    built.assert_passed();
    assert_eq!(built.log, "hello\n");
}

#[tokio::test]
async fn a_tarball_that_meets_trouble_is_fetched_again() {
    tokio::join!(
        tarball_meets(Endpoint::Tarball, 2, Fault::code(500)),
        tarball_meets(Endpoint::Tarball, 1, Fault::LoseAnswer),
        tarball_meets(Endpoint::Tarball, 1, Fault::secondary_limit(1)),
        tarball_meets(Endpoint::Codeload, 1, Fault::code(503)),
        tarball_meets(Endpoint::Codeload, 2, Fault::CutAfter(100)),
    );
}

#[tokio::test]
async fn a_build_that_waits_for_github_does_not_hold_up_a_stop_and_is_built_by_the_next_start() {
    let fixture = Fixture::plain().await;
    let limit = Fault::unannounced_limit();
    fixture.github.fail_next(Endpoint::Tarball, 1, limit);
    let setup = fixture.setup("true").env("DRAIN_TIMEOUT", "1s");
    let mut service = setup.start().await;
    let build = fixture.push(&service).await;
    service.wait_for_log("waiting for GitHub", DEADLINE).await;
    let told = service.log();
    let line = told
        .lines()
        .find(|line| line.contains("waiting for GitHub"));
    let wait_s = line.and_then(|line| line.rsplit_once("wait_s=")?.1.parse::<u64>().ok());
    // A minute, and up to two seconds of jitter.
    assert!(
        wait_s.is_some_and(|wait_s| (60..=62).contains(&wait_s)),
        "{line:?}"
    );

    let begun = Instant::now();
    service.stop(DEADLINE).await;
    assert!(begun.elapsed() < Duration::from_secs(20));
    service.start_again().await;
    fixture.finished(&service, build).await.assert_passed();
}

#[tokio::test]
async fn a_build_that_begins_to_wait_during_a_stop_does_not_hold_it_up() {
    let fixture = Fixture::plain().await;
    let github = &fixture.github;
    github.fail_next(Endpoint::Tarball, 1, Fault::Hang);
    let mut service = fixture.setup("true").start().await;
    let build = fixture.push(&service).await;
    let fetches = |request: &Request| request.path.contains("/tarball/");
    github.wait_for_request(fetches, DEADLINE).await;

    let begun = Instant::now();
    service.stop(DEADLINE).await;
    assert!(begun.elapsed() < Duration::from_secs(10));
    service.start_again().await;
    fixture.finished(&service, build).await.assert_passed();
}

#[tokio::test]
async fn the_commit_of_a_branch_is_asked_for_again() {
    let fixture = Fixture::plain().await;
    let fault = Fault::secondary_limit(1);
    fixture.github.fail_next(Endpoint::Commit, 1, fault);
    let service = fixture.setup("true").start().await;
    let bearer = format!("Bearer {}", fixture.github.token());
    let headers = [("authorization", bearer.as_str())];
    let answer = service.post("/", &headers, r#"{"after": "main"}"#).await;
    let built = fixture.finished(&service, answer.build_id()).await;
    built.assert_passed();
}

#[tokio::test]
async fn a_commit_that_nobody_could_build_ends_with_an_error() {
    let fixture = Fixture::plain().await;
    let github = &fixture.github;
    github.fail_next(Endpoint::Tarball, 3, Fault::Hang);
    let mut service = fixture.setup("true").start().await;
    let build = fixture.push(&service).await;
    for attempt in 1..=3 {
        let fetches = |request: &Request| request.path.contains("/tarball/");
        github.wait_for_requests(attempt, fetches, DEADLINE).await;
        service.kill();
        service.start_again().await;
    }
    let built = fixture.finished(&service, build).await;
    let last = built.statuses.last().expect("a status");
    assert_eq!(last.state, CommitState::Error);
    insta::assert_snapshot!(built.told().join("\n"), @r"
    Pending: building
    Error: error: gave up after 3 attempts (the worker was interrupted)
    ");
}
