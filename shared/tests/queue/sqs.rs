//! The queue at SQS: the suite on both kinds of queue, and what only SQS brings with it.

use std::time::{Duration, Instant};

use aws_config::SdkConfig;
use aws_sdk_sqs::Client;
use compose_ci_shared::build::{BuildId, Revision};
use compose_ci_shared::config::SqsConfig;
use compose_ci_shared::message::Message;
use compose_ci_shared::net::aws::samples;
use compose_ci_shared::queue::{MAX_RECEIVES, Queue, QueueError, SqsQueue};
use harness::{Aws, REGION};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, sink};
use tokio::net::TcpListener;
use tokio::sync::OnceCell;

use crate::suite::{LONG, TestQueue, ids, message, receive_now, receive_one};

/// One for all tests; it ends with this process.
static AWS: OnceCell<Aws> = OnceCell::const_new();

mod standard {
    use super::SqsTest;
    use crate::suite;

    suite::every_behaviour_but_one_message_per_build!(SqsTest::standard().await);
}

mod fifo {
    use super::SqsTest;
    use crate::suite;

    suite::every_behaviour!(SqsTest::fifo().await);
}

/// A queue of its own in the emulator, with a dead-letter queue. Its clock stands still.
struct SqsTest {
    queue: Queue,
    aws: &'static Aws,
    family: String,
    client: Client,
    config: SqsConfig,
    dead_letters_url: String,
}

impl SqsTest {
    async fn standard() -> Self {
        Self::stopped("").await
    }

    async fn fifo() -> Self {
        Self::stopped(".fifo").await
    }

    async fn stopped(suffix: &str) -> Self {
        let test = Self::in_real_time(suffix).await;
        test.let_pass(Duration::ZERO).await;
        test
    }

    async fn in_real_time(suffix: &str) -> Self {
        let aws = AWS.get_or_init(Aws::start).await;
        let sdk = sdk_config(&aws.endpoint_url()).await;
        let client = Client::new(&sdk);
        let family = BuildId::random().to_string().replace('-', "");
        let queues = aws.create_queues(&family, suffix).await;
        let config = at(&queues.url);
        Self {
            queue: open(&config, &sdk),
            aws,
            family,
            client,
            config,
            dead_letters_url: queues.dead_letters_url,
        }
    }
}

impl TestQueue for SqsTest {
    fn queue(&self) -> &Queue {
        &self.queue
    }

    async fn receive_waits(&self) {
        self.aws.receive_waits(&self.family).await;
    }

    async fn let_pass(&self, time: Duration) {
        self.aws.advance_clock(&self.family, time).await;
    }
}

#[tokio::test]
async fn a_standard_queue_lets_a_build_in_twice() {
    let test = SqsTest::standard().await;
    let sent = message();
    for _ in 0..2 {
        test.queue.send(&sent).await.expect("send");
    }
    let id = sent.request().id;
    assert_eq!(ids(&receive_now(&test.queue, 10).await), [id, id]);
}

#[tokio::test]
async fn a_fifo_queue_remembers_a_settled_build_for_five_minutes() {
    let test = SqsTest::fifo().await;
    let sent = message();
    test.queue.send(&sent).await.expect("send");
    let held = receive_one(&test.queue).await;
    held.lease.settle().await.expect("settle");
    test.let_pass(Duration::from_secs(299)).await;
    test.queue.send(&sent).await.expect("send");
    assert!(receive_now(&test.queue, 1).await.is_empty());
}

#[tokio::test]
async fn on_a_fifo_queue_a_branch_waits_for_its_earlier_build_and_others_do_not() {
    let test = SqsTest::fifo().await;
    let first = message();
    let mut of_the_same_branch = first.clone().into_request();
    of_the_same_branch.id = BuildId::random();
    of_the_same_branch.repo = "Octo/Hello".parse().expect("repo");
    let second = Message::V2(of_the_same_branch);
    let other = message();
    test.queue.send(&first).await.expect("send");
    let held = receive_one(&test.queue).await;
    for message in [&second, &other] {
        test.queue.send(message).await.expect("send");
    }
    let received = receive_now(&test.queue, 10).await;
    assert_eq!(ids(&received), [other.request().id]);
    held.lease.settle().await.expect("settle");
    let received = receive_now(&test.queue, 10).await;
    assert_eq!(ids(&received), [second.request().id]);
}

#[tokio::test]
async fn a_message_tells_operators_its_repository_branch_and_version() {
    let test = SqsTest::standard().await;
    let mut request = message().into_request();
    request.git_ref = Some("refs/heads/main".parse().expect("ref"));
    test.queue.send(&Message::V2(request)).await.expect("send");
    let received = test
        .client
        .receive_message()
        .queue_url(test.config.url.as_str())
        .message_attribute_names("All")
        .send();
    let received = received.await.expect("receive");
    let attributes = received.messages()[0].message_attributes();
    let attributes = attributes.expect("message attributes");
    for (name, value) in [("repo", "octo/hello"), ("ref", "main"), ("version", "2")] {
        assert_eq!(attributes[name].string_value(), Some(value), "{name}");
    }
}

