//! A queue that cannot be reached, or only anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;

use crate::fronts::Front;
use crate::function::{SECRET, Sqs, answer, delivery, payload, start, variables};
use crate::link::{Break, Link};

/// GitHub waits for 10 s. Longer than the webhook waits for its queue, and a busy machine.
const ANSWERED: Duration = Duration::from_secs(8);

/// Longer than the function waits for its queue before it asks for events, and a busy machine.
const STARTED: Duration = Duration::from_secs(5);

const URL: &str = "https://sqs.eu-west-1.amazonaws.com/1/builds";

#[tokio::test]
async fn a_push_is_not_accepted_while_nobody_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    is_not_accepted(&format!("http://{address}")).await;
}

#[tokio::test]
async fn a_push_is_not_accepted_while_nobody_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    is_not_accepted(&format!("http://{address}")).await;
}

/// The function starts all the same, and soon.
async fn is_not_accepted(endpoint_url: &str) {
    let began = Instant::now();
    let mut function = start(&variables(URL, endpoint_url)).await;
    assert!(began.elapsed() < STARTED, "{:?}", began.elapsed());
    let body = payload();
    let began = Instant::now();
    let event = Front::HttpApi.event(&delivery(&body, SECRET), true);
    let response = function.invoke(&event).await;
    assert!(began.elapsed() < ANSWERED, "{:?}", began.elapsed());
    let (status, told) = answer(&response);
    assert_eq!(status, 503, "{response}");
    assert!(!told.contains(URL), "an outsider is told: {told}");
    function.wait_for_log(|log| log.find(URL)).await;
}

#[tokio::test]
async fn a_connection_that_was_closed_while_the_function_was_frozen_costs_no_push() {
    is_accepted_after(Break::Close).await;
}

#[tokio::test]
async fn a_connection_that_died_unseen_costs_no_push() {
    is_accepted_after(Break::Mute).await;
}

async fn is_accepted_after(how: Break) {
    let Sqs { aws, queues } = Sqs::start().await;
    let aws = Arc::new(aws);
    let link = Link::to(Arc::clone(&aws)).await;
    let mut function = start(&variables(&queues.url, &link.url())).await;
    let body = payload();
    for queued in 1..=2 {
        link.break_connection(how);
        let began = Instant::now();
        let event = Front::HttpApi.event(&delivery(&body, SECRET), true);
        let response = function.invoke(&event).await;
        assert_eq!(answer(&response).0, 202, "{response}");
        assert!(began.elapsed() < ANSWERED, "{:?}", began.elapsed());
        assert_eq!(aws.messages(&queues.url).await, queued);
    }
}
