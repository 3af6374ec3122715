//! The local queue: the suite, and what only a queue on this machine can promise.

use std::collections::HashSet;
use std::fmt::Debug;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::{Pin, pin};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use compose_ci_shared::build::BuildId;
use compose_ci_shared::message::Message;
use compose_ci_shared::queue::{LocalQueue, MAX_RECEIVES, ManualClock, Queue, QueueError};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::suite::{self, LONG, TestQueue, drain, ids, message, receive_now, receive_one};

suite::every_behaviour!(LocalTest::new().await);

/// A queue in a directory of its own, whose clock stands still.
struct LocalTest {
    queue: Queue,
    clock: ManualClock,
    data_dir: TempDir,
}

impl LocalTest {
    async fn new() -> Self {
        Self::after("").await
    }

    /// With `sql` run on the new database, to plant what the test is about.
    async fn after(sql: &str) -> Self {
        let data_dir = TempDir::new().expect("a temporary directory");
        let clock = ManualClock::new(Duration::from_secs(1_700_000_000));
        drop(open(data_dir.path(), &clock).await);
        database(data_dir.path()).execute_batch(sql).expect("sql");
        Self {
            queue: open(data_dir.path(), &clock).await,
            clock,
            data_dir,
        }
    }

    /// Closes the queue and opens it again, as a restart does.
    async fn restart(self) -> Self {
        drop(self.queue);
        Self {
            queue: open(self.data_dir.path(), &self.clock).await,
            ..self
        }
    }
}

impl TestQueue for LocalTest {
    fn queue(&self) -> &Queue {
        &self.queue
    }

    async fn receive_waits(&self) {
        answered(&self.queue).await;
    }

    async fn let_pass(&self, time: Duration) {
        self.clock.advance(time);
    }
}

#[tokio::test]
async fn the_system_clock_counts_a_wait_too() {
    let data_dir = TempDir::new().expect("a temporary directory");
    let queue = Queue::Local(LocalQueue::open(data_dir.path()).await.expect("open"));
    let wait = Duration::from_millis(50);
    let begun = Instant::now();
    assert!(queue.receive(1, wait).await.expect("receive").is_empty());
    // It counts whole milliseconds.
    let waited = begun.elapsed() + Duration::from_millis(1);
    assert!(waited >= wait, "{waited:?}");

    queue.send(&message()).await.expect("send");
    let held = receive_one(&queue).await;
    held.lease.give_back(wait).await.expect("give back");
    let woken = queue.receive(1, LONG).await.expect("receive");
    assert_eq!(woken.len(), 1);
    assert!(
        begun.elapsed() < LONG,
        "woken by the delay, not by the end of the wait"
    );
}

#[tokio::test]
async fn messages_outlive_a_restart() {
    let test = LocalTest::new().await;
    let sent = message();
    test.queue.send(&sent).await.expect("send");
    let test = test.restart().await;
    assert_eq!(receive_one(&test.queue).await.message, Ok(sent));
}

#[tokio::test]
async fn a_lease_ends_with_its_process_and_its_receive_still_counts() {
    let mut test = LocalTest::new().await;
    test.queue.send(&message()).await.expect("send");
    for receives in 1..=MAX_RECEIVES {
        assert_eq!(receive_one(&test.queue).await.receives, receives);
        test = test.restart().await;
    }
    assert!(receive_now(&test.queue, 1).await.is_empty());
    let dead = test.queue.receive_dead_letters(1, Duration::ZERO).await;
    assert_eq!(dead.expect("receive dead letters").len(), 1);
}

#[tokio::test]
async fn a_delay_outlives_a_restart() {
    let test = LocalTest::new().await;
    test.queue.send(&message()).await.expect("send");
    let held = receive_one(&test.queue).await;
    held.lease.give_back(LONG).await.expect("give back");
    let test = test.restart().await;
    assert!(receive_now(&test.queue, 1).await.is_empty());
    test.let_pass(LONG).await;
    assert_eq!(receive_one(&test.queue).await.receives, 2);
}

#[tokio::test]
async fn a_receive_that_is_dropped_while_it_waits_takes_no_message() {
    let test = LocalTest::new().await;
    {
        let receive = pin!(test.queue.receive(1, LONG));
        assert_waits(receive);
        answered(&test.queue).await;
    }
    test.queue.send(&message()).await.expect("send");
    assert_eq!(receive_one(&test.queue).await.receives, 1);
}

#[tokio::test]
async fn a_receive_that_is_dropped_with_its_answer_gives_the_messages_back() {
    let test = LocalTest::new().await;
    let sent = [message(), message()];
    {
        let receive = pin!(test.queue.receive(2, LONG));
        assert_waits(receive);
        for message in &sent {
            test.queue.send(message).await.expect("send");
        }
        answered(&test.queue).await;
    }
    let received = receive_now(&test.queue, 2).await;
    assert_eq!(ids(&received), sent.map(|message| message.request().id));
    assert!(
        received.iter().all(|delivery| delivery.receives == 1),
        "{received:?}"
    );
}

