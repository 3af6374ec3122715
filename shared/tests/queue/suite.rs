//! The behaviour of any queue. A kind of queue runs all of it with [`every_behaviour!`].

use std::collections::HashSet;
use std::time::Duration;

use compose_ci_shared::build::{BuildId, BuildRequest, ForgeKind};
use compose_ci_shared::message::Message;
use compose_ci_shared::queue::{Delivery, MAX_RECEIVES, Queue, QueueError, VISIBILITY_TIMEOUT};
use tokio::task::JoinSet;

/// A queue, empty at first, and its time.
pub(crate) trait TestQueue {
    fn queue(&self) -> &Queue;

    /// Returns once a receive that was begun before waits for a message.
    async fn receive_waits(&self);

    /// Lets the queue's time pass.
    async fn let_pass(&self, time: Duration);
}

/// Longer than any test waits for what will come.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Longer than SQS remembers a message of a FIFO queue to drop its copies (five minutes).
const PAST_DEDUPLICATION: Duration = Duration::from_secs(301);

/// The smallest time that SQS knows.
const MOMENT: Duration = Duration::from_secs(1);

/// A test for each behaviour; `$open` is an expression that opens a [`TestQueue`].
macro_rules! every_behaviour {
    ($open:expr) => {
        $crate::suite::every_behaviour_but_one_message_per_build! { $open }
        $crate::suite::tests! { $open; a_build_is_not_queued_twice }
    };
}
pub(crate) use every_behaviour;

/// As [`every_behaviour!`], for a queue that lets a build in twice: a standard queue of SQS.
macro_rules! every_behaviour_but_one_message_per_build {
    ($open:expr) => {
        $crate::suite::tests! { $open;
            a_message_arrives_as_it_was_sent,
            the_oldest_message_comes_first,
            no_more_messages_come_than_were_asked_for,
            a_receive_ends_empty_after_its_wait,
            a_received_message_is_hidden_until_its_lease_runs_out,
            an_extended_lease_hides_the_message_for_longer,
            a_settled_message_never_comes_back,
            a_message_given_back_comes_after_its_delay,
            a_lease_is_stale_once_it_ran_out,
            a_lease_is_stale_once_the_message_was_received_again,
            a_settled_build_can_be_queued_again,
            a_message_received_too_often_is_a_dead_letter,
            a_dead_letter_is_leased_and_settled_like_a_message,
            a_dead_letter_may_be_received_without_limit,
            a_waiting_receive_is_woken_by_a_send,
            a_waiting_receive_is_woken_by_a_give_back,
            a_waiting_receive_is_woken_when_a_delay_ends,
            a_waiting_receive_is_woken_when_a_lease_runs_out,
            a_waiting_receive_of_dead_letters_is_woken_by_a_death,
            each_message_goes_to_one_of_many_receivers,
            a_sound_queue_answers_a_check,
        }
    };
}
pub(crate) use every_behaviour_but_one_message_per_build;

macro_rules! tests {
    ($open:expr; $($behaviour:ident),* $(,)?) => {$(
        #[tokio::test]
        async fn $behaviour() {
            $crate::suite::$behaviour(&$open).await;
        }
    )*};
}
pub(crate) use tests;

pub(crate) async fn a_message_arrives_as_it_was_sent(test: &impl TestQueue) {
    let sent = message();
    test.queue().send(&sent).await.expect("send");
    let delivery = receive_one(test.queue()).await;
    assert_eq!(delivery.message, Ok(sent));
    assert_eq!(delivery.receives, 1);
}

pub(crate) async fn the_oldest_message_comes_first(test: &impl TestQueue) {
    let sent = send_many(test.queue(), 5).await;
    let mut received = receive_now(test.queue(), 2).await;
    received.extend(receive_now(test.queue(), 3).await);
    assert_eq!(ids(&received), sent);
}

pub(crate) async fn no_more_messages_come_than_were_asked_for(test: &impl TestQueue) {
    send_many(test.queue(), 3).await;
    assert_eq!(receive_now(test.queue(), 2).await.len(), 2);
    assert_eq!(receive_now(test.queue(), 2).await.len(), 1);
    assert_eq!(receive_now(test.queue(), 2).await.len(), 0);
}

pub(crate) async fn a_receive_ends_empty_after_its_wait(test: &impl TestQueue) {
    let (received, ()) = tokio::join!(biased; test.queue().receive(1, LONG), async {
        test.receive_waits().await;
        test.let_pass(LONG).await;
    });
    assert!(received.expect("receive").is_empty());
}

