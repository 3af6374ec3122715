//! Real git repositories: made by a test, and read by the fake GitHub.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use tokio::process::ChildStdout;

/// A git repository with a working tree in a temporary directory, on branch `main`.
///
/// Every method panics when git refuses, with git's own words.
#[derive(Debug)]
pub struct TestRepo {
    dir: TempDir,
}

impl TestRepo {
    /// An empty repository.
    #[expect(clippy::new_without_default, reason = "it does I/O")]
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let repo = Self { dir };
        repo.git(&["init", "--quiet", "--initial-branch=main"]);
        repo
    }

    /// A repository with these files (path, contents) in one commit, and that commit's id.
    pub fn with_files(files: &[(&str, &str)]) -> (Self, String) {
        let repo = Self::new();
        for (path, contents) in files {
            repo.write(path, contents);
        }
        let sha = repo.commit("The first commit");
        (repo, sha)
    }

    /// A copy of the repository in `dir`, as it was last committed.
    pub fn clone_of(dir: &Path) -> Self {
        let copy = Self {
            dir: tempfile::tempdir().expect("a temporary directory can be made"),
        };
        copy.git(&["clone", "--quiet", &dir.to_string_lossy(), "."]);
        copy
    }

    /// The id of the current commit.
    pub fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"])
    }

    /// Writes a file; [`TestRepo::commit`] takes it up.
    pub fn write(&self, path: &str, contents: impl AsRef<[u8]>) -> &Self {
        let path = self.place(path);
        fs::write(&path, contents).expect("the file can be written");
        self
    }

    /// Writes a file with mode 755.
    pub fn write_executable(&self, path: &str, contents: impl AsRef<[u8]>) -> &Self {
        self.write(path, contents);
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.place(path), mode).expect("the mode can be set");
        self
    }

    /// Makes a symbolic link at `path`; the target need not exist.
    pub fn link(&self, path: &str, target: &str) -> &Self {
        symlink(target, self.place(path)).expect("the link can be made");
        self
    }

    /// Commits the whole working tree, also when nothing changed; answers the commit's id.
    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "-m", message]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// Starts a branch at the current commit and checks it out.
    pub fn branch(&self, name: &str) -> &Self {
        self.git(&["checkout", "--quiet", "-b", name]);
        self
    }

    /// Moves the current branch to another commit, as for a push by force.
    pub fn reset_to(&self, commit: &str) -> &Self {
        self.git(&["reset", "--quiet", "--hard", commit]);
        self
    }

    /// Puts a tag on the current commit.
    pub fn tag(&self, name: &str) -> &Self {
        self.git(&["tag", name]);
        self
    }

    /// Puts a tag with a message on the current commit, and answers with the id of the object that it
    /// is.
    pub fn annotate(&self, name: &str) -> String {
        self.git(&["tag", "--annotate", "--message", "A release", name]);
        self.git(&["rev-parse", name])
    }

    /// The directory of the working tree.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn place(&self, path: &str) -> PathBuf {
        let path = self.dir.path().join(path);
        let parent = path.parent().expect("a joined path has a parent");
        fs::create_dir_all(parent).expect("the directory can be made");
        path
    }

    fn git(&self, arguments: &[&str]) -> String {
        let output = git(self.dir.path()).args(arguments).output();
        let output = output.expect("git is installed");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "git {arguments:?}: {complaint}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// What the fake GitHub reads of a repository, bare or with a working tree.
#[derive(Clone, Debug)]
pub(crate) struct Repository {
    dir: PathBuf,
}

impl Repository {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The commit that a branch, tag, full or short sha names.
    pub(crate) fn resolve(&self, reference: &str) -> Option<String> {
        let commit = format!("{reference}^{{commit}}");
        self.ask(&[
            "rev-parse",
            "--verify",
            "--quiet",
            "--end-of-options",
            &commit,
        ])
    }

    /// The whole message of a commit.
    pub(crate) fn message(&self, sha: &str) -> Option<String> {
        self.ask(&["show", "--no-patch", "--format=%B", sha])
    }

    /// Whether one commit is the other's ancestor.
    pub(crate) fn is_ancestor(&self, ancestor: &str, descendant: &str) -> bool {
        let question = ["merge-base", "--is-ancestor", ancestor, descendant];
        self.ask(&question).is_some()
    }

    /// The commit as GitHub packs it: gzipped, below one top folder, with the commit's id in
    /// the pax global header.
    pub(crate) fn archive(&self, sha: &str, top_folder: &str) -> io::Result<ChildStdout> {
        let prefix = format!("--prefix={top_folder}/");
        let mut command = git(&self.dir);
        command.args(["archive", "--format=tar.gz", &prefix, sha]);
        let mut archive = tokio::process::Command::from(command)
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(archive.stdout.take().expect("stdout is piped"))
    }

    fn ask(&self, arguments: &[&str]) -> Option<String> {
        let output = git(&self.dir).args(arguments).output();
        let output = output.expect("git is installed");
        let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(answer)
    }
}

/// Git without the settings of whoever runs the tests.
fn git(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .arg("-C")
        .arg(dir)
        // The repository may belong to another user than the tests run as.
        .args(["-c", "safe.directory=*"])
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null");
    for role in ["AUTHOR", "COMMITTER"] {
        command
            .env(format!("GIT_{role}_NAME"), "Test")
            .env(format!("GIT_{role}_EMAIL"), "test@example.org");
    }
    command.stdin(Stdio::null());
    command
}
