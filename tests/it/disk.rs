//! Disks that fill up, and what is removed so that they do not.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use harness::{AtEnd, OneBox, Registry, Setup, SmallDisk, Status, docker, test_image};
use uuid::Uuid;

use crate::fixture::{DEADLINE, Fixture, GATE, at_gate, open_gate, project, told};

const MIB: u64 = 1 << 20;

const PASSED: &str = "Success: passed in …";

/// The service with its data on this disk, of which a quarter must be free for a build.
fn on(disk: &SmallDisk, setup: Setup) -> Setup {
    let data_dir = disk.path().display().to_string();
    let setup = setup.env("DATA_DIR", data_dir);
    setup.env("DISK_FREE_MIN", "16MiB")
}

/// What is stored of a build's log on this disk.
fn stored(disk: &SmallDisk, build: &str) -> String {
    fs::read_to_string(log_path(&disk.path(), build)).unwrap_or_default()
}

fn log_path(data_dir: &Path, build: &str) -> PathBuf {
    data_dir.join(format!("logs/{build}.log"))
}

/// Builds the commit, and tells its final status.
async fn end_of(fixture: &Fixture, service: &OneBox) -> (String, String) {
    let build = fixture.push(service).await;
    let statuses = fixture.github.wait_for_end(&fixture.sha, DEADLINE).await;
    fixture.assert_nothing_left(&build).await;
    (build, last(&statuses))
}

fn last(statuses: &[Status]) -> String {
    told(statuses).pop().expect("a status")
}

#[tokio::test]
async fn a_build_that_finds_too_little_room_is_not_begun() {
    let mut fixture = Fixture::plain().await;
    let disk = SmallDisk::mount();
    let service = on(&disk, fixture.setup("echo ran")).start().await;
    disk.fill_up_to(10 * MIB);
    let (build, told) = end_of(&fixture, &service).await;
    let lack = "MiB left under DATA_DIR, less than 16.0 MiB; free some or lower DISK_FREE_MIN)";
    assert!(told.starts_with("Error: error: disk full ("), "{told}");
    assert!(told.ends_with(lack), "{told}");
    assert_eq!(stored(&disk, &build), "");

    disk.free();
    fixture.commit("another", "");
    let (build, told) = end_of(&fixture, &service).await;
    assert_eq!(told, PASSED);
    assert_eq!(stored(&disk, &build), "ran\n");
}

#[tokio::test]
async fn a_build_is_stopped_when_the_room_gets_scarce() {
    let mut fixture = Fixture::plain().await;
    let disk = SmallDisk::mount();
    let service = on(&disk, fixture.setup(GATE)).start().await;
    let build = fixture.push(&service).await;
    at_gate(&fixture.engine, &build).await;
    disk.fill_up_to(10 * MIB);
    let told = last(&fixture.github.wait_for_end(&fixture.sha, DEADLINE).await);
    assert!(told.starts_with("Error: error: disk full ("), "{told}");
    assert!(told.contains("left under DATA_DIR"), "{told}");

    disk.free();
    fixture.commit("another", "");
    let build = fixture.push(&service).await;
    at_gate(&fixture.engine, &build).await;
    open_gate(&build).await;
    let told = last(&fixture.github.wait_for_end(&fixture.sha, DEADLINE).await);
    assert_eq!(told, PASSED);
    fixture.assert_nothing_left(&build).await;
}

#[tokio::test]
async fn a_log_that_fills_the_disk_ends_its_build_and_makes_room_for_the_next() {
    let mut fixture = Fixture::of(&[("build", "true")]).await;
    let disk = SmallDisk::mount();
    let setup = on(&disk, fixture.setup("sh ./build"));
    let service = setup.env("DISK_FREE_MIN", "6MiB").start().await;
    assert_eq!(end_of(&fixture, &service).await.1, PASSED);
    disk.fill_up_to(8 * MIB);
    fixture.commit("build", "exec yes");
    let (full, told) = end_of(&fixture, &service).await;
    assert!(told.starts_with("Error: error: disk full ("), "{told}");
    let page = service.get(&format!("/builds/{full}")).await.body;
    assert!(page.contains("y\ny\ny\n"));

    fixture.commit("build", "echo small");
    let (next, told) = end_of(&fixture, &service).await;
    assert_eq!(told, PASSED);
    assert_eq!(stored(&disk, &next), "small\n");
    assert!(!log_path(&disk.path(), &full).exists());
    let page = service.get(&format!("/builds/{full}")).await.body;
    assert!(page.contains("the log was removed"), "{page}");
}