pub(crate) async fn a_received_message_is_hidden_until_its_lease_runs_out(test: &impl TestQueue) {
    test.queue().send(&message()).await.expect("send");
    let first = receive_one(test.queue()).await;
    test.let_pass(VISIBILITY_TIMEOUT - MOMENT).await;
    assert_nothing_visible(test.queue()).await;
    test.let_pass(MOMENT).await;
    let second = receive_one(test.queue()).await;
    assert_eq!(second.message, first.message);
    assert_eq!((first.receives, second.receives), (1, 2));
}

pub(crate) async fn an_extended_lease_hides_the_message_for_longer(test: &impl TestQueue) {
    test.queue().send(&message()).await.expect("send");
    let delivery = receive_one(test.queue()).await;
    test.let_pass(VISIBILITY_TIMEOUT / 2).await;
    delivery
        .lease
        .extend(VISIBILITY_TIMEOUT)
        .await
        .expect("extend");
    test.let_pass(VISIBILITY_TIMEOUT - MOMENT).await;
    assert_nothing_visible(test.queue()).await;
    delivery
        .lease
        .settle()
        .await
        .expect("the lease still holds");
}

pub(crate) async fn a_settled_message_never_comes_back(test: &impl TestQueue) {
    test.queue().send(&message()).await.expect("send");
    receive_one(test.queue())
        .await
        .lease
        .settle()
        .await
        .expect("settle");
    test.let_pass(VISIBILITY_TIMEOUT).await;
    assert_nothing_visible(test.queue()).await;
}

pub(crate) async fn a_message_given_back_comes_after_its_delay(test: &impl TestQueue) {
    let delay = Duration::from_secs(30);
    test.queue().send(&message()).await.expect("send");
    let first = receive_one(test.queue()).await;
    first.lease.give_back(delay).await.expect("give back");
    test.let_pass(delay - MOMENT).await;
    assert_nothing_visible(test.queue()).await;
    test.let_pass(MOMENT).await;
    let second = receive_one(test.queue()).await;
    assert_eq!(second.receives, 2);
    second
        .lease
        .give_back(Duration::ZERO)
        .await
        .expect("give back");
    assert_eq!(receive_one(test.queue()).await.receives, 3);
}

pub(crate) async fn a_lease_is_stale_once_it_ran_out(test: &impl TestQueue) {
    let sent = send_many(test.queue(), 3).await;
    let stale = receive_now(test.queue(), 3).await;
    test.let_pass(VISIBILITY_TIMEOUT).await;
    assert_all_stale(stale).await;
    assert_eq!(ids(&receive_now(test.queue(), 3).await), sent);
}

pub(crate) async fn a_lease_is_stale_once_the_message_was_received_again(test: &impl TestQueue) {
    send_many(test.queue(), 3).await;
    let stale = receive_now(test.queue(), 3).await;
    test.let_pass(VISIBILITY_TIMEOUT).await;
    let held = receive_now(test.queue(), 3).await;
    assert_all_stale(stale).await;
    assert_eq!(held.len(), 3);
    for delivery in held {
        delivery
            .lease
            .settle()
            .await
            .expect("the newer lease holds");
    }
}

pub(crate) async fn a_build_is_not_queued_twice(test: &impl TestQueue) {
    let sent = message();
    test.queue().send(&sent).await.expect("send");
    test.queue()
        .send(&sent)
        .await
        .expect("send while it is queued");
    let delivery = receive_one(test.queue()).await;
    test.queue()
        .send(&sent)
        .await
        .expect("send while it is leased");
    assert_nothing_visible(test.queue()).await;
    delivery.lease.settle().await.expect("settle");
    assert_nothing_visible(test.queue()).await;
}

pub(crate) async fn a_settled_build_can_be_queued_again(test: &impl TestQueue) {
    let sent = message();
    test.queue().send(&sent).await.expect("send");
    let stale = receive_one(test.queue()).await;
    test.let_pass(VISIBILITY_TIMEOUT).await;
    receive_one(test.queue())
        .await
        .lease
        .settle()
        .await
        .expect("settle");
    test.let_pass(PAST_DEDUPLICATION).await;
    test.queue().send(&sent).await.expect("send again");
    let again = receive_one(test.queue()).await;
    assert_eq!((again.message, again.receives), (Ok(sent), 1));
    assert_all_stale(vec![stale]).await;
}

