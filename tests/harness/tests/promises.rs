//! The harness's own promises, through its public face.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::Read;
use std::process::Command;
use std::time::Duration;

use bollard::models::{ContainerCreateBody, HostConfig, VolumeCreateRequest};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, RemoveVolumeOptions,
    StartContainerOptions,
};
use flate2::read::GzDecoder;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls as ClientTls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use reqwest::header::{ACCEPT, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use uuid::Uuid;

use compose_ci_harness::{
    Certificates, CommitState, Endpoint, Engine, Fault, GitHub, Host, OneBox, Process, Push, Setup,
    SinkOptions, SmtpSink, TOKEN, Tarball, TestRepo, Tls, listening_address, test_image,
};

const REPO: &str = "octo/app";
const DEADLINE: Duration = Duration::from_secs(20);
const MADE_UP: &str = "0123456789abcdef0123456789abcdef01234567";

/// A fake GitHub with one repository of one commit.
async fn github() -> (GitHub, TestRepo, String) {
    let github = GitHub::start().await;
    let (repo, sha) = TestRepo::with_files(&[("compose.yaml", "services: {}\n")]);
    github.host(REPO, repo.path());
    (github, repo, sha)
}

fn client() -> Client {
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let builder = Client::builder()
        .redirect(Policy::none())
        .user_agent("tests")
        .timeout(DEADLINE);
    builder.build().unwrap()
}

fn get(github: &GitHub, path: &str) -> RequestBuilder {
    client()
        .get(format!("{}{path}", github.url()))
        .bearer_auth(TOKEN)
}

fn post_status(github: &GitHub, sha: &str, status: &Value) -> RequestBuilder {
    let url = format!("{}/repos/{REPO}/statuses/{sha}", github.url());
    client()
        .post(url)
        .bearer_auth(TOKEN)
        .body(status.to_string())
}

async fn code(request: RequestBuilder) -> u16 {
    request.send().await.unwrap().status().as_u16()
}

/// Where GitHub's redirect for this reference points to.
async fn tarball_url(github: &GitHub, reference: &str) -> String {
    let redirect = get(github, &format!("/repos/{REPO}/tarball/{reference}"))
        .send()
        .await
        .unwrap();
    assert_eq!(redirect.status(), 302);
    redirect.headers()[LOCATION].to_str().unwrap().to_owned()
}

async fn download(url: &str) -> Vec<u8> {
    client()
        .get(url)
        .send()
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap()
        .to_vec()
}

/// Path and content of every entry, the pax global header included.
fn entries(gzipped: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(GzDecoder::new(gzipped));
    let read = |mut entry: tar::Entry<'_, GzDecoder<&[u8]>>| {
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().display().to_string(), content)
    };
    archive
        .entries()
        .unwrap()
        .raw(true)
        .map(|entry| read(entry.unwrap()))
        .collect()
}

#[tokio::test]
async fn a_status_is_stored_with_its_commit_and_listed_newest_first() {
    let (github, _repo, sha) = github().await;
    for state in ["pending", "success"] {
        let status =
            json!({ "state": state, "context": "ci", "target_url": "https://ci.example.org" });
        assert_eq!(code(post_status(&github, &sha, &status)).await, 201);
    }

    let listed = get(
        &github,
        &format!("/repos/{REPO}/commits/{sha}/statuses?per_page=1"),
    );
    let listed: Value = listed.send().await.unwrap().json().await.unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["state"], "success");
    assert_eq!(
        github.states(&sha),
        [CommitState::Pending, CommitState::Success]
    );
    assert_eq!(github.wait_for_end(&sha, DEADLINE).await[1].context, "ci");
}

#[tokio::test]
async fn a_status_that_github_would_refuse_is_refused() {
    let (github, _repo, sha) = github().await;
    let posted = async |sha, status| code(post_status(&github, sha, &status)).await;

    assert_eq!(
        posted(
            &sha,
            json!({ "state": "pending", "description": "x".repeat(140) })
        )
        .await,
        201
    );
    assert_eq!(
        posted(
            &sha,
            json!({ "state": "pending", "description": "x".repeat(141) })
        )
        .await,
        422
    );
    assert_eq!(posted(&sha, json!({ "state": "done" })).await, 422);
    assert_eq!(
        posted(
            &sha,
            json!({ "state": "error", "target_url": "ci.example.org" })
        )
        .await,
        422
    );
    assert_eq!(posted(MADE_UP, json!({ "state": "pending" })).await, 422);
    assert_eq!(posted("main", json!({ "state": "pending" })).await, 422);
    assert_eq!(github.all_statuses().len(), 1);
}