#[tokio::test]
async fn a_build_whose_log_did_not_fit_has_not_passed() {
    let mut fixture = Fixture::of(&[("build", "true")]).await;
    let disk = SmallDisk::mount();
    let setup = on(&disk, fixture.setup("sh ./build"));
    let service = setup.env("DISK_FREE_MIN", "0").start().await;
    assert_eq!(end_of(&fixture, &service).await.1, PASSED);
    disk.fill_up_to(4 * MIB);
    fixture.commit("build", "yes | head --bytes 8M");
    let (_, told) = end_of(&fixture, &service).await;
    let expected = "Error: error: disk full (no space left under DATA_DIR; free some)";
    assert_eq!(told, expected);
}

#[tokio::test]
async fn too_few_inodes_are_a_full_disk_as_well() {
    let mut fixture = Fixture::plain().await;
    let disk = SmallDisk::mount();
    let service = on(&disk, fixture.setup("true")).start().await;
    let many = disk.path().join("many");
    fs::create_dir(&many).expect("made");
    let names = 0..;
    let made = names.map(|name: u32| File::create(many.join(name.to_string())));
    assert!(made.take_while(Result::is_ok).count() > 1900);
    // For the service's own.
    for name in 0..5 {
        fs::remove_file(many.join(name.to_string())).expect("removed");
    }
    let (_, told) = end_of(&fixture, &service).await;
    assert!(told.starts_with("Error: error: disk full ("), "{told}");
    assert!(
        told.ends_with(" of 2048 inodes left under DATA_DIR; free some)"),
        "{told}"
    );

    fs::remove_dir_all(&many).expect("removed");
    fixture.commit("another", "");
    assert_eq!(end_of(&fixture, &service).await.1, PASSED);
}

#[tokio::test]
async fn on_a_full_disk_a_push_is_refused_and_the_end_of_a_build_is_told_all_the_same() {
    let mut fixture = Fixture::of(&[("build", &format!("{GATE}; exit 3"))]).await;
    let disk = SmallDisk::mount();
    let setup = on(&disk, fixture.setup("sh ./build"));
    // Nobody watches: the disk is full to the last byte when the build ends.
    let setup = setup.env("DISK_FREE_MIN", "0").env("CONCURRENCY", "1");
    let service = setup.start().await;
    let first = (fixture.sha.clone(), fixture.push(&service).await);
    at_gate(&fixture.engine, &first.1).await;
    disk.fill();
    fixture.commit("build", "true");
    let mut accepted = 0;
    let refusal = loop {
        // Until the room is used up that SQLite has in its files.
        match service.push(&fixture.payload()).await.code {
            202 => accepted += 1,
            refusal => break refusal,
        }
    };
    assert_eq!(refusal, 503);

    open_gate(&first.1).await;
    let ended = last(&fixture.github.wait_for_end(&first.0, DEADLINE).await);
    assert_eq!(ended, "Failure: failed with exit code 3 after …");
    disk.free();
    accepted += 1;
    fixture.push(&service).await;
    let passed = |statuses: &[Status]| {
        let all = told(statuses);
        all.iter().filter(|one| *one == PASSED).count() == accepted
    };
    let sha = &fixture.sha;
    fixture.github.wait_for_status(sha, passed, DEADLINE).await;
}