pub(crate) async fn a_message_received_too_often_is_a_dead_letter(test: &impl TestQueue) {
    let sent = message();
    test.queue().send(&sent).await.expect("send");
    for receives in 1..=MAX_RECEIVES {
        assert_eq!(receive_one(test.queue()).await.receives, receives);
        test.let_pass(VISIBILITY_TIMEOUT).await;
    }
    assert!(dead_letters_now(test.queue()).await.is_empty(), "too soon");
    assert_nothing_visible(test.queue()).await;
    let dead = dead_letters_now(test.queue()).await;
    assert_eq!(ids(&dead), [sent.request().id]);
}

pub(crate) async fn a_dead_letter_is_leased_and_settled_like_a_message(test: &impl TestQueue) {
    kill(test, &message()).await;
    let first = one(dead_letters_now(test.queue()).await);
    assert!(
        dead_letters_now(test.queue()).await.is_empty(),
        "it is leased"
    );
    test.let_pass(VISIBILITY_TIMEOUT).await;
    assert_all_stale(vec![first]).await;

    let second = one(dead_letters_now(test.queue()).await);
    second.lease.extend(LONG).await.expect("extend");
    second.lease.give_back(LONG).await.expect("give back");
    assert!(
        dead_letters_now(test.queue()).await.is_empty(),
        "it is delayed"
    );
    test.let_pass(LONG).await;

    let third = one(dead_letters_now(test.queue()).await);
    third.lease.settle().await.expect("settle");
    test.let_pass(VISIBILITY_TIMEOUT).await;
    assert!(
        dead_letters_now(test.queue()).await.is_empty(),
        "it is settled"
    );
    assert_nothing_visible(test.queue()).await;
}

pub(crate) async fn a_dead_letter_may_be_received_without_limit(test: &impl TestQueue) {
    kill(test, &message()).await;
    for _ in 0..=2 * MAX_RECEIVES {
        let dead = one(dead_letters_now(test.queue()).await);
        dead.lease
            .give_back(Duration::ZERO)
            .await
            .expect("give back");
    }
}

pub(crate) async fn a_waiting_receive_is_woken_by_a_send(test: &impl TestQueue) {
    let sent = message();
    let (received, ()) = tokio::join!(biased; test.queue().receive(1, LONG), async {
        test.receive_waits().await;
        test.queue().send(&sent).await.expect("send");
    });
    assert_eq!(ids(&received.expect("receive")), [sent.request().id]);
}

pub(crate) async fn a_waiting_receive_is_woken_by_a_give_back(test: &impl TestQueue) {
    test.queue().send(&message()).await.expect("send");
    let held = receive_one(test.queue()).await;
    let (received, ()) = tokio::join!(biased; test.queue().receive(1, LONG), async {
        test.receive_waits().await;
        held.lease.give_back(Duration::ZERO).await.expect("give back");
    });
    assert_eq!(one(received.expect("receive")).receives, 2);
}

pub(crate) async fn a_waiting_receive_is_woken_when_a_delay_ends(test: &impl TestQueue) {
    test.queue().send(&message()).await.expect("send");
    let held = receive_one(test.queue()).await;
    held.lease.give_back(LONG / 2).await.expect("give back");
    let (received, ()) = tokio::join!(biased; test.queue().receive(1, LONG), async {
        test.receive_waits().await;
        test.let_pass(LONG / 2).await;
    });
    assert_eq!(one(received.expect("receive")).receives, 2);
}

pub(crate) async fn a_waiting_receive_is_woken_when_a_lease_runs_out(test: &impl TestQueue) {
    test.queue().send(&message()).await.expect("send");
    let held = receive_one(test.queue()).await;
    test.let_pass(VISIBILITY_TIMEOUT - LONG / 2).await;
    let (received, ()) = tokio::join!(biased; test.queue().receive(1, LONG), async {
        test.receive_waits().await;
        test.let_pass(LONG / 2).await;
    });
    assert_eq!(one(received.expect("receive")).receives, 2);
    assert_all_stale(vec![held]).await;
}

pub(crate) async fn a_waiting_receive_of_dead_letters_is_woken_by_a_death(test: &impl TestQueue) {
    let sent = message();
    let (dead, ()) = tokio::join!(biased; test.queue().receive_dead_letters(1, LONG), async {
        test.receive_waits().await;
        kill(test, &sent).await;
    });
    assert_eq!(
        ids(&dead.expect("receive dead letters")),
        [sent.request().id]
    );
}

