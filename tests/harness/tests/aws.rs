//! The emulator refuses what SQS refuses, by its API reference.

use std::time::Duration;

use compose_ci_harness::Aws;
use serde_json::{Value, json};

/// A queue with one message, whose clock stands still.
struct Held {
    aws: Aws,
    queue: String,
}

impl Held {
    async fn of(suffix: &str) -> Self {
        let held = Self::empty(suffix).await;
        held.send("a message", "1").await.expect("sent");
        held
    }

    async fn empty(suffix: &str) -> Self {
        let aws = Aws::start().await;
        aws.advance_clock("strict", Duration::ZERO).await;
        let queue = aws.create_queues("strict", suffix).await.url;
        Self { aws, queue }
    }

    async fn send(&self, body: &str, id: &str) -> Result<Value, String> {
        let mut message = json!({ "QueueUrl": self.queue, "MessageBody": body });
        if self.is_fifo() {
            message["MessageGroupId"] = json!("group");
            message["MessageDeduplicationId"] = json!(id);
        }
        self.aws.try_sqs("SendMessage", message).await
    }

    /// The handle of one receive, which hides the message for a minute.
    async fn receive(&self) -> String {
        let asked = json!({ "QueueUrl": self.queue, "VisibilityTimeout": 60 });
        let answer = self.aws.sqs("ReceiveMessage", asked).await;
        let handle = answer["Messages"][0]["ReceiptHandle"].as_str();
        handle.expect("a message").to_owned()
    }

    async fn hide(&self, handle: &str, seconds: u32) -> Result<Value, String> {
        let asked = json!({
            "QueueUrl": self.queue,
            "ReceiptHandle": handle,
            "VisibilityTimeout": seconds,
        });
        self.aws.try_sqs("ChangeMessageVisibility", asked).await
    }

    async fn delete(&self, handle: &str) -> Result<Value, String> {
        let asked = json!({ "QueueUrl": self.queue, "ReceiptHandle": handle });
        self.aws.try_sqs("DeleteMessage", asked).await
    }

    async fn seconds_pass(&self, seconds: u64) {
        let time = Duration::from_secs(seconds);
        self.aws.advance_clock("strict", time).await;
    }

    fn is_fifo(&self) -> bool {
        self.queue.ends_with(".fifo")
    }
}

fn assert_refused(answer: &Result<Value, String>, code: &str) {
    let problem = answer.as_ref().expect_err(code);
    assert!(problem.contains(code), "not {code}: {problem}");
}

#[tokio::test]
async fn characters_sizes_and_ids_have_limits() {
    for suffix in ["", ".fifo"] {
        let held = Held::empty(suffix).await;
        for body in ["\u{ffff}", "\u{fffe}", "a\u{0}", "\u{1b}[1m"] {
            assert_refused(&held.send(body, "1").await, "InvalidMessageContents");
        }
        let odd = "\t\r\n\u{85}\u{fffd}\u{10ffff}";
        held.send(odd, "1").await.expect("sent");

        let longest = "ä".repeat(1 << 19);
        held.send(&longest, "2").await.expect("sent");
        let longer = longest + ".";
        assert_refused(&held.send(&longer, "3").await, "InvalidParameterValue");
        assert_refused(&held.send("", "3").await, "MissingRequiredParameter");
        if held.is_fifo() {
            for id in ["x".repeat(129), "ä".to_owned()] {
                assert_refused(&held.send("a", &id).await, "InvalidParameterValue");
            }
        }
    }
}

#[tokio::test]
async fn a_handle_whose_time_is_over_hides_nothing() {
    for suffix in ["", ".fifo"] {
        let held = Held::of(suffix).await;
        let old = held.receive().await;
        held.seconds_pass(60).await;
        assert_refused(&held.hide(&old, 60).await, "ReceiptHandle");
        let new = held.receive().await;
        assert_refused(&held.hide(&old, 60).await, "ReceiptHandle");
        held.hide(&new, 60).await.expect("hidden");
        held.delete(&new).await.expect("deleted");
        assert_refused(&held.hide(&new, 60).await, "ReceiptHandle");
    }
}

#[tokio::test]
async fn a_fifo_queue_deletes_with_a_handle_that_holds_only() {
    let held = Held::of(".fifo").await;
    let old = held.receive().await;
    held.seconds_pass(60).await;
    assert_refused(&held.delete(&old).await, "expired");
    let new = held.receive().await;
    assert_refused(&held.delete(&old).await, "expired");
    held.delete(&new).await.expect("deleted");
    held.delete(&new).await.expect("deleted before");
}

#[tokio::test]
async fn a_standard_queue_takes_the_newest_handle_and_ignores_older_ones() {
    let held = Held::of("").await;
    let old = held.receive().await;
    held.seconds_pass(60).await;
    let new = held.receive().await;
    held.delete(&old).await.expect("ignored");
    assert_eq!(held.aws.messages(&held.queue).await, 1);
    held.seconds_pass(60).await;
    held.delete(&new).await.expect("deleted");
    assert_eq!(held.aws.messages(&held.queue).await, 0);
}

#[tokio::test]
async fn a_message_is_hidden_for_twelve_hours_from_its_receive_at_most() {
    let held = Held::of("").await;
    let handle = held.receive().await;
    held.seconds_pass(10).await;
    assert_refused(&held.hide(&handle, 43_191).await, "VisibilityTimeout");
    held.hide(&handle, 43_190).await.expect("hidden");
}

#[tokio::test]
async fn a_batch_has_ten_entries_at_most() {
    let held = Held::empty("").await;
    for (action, entry) in [
        ("SendMessageBatch", json!({ "MessageBody": "a" })),
        ("DeleteMessageBatch", json!({})),
        (
            "ChangeMessageVisibilityBatch",
            json!({ "VisibilityTimeout": 1 }),
        ),
    ] {
        let entries = (0..11).map(|number| {
            let mut entry = entry.clone();
            entry["Id"] = json!(number.to_string());
            if action != "SendMessageBatch" {
                entry["ReceiptHandle"] = entry["Id"].clone();
            }
            entry
        });
        let entries: Vec<_> = entries.collect();
        let batch = json!({ "QueueUrl": held.queue, "Entries": entries });
        let answer = held.aws.try_sqs(action, batch).await;
        assert_refused(&answer, "TooManyEntriesInBatchRequest");
    }
}