#[tokio::test]
async fn a_name_of_any_characters_and_length_that_git_takes_arrives() {
    for test in [SqsTest::standard().await, SqsTest::fifo().await] {
        for name in ["a\u{fffe}\u{ffff}b", "ä&<\u{1f600}", &"\u{ffff}".repeat(85)] {
            let mut request = message().into_request();
            request.revision = Revision::Name(name.parse().expect("a name"));
            request.git_ref = None;
            let sent = Message::V2(request);
            test.queue.send(&sent).await.expect("send");
            assert_eq!(receive_one(&test.queue).await.message, Ok(sent));
        }
    }
}

#[tokio::test]
async fn more_than_ten_messages_need_not_be_asked_for_twice() {
    let test = SqsTest::standard().await;
    for _ in 0..11 {
        test.queue.send(&message()).await.expect("send");
    }
    assert_eq!(receive_now(&test.queue, 256).await.len(), 10);
    assert_eq!(receive_now(&test.queue, 256).await.len(), 1);
}

#[tokio::test]
async fn a_message_can_be_given_back_for_the_longest_time() {
    // In real time: the limit counts from the receive, which is some milliseconds ago.
    let test = SqsTest::in_real_time("").await;
    test.queue.send(&message()).await.expect("send");
    let held = receive_one(&test.queue).await;
    let longest = Duration::from_secs(12 * 60 * 60);
    held.lease.extend(longest).await.expect("extend");
    held.lease.give_back(longest).await.expect("give back");
}

#[tokio::test]
async fn a_dead_letter_that_cannot_be_read_can_be_put_off() {
    let test = SqsTest::standard().await;
    let planted = test
        .client
        .send_message()
        .queue_url(&test.dead_letters_url)
        .message_body("of another age")
        .send();
    planted.await.expect("send");
    let dead = test.queue.receive_dead_letters(10, Duration::ZERO).await;
    let letter = dead.expect("receive").remove(0);
    assert!(letter.message.is_err(), "{letter:?}");
    letter.lease.give_back(LONG).await.expect("give back");
    test.let_pass(LONG).await;
    let dead = test.queue.receive_dead_letters(10, Duration::ZERO).await;
    assert_eq!(dead.expect("receive").len(), 1);
}

#[tokio::test]
async fn dead_letters_are_read_from_where_dlq_url_says() {
    let test = SqsTest::standard().await;
    let sdk = sdk_config(&test.aws.endpoint_url()).await;
    // This one has no redrive policy that could lead there.
    let config = SqsConfig {
        dead_letters_url: Some(test.config.url.clone()),
        ..at(&test.dead_letters_url)
    };
    let sent = message();
    test.queue.send(&sent).await.expect("send");
    let queue = open(&config, &sdk);
    let dead = queue.receive_dead_letters(1, Duration::ZERO).await;
    assert_eq!(ids(&dead.expect("receive")), [sent.request().id]);
}

#[tokio::test]
async fn a_queue_without_dead_letters_has_none() {
    let test = SqsTest::standard().await;
    let sdk = sdk_config(&test.aws.endpoint_url()).await;
    let wait = Duration::from_millis(50);
    let begun = Instant::now();
    let queue = open(&at(&test.dead_letters_url), &sdk);
    let dead = queue.receive_dead_letters(1, wait).await;
    assert!(dead.expect("receive").is_empty());
    assert!(begun.elapsed() >= wait, "it waits all the same");
}

#[tokio::test]
async fn a_build_that_nobody_finishes_ends_among_the_dead_letters_of_a_fifo_queue_too() {
    let test = SqsTest::fifo().await;
    let sent = message();
    test.queue.send(&sent).await.expect("send");
    for _ in 0..MAX_RECEIVES {
        let held = receive_one(&test.queue).await;
        held.lease
            .give_back(Duration::ZERO)
            .await
            .expect("give back");
    }
    assert!(receive_now(&test.queue, 1).await.is_empty());
    let dead = test.queue.receive_dead_letters(1, Duration::ZERO).await;
    assert_eq!(ids(&dead.expect("receive")), [sent.request().id]);
}

#[tokio::test]
async fn a_queue_that_is_not_there_is_told_by_its_url() {
    let test = SqsTest::standard().await;
    let url = test.config.url.sibling("nowhere");
    let queue = open(
        &at(url.as_str()),
        &sdk_config(&test.aws.endpoint_url()).await,
    );
    let line = format!("there is no queue {url}: check its URL, region and account");
    for error in every_error(&queue).await {
        assert!(matches!(error, QueueError::Missing(_)), "{error:?}");
        assert_eq!(error.to_string(), line);
    }
}

#[tokio::test]
async fn a_denied_request_is_told_with_the_permission_that_it_needs() {
    let queue = answering(403, "AccessDenied", "not authorized to\nperform this").await;
    let error = queue.send(&message()).await.expect_err("denied");
    assert_eq!(
        error.to_string(),
        "the queue https://sqs.eu-west-1.amazonaws.com/1/builds denies sqs:SendMessage: check the \
         credentials and their policy (AccessDenied: not authorized to perform this)"
    );
    queue
        .check()
        .await
        .expect("it answers who may do something else");
}