#[tokio::test]
async fn builds_that_end_on_a_full_disk_are_told_when_there_is_room() {
    let hook = format!("{GATE}; seq 100000; exit 3");
    let mut fixture = Fixture::plain().await;
    let disk = SmallDisk::mount();
    let setup = on(&disk, fixture.setup(&hook)).env("DISK_FREE_MIN", "0");
    let service = setup.env("CONCURRENCY", "2").start().await;
    let mut builds = Vec::new();
    for n in ["one", "two"] {
        fixture.commit("n", n);
        let build = fixture.push_to(&service, &format!("refs/heads/{n}")).await;
        at_gate(&fixture.engine, &build).await;
        builds.push((fixture.sha.clone(), build));
    }
    disk.fill();
    for (_, build) in &builds {
        open_gate(build).await;
        fixture.engine.wait_until_ended(build, DEADLINE).await;
    }
    disk.free();
    for (sha, build) in builds {
        let ended = last(&fixture.github.wait_for_end(&sha, DEADLINE).await);
        // The first that meets the full disk makes room.
        match ended.as_str() {
            "Error: error: disk full (no space left under DATA_DIR; free some)" => {}
            "Failure: failed with exit code 3 after …" => {
                assert!(stored(&disk, &build).ends_with("\n100000\n"));
            }
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn a_service_starts_on_a_full_disk() {
    let mut fixture = Fixture::plain().await;
    let disk = SmallDisk::mount();
    let mut service = on(&disk, fixture.setup("true")).start().await;
    assert_eq!(end_of(&fixture, &service).await.1, PASSED);
    assert!(service.stop(DEADLINE).await.success());
    disk.fill();
    service.start_again().await;
    fixture.commit("another", "");
    let (_, told) = end_of(&fixture, &service).await;
    assert!(told.starts_with("Error: error: disk full ("), "{told}");
}

/// What is there of an image of this name or id.
async fn image_ids(image: &str) -> String {
    docker(&["image", "ls", "--quiet", "--no-trunc", image]).await
}

/// Waits for the end of a sweep, which finds a log that is old.
async fn swept(service: &OneBox) {
    service.wait_for_log("removed old logs", DEADLINE).await;
}

/// The service whose every sweep finds that all has outlived its time.
fn impatient(setup: Setup) -> Setup {
    setup
        .env("LOG_RETENTION", "1ms")
        .env("IMAGE_RETENTION", "1ms")
}

#[tokio::test]
async fn a_log_goes_when_it_is_old_and_its_page_says_so() {
    let fixture = Fixture::plain().await;
    let mut service = impatient(fixture.setup("echo ran")).start().await;
    let built = fixture.build(&service).await;
    built.assert_passed();
    assert_eq!(built.log, "ran\n");
    assert!(service.stop(DEADLINE).await.success());
    service.start_again().await;
    swept(&service).await;
    let page = service.get(&format!("/builds/{}", built.id)).await.body;
    assert!(page.contains("<h1 class=\"success\">passed"), "{page}");
    assert!(page.contains("the log was removed"), "{page}");
    assert!(!log_path(service.data_dir(), &built.id).exists());
}

/// An image in a registry, which the engine does not have.
struct Remote {
    registry: Registry,
    image: String,
    at_end: AtEnd,
}

const USER: &str = "ci";
const PASSWORD: &str = "the registry's password";

impl Remote {
    async fn push() -> Self {
        let registry = Registry::start(USER, PASSWORD).await;
        let host = registry.host();
        let image = format!("{host}/team/build:1");
        let mut at_end = AtEnd::new();
        at_end.docker(&["rmi", &image]);
        let config = tempfile::tempdir().expect("a directory");
        let config = config.path().display().to_string();
        let login = ["login", "--username", USER, "--password", PASSWORD, &host];
        docker(&[&["--config", &config][..], &login].concat()).await;
        docker(&["tag", "debian:trixie-slim", &image]).await;
        docker(&["--config", &config, "push", "--quiet", &image]).await;
        docker(&["rmi", &image]).await;
        Self {
            registry,
            image,
            at_end,
        }
    }

    /// The service that builds in this image.
    fn used_by(&self, setup: Setup) -> Setup {
        setup
            .env("BUILD_IMAGE", &self.image)
            .env("DOCKER_REGISTRY", self.registry.host())
            .env("REGISTRY_USER", USER)
            .env("REGISTRY_PASS", PASSWORD)
    }
}

/// Builds in a pulled image, lets `meddle` do something to it, and sweeps in a service that builds
/// in another image.
async fn sweep_pulled(remote: &Remote, meddle: &[&str]) {
    let data = tempfile::tempdir().expect("a directory");
    let data = data.path().display().to_string();
    let fixture = Fixture::plain().await;
    let setup = remote.used_by(fixture.setup("true"));
    let mut service = setup.env("DATA_DIR", &data).start().await;
    assert_eq!(end_of(&fixture, &service).await.1, PASSED);
    assert!(service.stop(DEADLINE).await.success());
    docker(meddle).await;
    let setup = impatient(fixture.setup("true"));
    swept(&setup.env("DATA_DIR", &data).start().await).await;
}

#[tokio::test]
async fn an_image_that_the_worker_pulled_goes_when_no_build_uses_it_any_more() {
    let mut remote = Remote::push().await;
    let theirs = format!("{}/somebody/theirs:1", remote.registry.host());
    remote.at_end.docker(&["rmi", &theirs]);
    sweep_pulled(&remote, &["tag", &remote.image, &theirs]).await;
    assert_eq!(image_ids(&remote.image).await, "");
    assert_ne!(image_ids(&theirs).await, "");
}

#[tokio::test]
async fn an_image_stays_whose_name_somebody_has_given_to_another_one() {
    let remote = Remote::push().await;
    let another = test_image();
    sweep_pulled(&remote, &["tag", &another, &remote.image]).await;
    assert_eq!(image_ids(&remote.image).await, image_ids(&another).await);
}

#[tokio::test]
async fn an_image_that_a_newer_build_has_taken_the_name_of_goes_and_a_persons_stays() {
    let name = format!("made-by-{}", Uuid::new_v4().simple());
    let compose = format!("services:\n  made: {{ image: '{name}', build: . }}\n");
    let mut fixture = Fixture::of(&[
        ("compose.yaml", &compose),
        ("Dockerfile", "FROM scratch\nCOPY content /\n"),
        ("content", "one"),
    ])
    .await;
    let mut at_end = AtEnd::new();
    at_end.docker(&["rmi", &name]);
    let setup = impatient(fixture.setup("docker compose build --quiet"));
    let mut service = setup.start().await;
    assert_eq!(end_of(&fixture, &service).await.1, PASSED);
    let older = image_ids(&name).await;
    let older = older.trim_end();
    fixture.commit("content", "two");
    assert_eq!(end_of(&fixture, &service).await.1, PASSED);
    let newer = image_ids(&name).await;
    assert_ne!(older, newer.trim_end());

    // As a service with other data would have made it.
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("any.tar");
    let mut tar = tar::Builder::new(File::create(&file).expect("created"));
    tar.append_path("Cargo.toml").expect("written");
    tar.finish().expect("written");
    let project = format!("com.docker.compose.project=ci-{}", Uuid::new_v4().simple());
    let label = format!("LABEL {project}");
    let theirs = docker(&["import", "--change", &label, &file.display().to_string()]).await;
    let theirs = theirs.trim_end();
    at_end.docker(&["rmi", theirs]);

    assert!(service.stop(DEADLINE).await.success());
    service.start_again().await;
    swept(&service).await;
    let all = docker(&["image", "ls", "--quiet", "--no-trunc"]).await;
    assert!(!all.contains(older), "{}", service.log());
    assert!(
        all.contains(theirs) && all.contains(newer.trim_end()),
        "{all}"
    );
}

#[tokio::test]
async fn an_image_that_a_container_of_the_hooks_uses_goes_when_that_has_gone_and_the_checkout_before()
 {
    let base = test_image();
    let dockerfile = format!("FROM {base}\nENTRYPOINT [\"sleep\"]\n");
    let compose = "services:\n  app: { build: . }\n";
    let files = [("compose.yaml", compose), ("Dockerfile", &*dockerfile)];
    let fixture = Fixture::of(&files).await;
    let name = format!("deployed-{}", Uuid::new_v4().simple());
    let hook = format!(
        "docker compose build --quiet
        docker run --detach --init --name {name} $COMPOSE_PROJECT_NAME-app 300"
    );
    let mut service = impatient(fixture.setup(&hook)).start().await;
    let build = fixture.push(&service).await;
    let image = format!("{}-app", project(&build));
    let mut at_end = AtEnd::new();
    at_end.docker(&["rmi", &image]);
    at_end.docker(&["rm", "--force", &name]);
    let statuses = fixture.github.wait_for_end(&fixture.sha, DEADLINE).await;
    assert_eq!(last(&statuses), PASSED);
    // It cleans up before it ends.
    assert!(service.stop(DEADLINE).await.success());
    let checkout = format!("name=compose-ci-{build}");
    let checkout = ["volume", "ls", "--quiet", "--filter", &checkout];
    assert_eq!(docker(&checkout).await, "");
    assert_ne!(image_ids(&image).await, "");

    docker(&["rm", "--force", &name]).await;
    service.start_again().await;
    swept(&service).await;
    assert_eq!(image_ids(&image).await, "");
}