#[tokio::test]
async fn a_message_that_comes_back_wakes_who_waits() {
    let test = LocalTest::new().await;
    let mut first = Box::pin(test.queue.receive(1, LONG));
    assert_waits(first.as_mut());
    let (received, ()) = tokio::join!(biased; test.queue.receive(1, LONG), async {
        test.queue.send(&message()).await.expect("send");
        answered(&test.queue).await;
        drop(first);
    });
    let received = received.expect("receive");
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].receives, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_message_is_lost_or_counted_when_receives_are_dropped_at_any_moment() {
    let test = LocalTest::new().await;
    for _ in 0..300 {
        let sent = message();
        let kept = tokio::select! {
            received = test.queue.receive(1, LONG) => received.expect("receive"),
            sent = test.queue.send(&sent) => {
                sent.expect("send");
                receive_now(&test.queue, 1).await
            }
        };
        // A send that was dropped is made all the same.
        assert_eq!(ids(&kept), [sent.request().id]);
        for delivery in kept {
            assert_eq!(delivery.receives, 1);
            delivery.lease.settle().await.expect("settle");
        }
    }
}

#[tokio::test]
async fn a_second_process_cannot_open_the_queue() {
    let test = LocalTest::new().await;
    let second = LocalQueue::open(test.data_dir.path()).await;
    let path = test.data_dir.path().display().to_string();
    assert!(
        matches!(second, Err(QueueError::InUse(ref used)) if *used == path),
        "{second:?}"
    );
}

#[tokio::test]
async fn a_missing_directory_is_made_for_the_owner_alone() {
    let parent = TempDir::new().expect("a temporary directory");
    let data_dir = parent.path().join("var/lib/compose-ci");
    LocalQueue::open(&data_dir).await.expect("open");
    assert_eq!(mode(&data_dir), 0o700);
    assert_ne!(mode(&parent.path().join("var")), 0o700);
}

#[tokio::test]
async fn a_directory_that_exists_keeps_its_mode() {
    let data_dir = TempDir::new().expect("a temporary directory");
    fs::set_permissions(data_dir.path(), Permissions::from_mode(0o750)).expect("chmod");
    LocalQueue::open(data_dir.path()).await.expect("open");
    assert_eq!(mode(data_dir.path()), 0o750);
}

#[tokio::test]
async fn what_cannot_be_opened_is_told_in_one_line() {
    let data_dir = TempDir::new().expect("a temporary directory");
    let file = data_dir.path().join("file");
    fs::write(&file, "no directory").expect("write");
    assert_unreachable(LocalQueue::open(&file).await);
    fs::write(
        data_dir.path().join("queue.db"),
        "no database\n".repeat(999),
    )
    .expect("write");
    let damaged = LocalQueue::open(data_dir.path())
        .await
        .expect_err("damaged");
    let QueueError::Config(damaged) = damaged else {
        panic!("{damaged:?}")
    };
    assert_eq!(damaged.variable, "DATA_DIR");
    assert!(damaged.problem.contains("queue.db is damaged"), "{damaged}");
    assert_eq!(damaged.problem.lines().count(), 1);
}

#[tokio::test]
async fn a_queue_of_a_newer_version_is_left_alone() {
    let LocalTest {
        queue, data_dir, ..
    } = LocalTest::new().await;
    drop(queue);
    let newer = "PRAGMA user_version = 3";
    database(data_dir.path()).execute_batch(newer).expect("sql");
    assert_unreachable(LocalQueue::open(data_dir.path()).await);
}

#[tokio::test]
async fn a_queue_of_the_first_version_keeps_its_messages() {
    let test = LocalTest::new().await;
    let sent = message();
    test.queue.send(&sent).await.expect("send");
    let LocalTest {
        queue,
        clock,
        data_dir,
    } = test;
    drop(queue);
    let first = "DROP TABLE identity; PRAGMA user_version = 1";
    database(data_dir.path()).execute_batch(first).expect("sql");
    let queue = open(data_dir.path(), &clock).await;
    assert_eq!(receive_one(&queue).await.message, Ok(sent));
    let standing = queue.standing().expect("it is local").borrow().clone();
    assert_eq!((standing.accepted, standing.waiting), (1, 1));
    assert_eq!(standing.id.len(), 32);
}

#[tokio::test]
async fn a_queue_knows_how_far_it_has_come() {
    let test = LocalTest::new().await;
    let sent = [message(), message()];
    for message in sent.iter().chain(&sent) {
        test.queue.send(message).await.expect("send");
    }
    receive_one(&test.queue)
        .await
        .lease
        .settle()
        .await
        .expect("settle");
    let before = test.queue.standing().expect("it is local").borrow().clone();
    assert_eq!((before.accepted, before.waiting), (2, 1));
    let test = test.restart().await;
    let after = test.queue.standing().expect("it is local").borrow().clone();
    assert_eq!(after.loss_since(&before), None);
    assert_eq!(after.waiting, 1);
}

