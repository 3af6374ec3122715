//! Disks that fill up, and what is removed so that they do not.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{OneBox, Setup, Status};
use tempfile::TempDir;

use crate::fixture::{DEADLINE, Fixture, GATE, at_gate, open_gate, told};

const MIB: u64 = 1 << 20;

/// What a [`SmallDisk`] must have left for a build.
const FREE_MIN: &str = "16MiB";

/// A file system of 64 MiB and 2048 inodes.
struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    fn mount() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = Self { directory };
        let image = disk.directory.path().join("image");
        let file = File::create(&image).expect("created");
        file.set_len(64 * MIB).expect("sparse");
        let make = ["-q", "-F", "-m", "0", "-N", "2048"];
        run(Command::new("mkfs.ext4").args(make).arg(&image));
        fs::create_dir(disk.path()).expect("made");
        run(Command::new("mount")
            .args(["-o", "loop"])
            .args([image, disk.path()]));
        disk
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    /// The service with its data on this disk.
    fn used_by(&self, setup: Setup) -> Setup {
        setup
            .env("DATA_DIR", self.path().display().to_string())
            .env("DISK_FREE_MIN", FREE_MIN)
    }

    fn log(&self, build: &str) -> String {
        fs::read_to_string(log_path(&self.path(), build)).unwrap_or_default()
    }

    /// Fills the disk until this much is left.
    fn fill_up_to(&self, free_bytes: u64) {
        let output = Command::new("df")
            .args(["--output=avail", "--block-size=1"])
            .arg(self.path())
            .output();
        let output = String::from_utf8(output.expect("df runs").stdout).expect("text");
        let available = output
            .lines()
            .nth(1)
            .and_then(|line| line.trim().parse().ok());
        let available: u64 = available.expect("a number");
        let length = available.saturating_sub(free_bytes).to_string();
        run(Command::new("fallocate")
            .args(["--length", &length])
            .arg(self.ballast()));
    }

    /// Fills the disk to the last byte.
    fn fill(&self) {
        self.fill_up_to(MIB);
        let ballast = File::options().append(true).open(self.ballast());
        let mut ballast = ballast.expect("opened");
        while ballast.write_all(&[0; 4096]).is_ok() {}
    }

    /// Takes away what [`SmallDisk::fill_up_to`] put there.
    fn free(&self) {
        fs::remove_file(self.ballast()).expect("removed");
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    /// Lazily: the service may still be there when a test fails.
    fn drop(&mut self) {
        let unmounted = Command::new("umount")
            .arg("--lazy")
            .arg(self.path())
            .status();
        let unmounted = unmounted.is_ok_and(|status| status.success());
        assert!(unmounted || std::thread::panicking(), "not unmounted");
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("it is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
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

const PASSED: &str = "Success: passed in …";

#[tokio::test]
async fn a_build_that_finds_too_little_room_is_not_begun() {
    let mut fixture = Fixture::plain().await;
    let disk = SmallDisk::mount();
    let service = disk.used_by(fixture.setup("echo ran")).start().await;
    disk.fill_up_to(10 * MIB);
    let (build, told) = end_of(&fixture, &service).await;
    let lack = "MiB left under DATA_DIR, less than 16.0 MiB; free some or lower DISK_FREE_MIN)";
    assert!(told.starts_with("Error: error: disk full ("), "{told}");
    assert!(told.ends_with(lack), "{told}");
    assert_eq!(disk.log(&build), "");

    disk.free();
    fixture.commit("another", "");
    let (build, told) = end_of(&fixture, &service).await;
    assert_eq!(told, PASSED);
    assert_eq!(disk.log(&build), "ran\n");
}

#[tokio::test]
async fn a_build_is_stopped_when_the_room_gets_scarce() {
    let mut fixture = Fixture::plain().await;
    let disk = SmallDisk::mount();
    let service = disk.used_by(fixture.setup(GATE)).start().await;
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
    let mut fixture = Fixture::of(&[("build", "exec yes")]).await;
    let disk = SmallDisk::mount();
    // Faster than anybody can watch.
    let setup = fixture.setup("sh ./build").env("LOG_LIMIT", "1GiB");
    let service = disk.used_by(setup).start().await;
    let (full, told) = end_of(&fixture, &service).await;
    assert!(told.starts_with("Error: error: disk full ("), "{told}");
    let page = service.get(&format!("/builds/{full}")).await.body;
    assert!(page.contains("y\ny\ny\n"));

    fixture.commit("build", "echo small");
    let (next, told) = end_of(&fixture, &service).await;
    assert_eq!(told, PASSED);
    assert_eq!(disk.log(&next), "small\n");
    assert!(!log_path(&disk.path(), &full).exists());
    let page = service.get(&format!("/builds/{full}")).await.body;
    assert!(page.contains("the log was removed"), "{page}");
}

#[tokio::test]
async fn too_few_inodes_are_a_full_disk_as_well() {
    let mut fixture = Fixture::plain().await;
    let disk = SmallDisk::mount();
    let service = disk.used_by(fixture.setup("true")).start().await;
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
    let setup = disk.used_by(fixture.setup("sh ./build"));
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
async fn a_service_starts_on_a_full_disk() {
    let mut fixture = Fixture::plain().await;
    let disk = SmallDisk::mount();
    let mut service = disk.used_by(fixture.setup("true")).start().await;
    assert_eq!(end_of(&fixture, &service).await.1, PASSED);
    assert!(service.stop(DEADLINE).await.success());
    disk.fill();
    service.start_again().await;
    fixture.commit("another", "");
    let (_, told) = end_of(&fixture, &service).await;
    assert!(told.starts_with("Error: error: disk full ("), "{told}");
}
