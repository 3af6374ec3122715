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
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let disk = Self { directory };
        fs::create_dir(disk.path()).expect("it is our directory");
        let file = File::create(disk.image()).expect("it is our directory");
        file.set_len(SIZE_BYTES)
            .expect("a sparse file takes no room");
        let made = ["-q", "-F", "-m", "0", "-N", "2048"];
        run(Command::new("mkfs.ext4").args(made).arg(disk.image()));
        disk.mount_image();
        disk
    }

    /// Cuts its power: what a program wrote and nobody has asked to reach the disk was in the kernel's
    /// memory, not in the file that stands for the disk, and is gone.
    ///
    /// # Panics
    /// When somebody still has a file open on it, or it is no file system any more.
    pub fn lose_power(&self) {
        let left = self.directory.path().join("left");
        let copied = [&self.image(), &left];
        run(Command::new("cp").arg("--sparse=always").args(copied));
        run(Command::new("umount").arg(self.path()));
        fs::rename(left, self.image()).expect("both are in our directory");
        self.mount_image();
    }

    fn mount_image(&self) {
        let mounted = [self.image(), self.path()];
        run(Command::new("mount").args(["-o", "loop"]).args(mounted));
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

    /// Fills it with empty files, until no more can be made: its bytes are left.
    ///
    /// # Panics
    /// When that was done already.
    pub fn fill_with_files(&self) {
        let directory = self.many_files();
        fs::create_dir(&directory).expect("it has inodes");
        (0u32..)
            .map(|number| File::create(directory.join(number.to_string())))
            .take_while(Result::is_ok)
            .for_each(drop);
    }

    /// Takes away what filled it.
    ///
    /// # Panics
    /// When nothing did.
    pub fn free(&self) {
        let file = fs::remove_file(self.ballast());
        let files = fs::remove_dir_all(self.many_files());
        assert!(file.is_ok() || files.is_ok(), "it was not filled");
    }

    fn many_files(&self) -> PathBuf {
        self.path().join("many-files")
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
