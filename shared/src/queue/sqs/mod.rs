//! The queue at Amazon SQS, or at a server that speaks its protocol.
//!
//! What SQS promises less of than the local queue: a standard queue may deliver a message twice
//! and keeps no copy out (who builds has to cope), a FIFO queue keeps copies out for five minutes
//! and delivers the builds of one branch one after another.

mod trouble;

use std::sync::Arc;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::Config;
use aws_sdk_sqs::types::{
    Message as Received, MessageAttributeValue, MessageSystemAttributeName, QueueAttributeName,
};
use serde::Deserialize;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use self::trouble::{Asked, is_answered};
use super::{Delivery, Lease, QueueError, VISIBILITY_TIMEOUT};
use crate::build::BuildRequest;
use crate::config::{QueueUrl, SqsConfig};
use crate::message::Message;
use crate::net::aws;

/// How much longer than it was asked to wait a receive may take. Without a deadline one that lost
/// its peer never ends.
const RECEIVE_MARGIN: Duration = Duration::from_secs(5);

/// How long a settled message may take to reach a queue that cannot be reached: as long as the
/// worker's longest lease may last.
const SETTLE_PATIENCE: Duration = Duration::from_secs(5 * 60);
const SETTLE_RETRY: Duration = Duration::from_secs(5);

/// The limits of `ReceiveMessage`, by its reference.
const RECEIVE_MAX: usize = 10;
const WAIT_MAX: Duration = Duration::from_secs(20);
/// A message is hidden for so long at most, counted from its receive.
const HIDDEN_MAX: Duration = Duration::from_secs(12 * 60 * 60);
/// The clocks of two machines need not agree on the last second.
const HIDDEN_MARGIN: Duration = Duration::from_secs(2);

/// Namespace of the groups' ids (a random v4).
const GROUP_NAMESPACE: Uuid = Uuid::from_u128(0x1e0f_7f0c_52b3_4a5e_9d5c_8f0a_6c3f_b1d4);

/// A queue at SQS, with its dead letters. Clones share the connections.
#[derive(Debug, Clone)]
pub struct SqsQueue {
    queue: Remote,
    /// Nothing, once it is known that the queue has none.
    dead_letters: Arc<OnceCell<Option<Remote>>>,
}

/// The right to work on a message of an [`SqsQueue`].
#[derive(Debug)]
pub struct SqsLease {
    queue: Remote,
    receipt: String,
    /// When the message was asked for: SQS counts from somewhat later.
    received: Instant,
}

impl SqsQueue {
    /// Prepares the client; nothing is asked of SQS yet.
    ///
    /// # Errors
    /// The region is not known, or the bundle of root certificates cannot be used.
    pub async fn open(config: &SqsConfig) -> Result<Self, QueueError> {
        let sdk = aws::sdk_config(config.url.region(), config.ca_bundle.as_deref()).await?;
        Self::with_sdk_config(config, &sdk)
    }

    /// As [`open`](Self::open), with what the environment would say about AWS given.
    ///
    /// # Errors
    /// The region is not known.
    pub fn with_sdk_config(config: &SqsConfig, sdk: &SdkConfig) -> Result<Self, QueueError> {
        aws::region(sdk, "QUEUE_URL")?;
        let queue = Remote {
            client: Client::new(&aws::with_deadlines(sdk)),
            url: Arc::new(config.url.clone()),
        };
        let dead_letters = config.dead_letters_url.clone().map(|url| queue.at(url));
        Ok(Self {
            dead_letters: Arc::new(OnceCell::new_with(dead_letters.map(Some))),
            queue,
        })
    }

    pub(super) async fn send(&self, message: &Message) -> Result<(), QueueError> {
        self.queue.send(message).await
    }