#[tokio::test]
async fn only_the_token_opens_the_api() {
    let (github, _repo, sha) = github().await;
    let url = format!("{}/repos/{REPO}/commits/{sha}", github.url());
    let with = async |value: &str| code(client().get(&url).header("authorization", value)).await;

    assert_eq!(with(&format!("token {TOKEN}")).await, 200);
    assert_eq!(with(&format!("BEARER {TOKEN}")).await, 200);
    assert_eq!(with(&format!("Basic {TOKEN}")).await, 401);
    assert_eq!(with("token wrong").await, 401);
    assert_eq!(code(client().get(&url)).await, 401);
}

#[tokio::test]
async fn a_reference_is_resolved_with_slashes_encoded_or_plain() {
    let (github, repo, first) = github().await;
    repo.tag("v1").branch("feature/new").write("more", "");
    let second = repo.commit("More");
    let resolved = async |reference: &str| {
        let request = get(&github, &format!("/repos/{REPO}/commits/{reference}"));
        let answer = request
            .header(ACCEPT, "application/vnd.github.sha")
            .send()
            .await
            .unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };

    assert_eq!(resolved("feature/new").await, (200, second.clone()));
    assert_eq!(resolved("feature%2Fnew").await, (200, second.clone()));
    assert_eq!(resolved(&second[..7]).await, (200, second));
    assert_eq!(resolved("v1").await, (200, first.clone()));
    let (code, message) = resolved("gone").await;
    assert_eq!(code, 422);
    assert!(
        message.contains("No commit found for SHA: gone"),
        "{message}"
    );
    let json: Value = get(&github, &format!("/repos/{REPO}/commits/main"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(json["sha"], first);
}

#[tokio::test]
async fn a_tarball_is_git_s_own_and_its_link_serves_once() {
    let (github, _repo, sha) = github().await;
    let url = tarball_url(&github, "main").await;

    let entries = entries(&download(&url).await);

    let (name, content) = &entries[0];
    assert_eq!(name, "pax_global_header");
    assert_eq!(
        String::from_utf8_lossy(content),
        format!("52 comment={sha}\n")
    );
    let file = format!("octo-app-{}/compose.yaml", &sha[..7]);
    assert!(
        entries.contains(&(file, b"services: {}\n".to_vec())),
        "{entries:?}"
    );
    assert_eq!(code(client().get(&url)).await, 404);
}

#[tokio::test]
async fn a_generated_tarball_has_the_commit_s_id_and_its_size() {
    let (github, _repo, _sha) = github().await;
    github.host_tarball(
        REPO,
        MADE_UP,
        Tarball::Generated {
            files: 3,
            file_size_bytes: 100_000,
        },
    );

    let entries = entries(&download(&tarball_url(&github, MADE_UP).await).await);

    assert_eq!(entries[0].1, format!("52 comment={MADE_UP}\n").into_bytes());
    let sizes: Vec<usize> = entries[1..]
        .iter()
        .map(|(_, content)| content.len())
        .collect();
    assert_eq!(sizes, [100_000; 3]);
}

#[tokio::test]
async fn a_made_up_tarball_is_sent_as_the_test_made_it() {
    let (github, _repo, _sha) = github().await;
    let tarball = Tarball::with_entries(MADE_UP, |archive| {
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        archive.append_link(&mut link, "top/link", "/etc/passwd")
    });
    github.host_tarball(REPO, MADE_UP, tarball);

    let entries = entries(&download(&tarball_url(&github, MADE_UP).await).await);

    assert_eq!(entries[0].1, format!("52 comment={MADE_UP}\n").into_bytes());
    assert_eq!(entries[1].0, "top/link");
}

#[tokio::test]
async fn planned_faults_come_in_order_and_then_end() {
    let (github, _repo, sha) = github().await;
    github.fail_next(Endpoint::PostStatus, 1, Fault::code(502));
    github.fail_next(Endpoint::PostStatus, 1, Fault::secondary_limit(7));
    let pending = json!({ "state": "pending" });

    assert_eq!(code(post_status(&github, &sha, &pending)).await, 502);
    let limited = post_status(&github, &sha, &pending).send().await.unwrap();
    assert_eq!(limited.status(), 403);
    assert_eq!(limited.headers()["retry-after"], "7");
    assert_eq!(github.states(&sha), []);
    assert_eq!(code(post_status(&github, &sha, &pending)).await, 201);
}

#[tokio::test]
async fn a_lost_answer_has_stored_the_status() {
    let (github, _repo, sha) = github().await;
    github.fail_next(Endpoint::PostStatus, 1, Fault::LoseAnswer);

    let answer = post_status(&github, &sha, &json!({ "state": "pending" }))
        .send()
        .await;

    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(github.states(&sha), [CommitState::Pending]);
}

#[tokio::test]
async fn a_cut_tarball_ends_after_the_planned_bytes() {
    let (github, _repo, _sha) = github().await;
    github.host_tarball(
        REPO,
        MADE_UP,
        Tarball::Generated {
            files: 1,
            file_size_bytes: 1_000_000,
        },
    );
    github.fail_next(Endpoint::Codeload, 1, Fault::CutAfter(100_000));
    let mut answer = client()
        .get(tarball_url(&github, MADE_UP).await)
        .send()
        .await
        .unwrap();

    let mut received = 0;
    let ended_by = loop {
        match answer.chunk().await {
            Ok(Some(chunk)) => received += chunk.len(),
            end => break end,
        }
    };

    assert!(ended_by.is_err(), "the body seems whole");
    assert_eq!(received, 100_000);
}

#[tokio::test]
async fn a_hanging_request_has_arrived_and_a_stalled_one_has_begun() {
    let (github, _repo, sha) = github().await;
    github.fail_next(Endpoint::Commit, 1, Fault::Hang);
    github.fail_next(Endpoint::Commit, 1, Fault::StallAfter(3));
    let path = format!("/repos/{REPO}/commits/{sha}");

    let hanging = tokio::spawn(get(&github, &path).send());
    github
        .wait_for_request(|request| request.path == path, DEADLINE)
        .await;
    assert!(!hanging.is_finished());
    let mut stalled = get(&github, &path).send().await.unwrap();
    assert_eq!(stalled.chunk().await.unwrap().unwrap().len(), 3);
    hanging.abort();
}

#[tokio::test]
#[should_panic(expected = "never met")]
async fn a_fault_that_is_never_met_fails_the_test() {
    let (github, _repo, _sha) = github().await;
    github.fail_next(Endpoint::Tarball, 1, Fault::code(500));
}

#[tokio::test]
#[should_panic(expected = "sent to the tarball host")]
async fn a_token_at_the_tarball_host_fails_the_test() {
    let (github, _repo, _sha) = github().await;
    let url = tarball_url(&github, "main").await;
    assert_eq!(code(client().get(url).bearer_auth(TOKEN)).await, 200);
    let requests = github.requests();
    let newest = requests.last().unwrap();
    assert!(newest.host == Host::Codeload && newest.had_authorization);
}

#[test]
fn a_push_payload_is_about_what_the_test_says() {
    let push = Push {
        repo: REPO,
        reference: "refs/tags/v1",
        after: MADE_UP,
        message: "Hello",
    };
    let payload = push.payload();
    assert_eq!(payload["repository"]["full_name"], REPO);
    assert_eq!(payload["head_commit"]["id"], MADE_UP);
    assert_eq!(
        payload["pusher"]["name"], "Codertocat",
        "the rest is GitHub's example"
    );
}

/// Sends one mail with a text, an HTML part and an attachment.
async fn send(
    sink: &SmtpSink,
    tls: ClientTls,
    login: Option<(&str, &str)>,
) -> Result<(), lettre::transport::smtp::Error> {
    use lettre::message::{Attachment, MultiPart, header::ContentType};

    let body = MultiPart::mixed()
        .multipart(MultiPart::alternative_plain_html(
            "grün".to_owned(),
            "<b>grün</b>".to_owned(),
        ))
        .singlepart(Attachment::new("log.gz".to_owned()).body(
            vec![0_u8, 1, 255],
            ContentType::parse("application/gzip").unwrap(),
        ));
    let mail = Message::builder()
        .from("ci@example.org".parse().unwrap())
        .to("team@example.org".parse().unwrap())
        .subject("bestanden – größer")
        .multipart(body)
        .unwrap();
    let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous("localhost")
        .port(sink.address().port())
        .tls(tls)
        .timeout(Some(DEADLINE));
    if let Some((user, password)) = login {
        transport = transport.credentials(Credentials::new(user.to_owned(), password.to_owned()));
    }
    transport.build().send(mail).await.map(drop)
}

fn trusting(certificates: &Certificates) -> TlsParameters {
    let authority = Certificate::from_pem(&fs::read(certificates.ca()).unwrap()).unwrap();
    TlsParameters::builder("localhost".to_owned())
        .add_root_certificate(authority)
        .build()
        .unwrap()
}

#[tokio::test]
async fn the_sink_keeps_a_mail_that_came_over_starttls_with_a_login() {
    let certificates = Certificates::new();
    let login = Some(("user", "password"));
    let sink = SmtpSink::start(SinkOptions {
        tls: Tls::StartTls(&certificates),
        login,
        ..SinkOptions::default()
    })
    .await;

    assert!(
        send(&sink, ClientTls::None, None).await.is_err(),
        "taken without TLS"
    );
    let tls = ClientTls::Required(trusting(&certificates));
    assert!(
        send(&sink, tls.clone(), Some(("user", "wrong")))
            .await
            .is_err(),
        "taken without the password"
    );
    send(&sink, tls, login).await.unwrap();

    let mails = sink.wait_for_mails(1, DEADLINE).await;
    let [mail] = mails.as_slice() else {
        panic!("{mails:?}")
    };
    assert_eq!(
        (mail.from.as_str(), mail.to.as_str()),
        ("ci@example.org", "team@example.org")
    );
    assert_eq!(mail.subject, "bestanden – größer");
    assert_eq!(mail.text.trim_end(), "grün");
    assert_eq!(mail.html.as_deref().map(str::trim_end), Some("<b>grün</b>"));
    assert_eq!(mail.attachments[0].name, "log.gz");
    assert_eq!(mail.attachments[0].content_type, "application/gzip");
    assert_eq!(mail.attachments[0].bytes, [0, 1, 255]);
}

#[tokio::test]
async fn the_sink_speaks_tls_from_the_first_byte_and_refuses_as_planned() {
    let certificates = Certificates::new();
    let sink = SmtpSink::start(SinkOptions {
        tls: Tls::Implicit(&certificates),
        login: Some(("user", "password")),
        refuse_first: Some((1, "451 try later")),
        ..SinkOptions::default()
    })
    .await;
    let tls = ClientTls::Wrapper(trusting(&certificates));
    let login = Some(("user", "password"));

    let refused = send(&sink, tls.clone(), login).await.unwrap_err();
    assert!(refused.is_transient(), "{refused}");
    send(&sink, tls, login).await.unwrap();

    assert_eq!(sink.wait_for_mails(1, DEADLINE).await.len(), 1);
    assert_eq!(sink.refused(), 1);
}

#[tokio::test]
async fn the_stand_in_tells_the_push_and_the_statuses() {
    let (repo, sha) = TestRepo::with_files(&[("README", "")]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_stand-in"));
    command
        .arg("--repo")
        .arg(format!("{REPO}={}", repo.path().display()));
    let process = Process::start(command);
    let address = process.wait_for_output(listening_address, DEADLINE).await;
    let get = async |path: &str| -> Value {
        client()
            .get(format!("http://{address}{path}"))
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    };

    assert_eq!(
        get(&format!("/_/push?repo={REPO}&ref=refs/heads/main")).await["after"],
        sha
    );
    let url = format!("http://{address}/repos/{REPO}/statuses/{sha}");
    let status = json!({ "state": "success" }).to_string();
    assert_eq!(
        code(client().post(url).bearer_auth(TOKEN).body(status)).await,
        201
    );
    assert_eq!(get("/_/statuses").await[0]["sha"], sha);
}

/// A container that carries a build's label, not yet started; it removes itself after its end.
async fn labelled_container(engine: &Engine, build_id: &str) {
    let body = ContainerCreateBody {
        image: Some(test_image()),
        entrypoint: Some(vec!["sleep".to_owned(), "60".to_owned()]),
        labels: Some([("compose-ci.build".to_owned(), build_id.to_owned())].into()),
        host_config: Some(HostConfig {
            auto_remove: Some(true),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let options = CreateContainerOptionsBuilder::new().name(build_id).build();
    engine
        .docker()
        .create_container(Some(options), body)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_container_is_waited_for_until_it_runs_and_until_it_is_gone() {
    let engine = Engine::connect().await;
    let before = engine.snapshot().await;
    let id = Uuid::new_v4().to_string();
    labelled_container(&engine, &id).await;
    let name = format!("container {id}");
    assert!(!before.contains(&name) && engine.snapshot().await.contains(&name));

    let start = engine
        .docker()
        .start_container(&id, None::<StartContainerOptions>);
    let ((), started) = tokio::join!(engine.wait_until_running(&id, DEADLINE), start);
    started.unwrap();

    let force = RemoveContainerOptionsBuilder::new().force(true).build();
    let removal = engine.docker().remove_container(&id, Some(force));
    let ((), removed) = tokio::join!(engine.assert_nothing_left(&id, &id, DEADLINE), removal);
    removed.unwrap();
    assert!(!engine.snapshot().await.contains(&name));
}

#[tokio::test]
#[should_panic(expected = "has left")]
async fn a_volume_that_a_build_leaves_fails_the_test() {
    let engine = Engine::connect().await;
    let id = Uuid::new_v4().to_string();
    let volume = VolumeCreateRequest {
        name: Some(id.clone()),
        labels: Some([("compose-ci.build".to_owned(), id.clone())].into()),
        ..VolumeCreateRequest::default()
    };
    engine.docker().create_volume(volume).await.unwrap();
    let watching = engine.clone();
    let watched = id.clone();
    let assertion = tokio::spawn(async move {
        watching
            .assert_nothing_left(&watched, &watched, Duration::from_millis(200))
            .await;
    });
    let panicked = assertion.await;
    engine
        .docker()
        .remove_volume(&id, None::<RemoveVolumeOptions>)
        .await
        .unwrap();
    std::panic::resume_unwind(panicked.unwrap_err().into_panic());
}

/// A service that takes every push and builds nothing.
const IDLE_SERVICE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/idle_service.py");

async fn push(one_box: &OneBox, sha: &str) -> String {
    let push = Push {
        repo: REPO,
        reference: "refs/heads/main",
        after: sha,
        message: "Hello",
    };
    one_box.push(&push.payload()).await.build_id()
}

#[tokio::test]
#[should_panic(expected = "have no final status")]
async fn an_accepted_push_that_stays_pending_fails_the_test() {
    let (github, _repo, sha) = github().await;
    let one_box = Setup::new(IDLE_SERVICE, &github, REPO).start().await;
    push(&one_box, &sha).await;
    assert_eq!(
        code(post_status(&github, &sha, &json!({ "state": "pending" }))).await,
        201
    );
}

#[tokio::test]
#[should_panic(expected = "a secret stands in the service's log")]
async fn a_secret_in_the_service_s_log_fails_the_test() {
    let (github, _repo, _sha) = github().await;
    let setup = Setup::new(IDLE_SERVICE, &github, REPO);
    setup
        .env("SMTP_PASS", "hunter2")
        .env("SAYS", "the password is hunter2")
        .start()
        .await;
}

#[tokio::test]
async fn a_service_is_stopped_killed_and_started_again_on_the_same_data() {
    let (github, _repo, sha) = github().await;
    let mut one_box = Setup::new(IDLE_SERVICE, &github, REPO).start().await;
    push(&one_box, &sha).await;
    let first = one_box.pid();
    assert!((1..=one_box.peak_rss_kib()).contains(&one_box.rss_kib()));

    fs::write(one_box.data_dir().join("kept"), "").unwrap();
    assert!(
        !one_box.stop(DEADLINE).await.success(),
        "SIGTERM ends Python with a signal"
    );
    one_box.start_again().await;
    one_box.kill();
    one_box.start_again().await;

    assert_ne!(one_box.pid(), first);
    assert!(one_box.data_dir().join("kept").exists());
    assert_eq!(one_box.log().matches("listening on").count(), 3);
    push(&one_box, &sha).await;
    assert_eq!(
        code(post_status(&github, &sha, &json!({ "state": "success" }))).await,
        201
    );
}