#[tokio::test]
async fn a_wrong_key_is_told_by_a_check() {
    let queue = answering(403, "InvalidClientTokenId", "the token is invalid").await;
    for error in every_error(&queue).await {
        assert!(matches!(error, QueueError::Denied { .. }), "{error:?}");
    }
    let error = queue.check().await.expect_err("a wrong key");
    assert!(matches!(error, QueueError::Denied { .. }), "{error:?}");
}

#[tokio::test]
async fn missing_credentials_are_told_as_such() {
    let sdk = samples::without_credentials(sdk_config("http://127.0.0.1:9").await);
    let error = open(&at_aws(), &sdk).send(&message()).await;
    let error = error.expect_err("no credentials");
    assert!(matches!(error, QueueError::Denied { .. }), "{error:?}");
    assert_eq!(error.to_string().lines().count(), 1, "{error}");
}

#[tokio::test]
async fn a_throttled_request_is_told_as_such() {
    let queue = answering(400, "RequestThrottled", "slow down").await;
    for error in every_error(&queue).await {
        assert!(matches!(error, QueueError::Throttled(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_request_that_is_refused_is_told_with_the_reason() {
    let queue = answering(400, "InvalidMessageContents", "no such characters").await;
    let error = queue.send(&message()).await.expect_err("refused");
    assert!(matches!(error, QueueError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("no such characters"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_in_one_line() {
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = closed.local_addr().expect("an address");
    drop(closed);
    let queue = open(&at_aws(), &sdk_config(&format!("http://{address}")).await);
    let error = queue.send(&message()).await.expect_err("nobody is there");
    let line = error.to_string();
    assert!(matches!(error, QueueError::Unreachable(_)), "{error:?}");
    assert!(
        line.contains("/1/builds") && line.contains("Connection refused"),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1, "{line}");
}

/// The webhook gives a sender its 503 after 5 s, and a receive must end at some time.
#[tokio::test]
async fn a_server_that_is_silent_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = silent.local_addr().expect("an address");
    let queue = open(&at_aws(), &sdk_config(&format!("http://{address}")).await);
    let sent = message();
    let begun = Instant::now();
    let (send, receive) = tokio::join!(
        async { (queue.send(&sent).await, begun.elapsed()) },
        async { (queue.receive(1, Duration::ZERO).await, begun.elapsed()) },
    );
    assert!(
        matches!(send.0, Err(QueueError::Unreachable(_))),
        "{send:?}"
    );
    assert!(send.1 < Duration::from_secs(5), "{send:?}");
    assert!(
        matches!(receive.0, Err(QueueError::Unreachable(_))),
        "{receive:?}"
    );
    assert!(receive.1 < Duration::from_secs(10), "{receive:?}");
}

#[tokio::test]
async fn a_region_that_nobody_names_is_told() {
    let sdk = sdk_config("http://127.0.0.1:9").await;
    let nowhere = sdk.into_builder().region(None).build();
    let error = SqsQueue::with_sdk_config(&at_aws(), &nowhere).expect_err("no region");
    assert_eq!(
        error.to_string(),
        "AWS_REGION: missing (QUEUE_URL does not name the region)"
    );
}

/// What a send, a receive of messages and one of dead letters fail with.
async fn every_error(queue: &Queue) -> [QueueError; 3] {
    let sent = message();
    let (send, receive, dead) = tokio::join!(
        queue.send(&sent),
        queue.receive(1, Duration::ZERO),
        queue.receive_dead_letters(1, Duration::ZERO),
    );
    [
        send.expect_err("send"),
        receive.expect_err("receive"),
        dead.expect_err("receive dead letters"),
    ]
}

/// A queue whose server answers every request with this error.
async fn answering(status: u16, code: &str, problem: &str) -> Queue {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("an address");
    let body =
        serde_json::json!({ "__type": format!("com.amazonaws.sqs#{code}"), "message": problem });
    let body = body.to_string();
    let answer = format!(
        "HTTP/1.1 {status} No\r\ncontent-type: application/x-amz-json-1.0\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                connection.read_u8().await?;
                connection.write_all(answer.as_bytes()).await?;
                // The rest of the request, or closing would reset the connection.
                copy(&mut connection, &mut sink()).await
            });
        }
    });
    open(&at_aws(), &sdk_config(&format!("http://{address}")).await)
}

fn at_aws() -> SqsConfig {
    at(&format!("https://sqs.{REGION}.amazonaws.com/1/builds"))
}

fn at(url: &str) -> SqsConfig {
    SqsConfig {
        url: url.parse().expect("a queue's URL"),
        dead_letters_url: None,
        ca_bundle: None,
    }
}

fn open(config: &SqsConfig, sdk: &SdkConfig) -> Queue {
    Queue::Sqs(SqsQueue::with_sdk_config(config, sdk).expect("open"))
}

async fn sdk_config(endpoint_url: &str) -> SdkConfig {
    samples::sdk_config(REGION, endpoint_url).await
}