    pub(super) async fn receive(
        &self,
        max: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, QueueError> {
        self.queue.receive(max, wait).await
    }

    pub(super) async fn receive_dead_letters(
        &self,
        max: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, QueueError> {
        match self.dead_letters().await? {
            Some(dead_letters) => dead_letters.receive(max, wait).await,
            None => {
                sleep(wait).await;
                Ok(Vec::new())
            }
        }
    }

    pub(super) async fn check(&self) -> Result<(), QueueError> {
        self.queue.check().await
    }

    async fn dead_letters(&self) -> Result<Option<&Remote>, QueueError> {
        let found = self
            .dead_letters
            .get_or_try_init(|| self.queue.dead_letters());
        found.await.map(Option::as_ref)
    }
}

impl SqsLease {
    pub(super) async fn extend(&self, visibility: Duration) -> Result<(), QueueError> {
        // For no time at all SQS would give it to somebody else.
        match self.left().is_zero() {
            true => Err(QueueError::LeaseExpired),
            false => self.hide_for(visibility).await,
        }
    }

    /// Tries until it is too late: what is not settled is built again, maybe by another worker.
    pub(super) async fn settle(self) -> Result<(), QueueError> {
        let too_late = Instant::now() + SETTLE_PATIENCE;
        loop {
            match self.try_settle().await {
                Err(error) if is_worth_waiting(&error) && Instant::now() < too_late => {
                    tracing::warn!(%error, "failed to acknowledge a message; trying for five minutes");
                    sleep(SETTLE_RETRY).await;
                }
                settled => return settled,
            }
        }
    }

    async fn try_settle(&self) -> Result<(), QueueError> {
        // A standard queue would take any lease that there ever was of a message.
        if !self.queue.url.is_fifo() {
            self.hide_for(VISIBILITY_TIMEOUT).await?;
        }
        self.queue.delete(&self.receipt).await
    }

    pub(super) async fn give_back(self, delay: Duration) -> Result<(), QueueError> {
        self.hide_for(delay).await
    }

    async fn hide_for(&self, time: Duration) -> Result<(), QueueError> {
        self.queue.hide(&self.receipt, time.min(self.left())).await
    }

    /// How much longer SQS can hide the message.
    fn left(&self) -> Duration {
        HIDDEN_MAX.saturating_sub(self.received.elapsed() + HIDDEN_MARGIN)
    }
}

/// One queue of those that a client speaks to.
#[derive(Debug, Clone)]
struct Remote {
    client: Client,
    url: Arc<QueueUrl>,
}

impl Remote {
    /// Another queue of the same client.
    fn at(&self, url: QueueUrl) -> Self {
        Self {
            client: self.client.clone(),
            url: Arc::new(url),
        }
    }

    async fn send(&self, message: &Message) -> Result<(), QueueError> {
        let request = message.request();
        let in_order = self.url.is_fifo();
        self.client
            .send_message()
            .queue_url(self.url.as_str())
            .message_body(body(message))
            .set_message_attributes(Some(attributes(message).into()))
            .set_message_group_id(in_order.then(|| group(request)))
            .set_message_deduplication_id(in_order.then(|| request.id.to_string()))
            .send()
            .await
            .map_err(|error| self.asked("sqs:SendMessage").failed(error))?;
        Ok(())
    }

    async fn receive(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        let wait = wait.min(WAIT_MAX);
        let received = Instant::now();
        let answer = self
            .client
            .receive_message()
            .queue_url(self.url.as_str())
            .max_number_of_messages(max.min(RECEIVE_MAX) as i32)
            .wait_time_seconds(seconds(wait))
            .visibility_timeout(seconds(VISIBILITY_TIMEOUT))
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
            .customize()
            .config_override(receive_deadline(wait))
            .send()
            .await
            .map_err(|error| self.asked("sqs:ReceiveMessage").failed(error))?;
        let messages = answer.messages.unwrap_or_default().into_iter();
        Ok(messages
            .map(|message| self.deliver(message, received))
            .collect())
    }

    fn deliver(&self, message: Received, received: Instant) -> Delivery {
        let receives = message
            .attributes()
            .and_then(|all| all.get(&MessageSystemAttributeName::ApproximateReceiveCount))
            .and_then(|count| count.parse().ok());
        Delivery {
            message: Message::decode(message.body().unwrap_or_default()),
            receives: receives.unwrap_or(1),
            lease: Lease::Sqs(SqsLease {
                queue: self.clone(),
                receipt: message.receipt_handle.unwrap_or_default(),
                received,
            }),
        }
    }

    async fn hide(&self, receipt: &str, time: Duration) -> Result<(), QueueError> {
        let asked = self.asked("sqs:ChangeMessageVisibility");
        self.client
            .change_message_visibility()
            .queue_url(self.url.as_str())
            .receipt_handle(receipt)
            .visibility_timeout(seconds(time))
            .send()
            .await
            .map_err(|error| asked.failed_with_lease(error))?;
        Ok(())
    }

    async fn delete(&self, receipt: &str) -> Result<(), QueueError> {
        let asked = self.asked("sqs:DeleteMessage");
        self.client
            .delete_message()
            .queue_url(self.url.as_str())
            .receipt_handle(receipt)
            .send()
            .await
            .map_err(|error| asked.failed_with_lease(error))?;
        Ok(())
    }

    async fn check(&self) -> Result<(), QueueError> {
        let asked = self
            .client
            .get_queue_attributes()
            .queue_url(self.url.as_str())
            .attribute_names(QueueAttributeName::QueueArn);
        match asked.send().await {
            Ok(_) => Ok(()),
            // A webhook may be allowed to send and nothing else.
            Err(error) if is_answered(&error) => Ok(()),
            Err(error) => Err(self.asked("sqs:GetQueueAttributes").failed(error)),
        }
    }

    /// The queue that the redrive policy leads to.
    async fn dead_letters(&self) -> Result<Option<Self>, QueueError> {
        let asked = self.asked("sqs:GetQueueAttributes, which DLQ_URL makes needless");
        let answer = self
            .client
            .get_queue_attributes()
            .queue_url(self.url.as_str())
            .attribute_names(QueueAttributeName::RedrivePolicy)
            .send()
            .await
            .map_err(|error| asked.failed(error))?;
        let name = answer
            .attributes()
            .and_then(|all| all.get(&QueueAttributeName::RedrivePolicy))
            .and_then(|policy| RedrivePolicy::target_name(policy));
        if name.is_none() {
            tracing::warn!(queue = %self.url, "has no dead-letter queue: a message that cannot be read comes back until it is too old");
        }
        Ok(name.map(|name| self.at(self.url.sibling(&name))))
    }

    fn asked(&self, action: &'static str) -> Asked<'_> {
        Asked {
            queue: &self.url,
            action,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RedrivePolicy {
    /// `arn:aws:sqs:<region>:<account>:<name>`, of the same region and account as the queue.
    dead_letter_target_arn: String,
}

impl RedrivePolicy {
    fn target_name(json: &str) -> Option<String> {
        let policy: Self = serde_json::from_str(json).ok()?;
        let (_, name) = policy.dead_letter_target_arn.rsplit_once(':')?;
        Some(name.to_owned())
    }
}

fn is_worth_waiting(error: &QueueError) -> bool {
    matches!(error, QueueError::Unreachable(_) | QueueError::Throttled(_))
}

fn receive_deadline(wait: Duration) -> aws_sdk_sqs::config::Builder {
    let deadline = wait + RECEIVE_MARGIN;
    let deadlines = TimeoutConfig::builder()
        .operation_timeout(deadline)
        .operation_attempt_timeout(deadline)
        .build();
    Config::builder().timeout_config(deadlines)
}

/// SQS takes the characters of XML 1.0, which lack these two of those that JSON leaves as they are.
fn body(message: &Message) -> String {
    let json = message.encode();
    json.replace('\u{fffe}', "\\ufffe")
        .replace('\u{ffff}', "\\uffff")
}

/// What an operator filters by.
fn attributes(message: &Message) -> [(String, MessageAttributeValue); 3] {
    let request = message.request();
    let ref_name = request.ref_name().unwrap_or("-");
    let ref_name = ref_name.replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}");
    [
        ("repo", request.repo.as_str()),
        ("ref", &ref_name),
        ("version", message.version()),
    ]
    .map(|(name, value)| (name.to_owned(), text_attribute(value)))
}

fn text_attribute(value: &str) -> MessageAttributeValue {
    MessageAttributeValue::builder()
        .data_type("String")
        .string_value(value)
        .build()
        .expect("it has a type")
}

/// Builds of the same branch are one group. A group's name is shorter than a branch's may be, and
/// of fewer characters.
fn group(request: &BuildRequest) -> String {
    let repo = request.repo.as_str().to_ascii_lowercase();
    let commit = request.revision.to_string();
    let ref_name = request.ref_name().unwrap_or(&commit);
    Uuid::new_v5(&GROUP_NAMESPACE, format!("{repo} {ref_name}").as_bytes()).to_string()
}

/// Whole seconds, as SQS counts: rather longer than too short.
fn seconds(time: Duration) -> i32 {
    let whole = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    i32::try_from(whole).unwrap_or(i32::MAX)
}