#[tokio::test]
async fn a_message_that_cannot_be_read_is_delivered_as_such() {
    let test =
        LocalTest::after("INSERT INTO message (build, body) VALUES ('a build', 'of another age')");
    let test = test.await;
    let delivery = receive_one(&test.queue).await;
    assert!(delivery.message.is_err(), "{delivery:?}");
    delivery.lease.settle().await.expect("settle");
}

#[tokio::test]
async fn a_broken_database_is_told_at_once() {
    let test = LocalTest::new().await;
    database(test.data_dir.path())
        .execute_batch("DROP TABLE message")
        .expect("sql");
    let begun = Instant::now();
    assert_unreachable(test.queue.check().await);
    assert_unreachable(test.queue.receive(1, LONG).await);
    assert!(begun.elapsed() < LONG, "told at once, not after the wait");
}

/// Breaks the commit of every group in which a message of the repository `octo/poison` is sent:
/// SQLite looks at a deferred reference only then.
const POISON: &str = "
    CREATE TABLE void (id INTEGER PRIMARY KEY) STRICT;
    CREATE TABLE poison (id INTEGER REFERENCES void DEFERRABLE INITIALLY DEFERRED) STRICT;
    CREATE TRIGGER poison AFTER INSERT ON message WHEN new.body LIKE '%octo/poison%'
    BEGIN INSERT INTO poison VALUES (1); END;
";

/// Fails a statement as a full disk does, and takes the transaction with it.
const FULL: &str = "
    CREATE TRIGGER full BEFORE INSERT ON message WHEN (SELECT count(*) FROM message) >= 100
    BEGIN SELECT RAISE(ROLLBACK, 'database or disk is full'); END;
";

#[tokio::test]
async fn a_commit_that_fails_is_no_success_for_anybody_in_it() {
    let test = LocalTest::after(POISON).await;
    let poison = poison();
    let poisoned = poison.request().id;
    let mut messages: Vec<_> = (0..200).map(|_| message()).collect();
    messages.insert(100, poison);

    let acknowledged = send_at_once(&test.queue, messages).await;
    assert!(!acknowledged.contains(&poisoned));
    assert_eq!(drain(&test.queue).await, acknowledged);

    let after = send_at_once(&test.queue, vec![message()]).await;
    assert_eq!(drain(&test.queue).await, after);
    assert_eq!(after.len(), 1, "the queue lives on");
}

#[tokio::test]
async fn a_full_disk_refuses_messages_until_there_is_room() {
    let test = LocalTest::after(FULL).await;
    let acknowledged = send_at_once(&test.queue, (0..300).map(|_| message()).collect()).await;
    assert!(acknowledged.len() <= 100, "{}", acknowledged.len());
    assert_eq!(drain(&test.queue).await, acknowledged);

    let after = send_at_once(&test.queue, vec![message()]).await;
    assert_eq!(after.len(), 1, "there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn sends_that_share_a_commit_are_each_stored_once() {
    let test = LocalTest::new().await;
    let messages: Vec<_> = (0..3000).map(|_| message()).collect();
    let sent = send_at_once(&test.queue, [messages.clone(), messages.clone()].concat()).await;
    assert_eq!(sent.len(), messages.len());
    let test = test.restart().await;
    assert_eq!(drain(&test.queue).await, sent);
}

/// Sends all messages concurrently, and returns the builds whose send was a success.
async fn send_at_once(queue: &Queue, messages: Vec<Message>) -> HashSet<BuildId> {
    let mut sends = JoinSet::new();
    for message in messages {
        let queue = queue.clone();
        sends.spawn(async move {
            match queue.send(&message).await {
                Ok(()) => Some(message.request().id),
                Err(error) => {
                    assert_unreachable(Err::<(), _>(error));
                    None
                }
            }
        });
    }
    sends.join_all().await.into_iter().flatten().collect()
}

fn poison() -> Message {
    let mut request = message().into_request();
    request.repo = "octo/poison".parse().expect("repo");
    Message::V2(request)
}

/// Returns once the queue has seen all that was asked of it before.
async fn answered(queue: &Queue) {
    queue.check().await.expect("check");
}

/// Lets `receive` ask the queue; it has to wait for its answer.
fn assert_waits<T>(receive: Pin<&mut impl Future<Output = T>>) {
    let poll = receive.poll(&mut Context::from_waker(Waker::noop()));
    assert!(poll.is_pending());
}

fn assert_unreachable<T: Debug>(result: Result<T, QueueError>) {
    match result {
        Err(QueueError::Unreachable(reason)) => assert_eq!(reason.lines().count(), 1, "{reason}"),
        other => panic!("not unreachable: {other:?}"),
    }
}

async fn open(data_dir: &Path, clock: &ManualClock) -> Queue {
    let queue = LocalQueue::open_with_clock(data_dir, clock.clock()).await;
    Queue::Local(queue.expect("open"))
}

/// A second look at the database, past the queue.
fn database(data_dir: &Path) -> Connection {
    Connection::open(data_dir.join("queue.db")).expect("the database")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("metadata").permissions().mode() & 0o777
}