pub(crate) async fn each_message_goes_to_one_of_many_receivers(test: &impl TestQueue) {
    const MESSAGES: usize = 60;
    let receivers = (0..3).map(|_| {
        let queue = test.queue().clone();
        tokio::spawn(async move {
            let mut received = Vec::new();
            while received.len() < MESSAGES / 3 {
                let delivery = one(queue.receive(1, LONG).await.expect("receive"));
                received.push(id(&delivery));
                delivery.lease.settle().await.expect("settle");
            }
            received
        })
    });
    let receivers: Vec<_> = receivers.collect();
    let sent = send_many(test.queue(), MESSAGES).await;
    let mut received = Vec::new();
    for receiver in receivers {
        received.extend(receiver.await.expect("a receiver"));
    }
    assert_eq!(received.len(), MESSAGES);
    assert_eq!(
        HashSet::from_iter(received),
        HashSet::<BuildId>::from_iter(sent)
    );
}

pub(crate) async fn a_sound_queue_answers_a_check(test: &impl TestQueue) {
    test.queue().check().await.expect("check");
}

/// A message of a build like no other, and of a branch of its own: a FIFO queue of SQS delivers
/// the builds of one branch one after another.
pub(crate) fn message() -> Message {
    let id = BuildId::random();
    Message::V2(BuildRequest {
        forge: ForgeKind::Github,
        id,
        repo: "octo/hello".parse().expect("repo"),
        revision: "main".parse().expect("revision"),
        git_ref: Some(format!("refs/heads/{id}").parse().expect("ref")),
    })
}

fn id(delivery: &Delivery) -> BuildId {
    delivery
        .message
        .as_ref()
        .expect("a readable message")
        .request()
        .id
}

pub(crate) fn ids(deliveries: &[Delivery]) -> Vec<BuildId> {
    deliveries.iter().map(id).collect()
}

/// What can be received without a wait.
pub(crate) async fn receive_now(queue: &Queue, max: usize) -> Vec<Delivery> {
    queue.receive(max, Duration::ZERO).await.expect("receive")
}

pub(crate) async fn receive_one(queue: &Queue) -> Delivery {
    one(receive_now(queue, 1).await)
}

/// Receives and settles whatever is there.
pub(crate) async fn drain(queue: &Queue) -> HashSet<BuildId> {
    let mut drained = HashSet::new();
    loop {
        let deliveries = receive_now(queue, 1000).await;
        if deliveries.is_empty() {
            return drained;
        }
        let mut settling = JoinSet::new();
        for delivery in deliveries {
            assert!(drained.insert(id(&delivery)), "received twice");
            settling.spawn(delivery.lease.settle());
        }
        for settled in settling.join_all().await {
            settled.expect("settle");
        }
    }
}

async fn dead_letters_now(queue: &Queue) -> Vec<Delivery> {
    let dead = queue.receive_dead_letters(10, Duration::ZERO).await;
    dead.expect("receive dead letters")
}

fn one(mut deliveries: Vec<Delivery>) -> Delivery {
    assert_eq!(deliveries.len(), 1, "{deliveries:?}");
    deliveries.remove(0)
}

async fn send_many(queue: &Queue, count: usize) -> Vec<BuildId> {
    let mut sent = Vec::new();
    for _ in 0..count {
        let message = message();
        queue.send(&message).await.expect("send");
        sent.push(message.request().id);
    }
    sent
}

/// Makes a dead letter: received as often as is allowed, and once more.
async fn kill(test: &impl TestQueue, message: &Message) {
    test.queue().send(message).await.expect("send");
    for _ in 0..MAX_RECEIVES {
        let delivery = receive_one(test.queue()).await;
        delivery
            .lease
            .give_back(Duration::ZERO)
            .await
            .expect("give back");
    }
    assert_nothing_visible(test.queue()).await;
}

async fn assert_nothing_visible(queue: &Queue) {
    let visible = receive_now(queue, 10).await;
    assert!(visible.is_empty(), "{visible:?}");
}

async fn assert_all_stale(deliveries: Vec<Delivery>) {
    for (nth, delivery) in deliveries.into_iter().enumerate() {
        let extended = delivery.lease.extend(VISIBILITY_TIMEOUT).await;
        assert!(
            matches!(extended, Err(QueueError::LeaseExpired)),
            "{extended:?}"
        );
        let ended = if nth % 2 == 0 {
            delivery.lease.settle().await
        } else {
            delivery.lease.give_back(Duration::ZERO).await
        };
        assert!(matches!(ended, Err(QueueError::LeaseExpired)), "{ended:?}");
    }
}
