//! A disk that a test can fill without harm: a file system in a file.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

const SIZE_BYTES: u64 = 64 << 20;

/// A mounted file system (ext4) of 64 MiB and 2048 inodes. Mounting needs root.
#[derive(Debug)]
pub struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    /// Makes and mounts one that is empty.
    ///
    /// # Panics
    /// When this process may not mount.
    pub fn mount() -> Self {
        let disk = Self::not_mounted();
        let file = File::create(disk.image()).expect("it is our directory");
        file.set_len(SIZE_BYTES)
            .expect("a sparse file takes no room");
        let made = ["-q", "-F", "-m", "0", "-N", "2048"];
        run(Command::new("mkfs.ext4").args(made).arg(disk.image()));
        disk.mounted()
    }

    /// What would be found on it if the power went off now. What a program wrote and nobody has
    /// asked to reach the disk is in the kernel's memory, not in the file that stands for the disk.
    ///
    /// # Panics
    /// When that is no file system any more.
    pub fn after_power_cut(&self) -> Self {
        let copy = Self::not_mounted();
        let images = [self.image(), copy.image()];
        run(Command::new("cp").arg("--sparse=always").args(images));
        copy.mounted()
    }

    fn not_mounted() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let disk = Self { directory };
        fs::create_dir(disk.path()).expect("it is our directory");
        disk
    }

    fn mounted(self) -> Self {
        let mounted = [self.image(), self.path()];
        run(Command::new("mount").args(["-o", "loop"]).args(mounted));
        self
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    /// Fills it until this many bytes are left.
    ///
    /// # Panics
    /// When less is left already.
    pub fn fill_up_to(&self, free_bytes: u64) {
        let available = self.available_bytes();
        let length = available.checked_sub(free_bytes).expect("there is more");
        let mut fill = Command::new("fallocate");
        run(fill
            .args(["--length", &length.to_string()])
            .arg(self.ballast()));
    }

    /// Fills it to the last byte.
    pub fn fill(&self) {
        self.fill_up_to(1 << 20);
        let ballast = File::options().append(true).open(self.ballast());
        let mut ballast = ballast.expect("it was just made");
        while ballast.write_all(&[0; 4096]).is_ok() {}
    }

    /// Takes away what filled it.
    ///
    /// # Panics
    /// When nothing did.
    pub fn free(&self) {
        fs::remove_file(self.ballast()).expect("it was filled");
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    fn available_bytes(&self) -> u64 {
        let mut df = Command::new("df");
        let told = run(df
            .args(["--output=avail", "--block-size=1"])
            .arg(self.path()));
        let number = told
            .lines()
            .nth(1)
            .and_then(|line| line.trim().parse().ok());
        number.expect("df prints a heading and a number")
    }
}

impl Drop for SmallDisk {
    /// Lazily: when a test fails, the service may still be there.
    fn drop(&mut self) {
        let mut unmount = Command::new("umount");
        let unmounted = unmount.arg("--lazy").arg(self.path()).status();
        let unmounted = unmounted.is_ok_and(|status| status.success());
        assert!(unmounted || std::thread::panicking(), "it stays mounted");
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("it is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
