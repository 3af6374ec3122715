//! What an acknowledged send is worth when the process dies or the disk fills up: a child, which
//! is this very test binary, sends and tells what was acknowledged; then its queue is opened again.

use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};

use compose_ci_shared::build::BuildId;
use compose_ci_shared::queue::{LocalQueue, Queue};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::suite::{drain, message};

/// How the child's lines begin; the test runner writes lines of its own.
const ACKNOWLEDGED: &str = "acknowledged: ";

/// Concurrent senders in the child: enough to share commits.
const SENDERS: usize = 16;

/// After so many the child gives up: it should have been killed or refused long before.
const SENDS_EACH: usize = 5_000;

#[tokio::test]
async fn what_was_acknowledged_outlives_a_kill() {
    // Some die at once, some after SQLite has moved its log into the database.
    for kill_after in [1, 50, 500, 4000] {
        let data_dir = TempDir::new().expect("a temporary directory");
        let (mut child, mut lines) = spawn_child(data_dir.path(), "exec \"$0\" \"$@\"");
        let mut acknowledged: HashSet<_> = acknowledged(&mut lines).take(kill_after).collect();
        child.kill().expect("kill");
        acknowledged.extend(self::acknowledged(&mut lines));
        child.wait().expect("the child's end");

        let stored = stored(data_dir.path()).await;
        assert!(acknowledged.len() >= kill_after);
        assert!(
            acknowledged.is_subset(&stored),
            "an acknowledged message is lost"
        );
        // Each sender has one message on its way at most.
        assert!(stored.len() <= acknowledged.len() + SENDERS);
    }
}

#[tokio::test]
async fn what_no_longer_fits_on_the_disk_is_not_acknowledged() {
    let data_dir = TempDir::new().expect("a temporary directory");
    // A file may not grow beyond some hundred kilobytes, and the signal that tells so is ignored.
    let limited = "trap '' XFSZ; ulimit -f 500; exec \"$0\" \"$@\"";
    let (mut child, mut lines) = spawn_child(data_dir.path(), limited);
    let acknowledged: HashSet<_> = acknowledged(&mut lines).collect();
    assert!(child.wait().expect("the child's end").success());

    assert!((1..SENDERS * SENDS_EACH).contains(&acknowledged.len()));
    assert_eq!(stored(data_dir.path()).await, acknowledged);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child: the tests above start it"]
async fn child_that_sends_until_it_dies_or_is_refused() {
    let mut data_dir = String::new();
    io::stdin().read_line(&mut data_dir).expect("the directory");
    let queue = open(Path::new(data_dir.trim_end())).await;
    let mut senders = JoinSet::new();
    for _ in 0..SENDERS {
        let queue = queue.clone();
        senders.spawn(async move {
            for _ in 0..SENDS_EACH {
                let message = message();
                match queue.send(&message).await {
                    Ok(()) => println!("{ACKNOWLEDGED}{}", message.request().id),
                    Err(_) => return,
                }
            }
        });
    }
    senders.join_all().await;
    queue.check().await.expect("the queue can still be read");
}

/// Starts the child by way of a shell that runs `script`, with the command as its arguments.
#[expect(
    clippy::disallowed_types,
    reason = "the child is this test binary, not the engine"
)]
fn spawn_child(data_dir: &Path, script: &str) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = std::process::Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().expect("this binary"))
        .args([
            "--exact",
            "crash::child_that_sends_until_it_dies_or_is_refused",
        ])
        .args(["--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    let mut stdin = child.stdin.take().expect("stdin");
    writeln!(stdin, "{}", data_dir.display()).expect("the child reads");
    let stdout = child.stdout.take().expect("stdout");
    (child, BufReader::new(stdout).lines())
}

/// The builds whose send was acknowledged. The last line may be cut off in the middle.
fn acknowledged(
    lines: &mut Lines<BufReader<ChildStdout>>,
) -> impl Iterator<Item = BuildId> + use<'_> {
    lines.filter_map(|line| {
        let line = line.expect("the child's output");
        let (_, id) = line.split_once(ACKNOWLEDGED)?;
        id.parse().ok()
    })
}

async fn stored(data_dir: &Path) -> HashSet<BuildId> {
    drain(&open(data_dir).await).await
}

async fn open(data_dir: &Path) -> Queue {
    Queue::Local(LocalQueue::open(data_dir).await.expect("open"))
}
