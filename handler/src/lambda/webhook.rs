//! The webhook as a function on AWS Lambda, behind API Gateway (REST and HTTP APIs), a function
//! URL or an Application Load Balancer.
//!
//! They turn a request into an event, and `lambda_http` turns the event into a request again: the
//! proof is checked over the bytes that the sender sent. Of their limits the webhook sees nothing.
//! A request above 10 MB is refused by API Gateway, one above 1 MB by a load balancer, and an event
//! above 6 MB, in which a body may be a third longer than it was sent, by Lambda. A push is smaller
//! unless thousands of commits are in it.

use std::time::Duration;

use anyhow::anyhow;
use axum::Router;
use axum::http::Uri;
use lambda_http::Request;
use lambda_http::tower::ServiceExt;
use tokio::time::timeout;
use tracing::warn;

use shared::queue::Queue;

/// How long the first event waits for a queue that does not answer; then it finds out by itself.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);

/// Answers events for as long as Lambda sends them.
///
/// # Errors
/// The connection to Lambda breaks.
pub(crate) async fn serve(router: Router, queue: &Queue) -> anyhow::Result<()> {
    connect(queue).await;
    let function = router
        .into_service()
        .map_request(|request: Request| without_prefix(request));
    lambda_http::run(function)
        .await
        .map_err(|cause| anyhow!(cause))
}

/// Asks the queue something, so that the first push finds an open connection: Lambda lends its
/// functions more of a CPU while they start than a small one has later.
async fn connect(queue: &Queue) {
    match timeout(CONNECT_DEADLINE, queue.check()).await {
        Ok(Ok(())) => {}
        Ok(Err(cause)) => warn!(%cause, "the queue is not ready"),
        Err(_) => warn!("the queue does not answer yet"),
    }
}

/// A stage, as in `/prod/healthz`, or the base path of a domain or of a load balancer's rule
/// stands before our own path. Where the webhook is, they have decided already.
fn without_prefix(mut request: Request) -> Request {
    let uri = request.uri();
    let path = match uri.path().ends_with("/healthz") {
        true => "/healthz",
        false => "/",
    };
    let query = uri.query().unwrap_or_default();
    let uri = Uri::try_from(format!("{path}?{query}"));
    *request.uri_mut() = uri.expect("the query was in a URI before");
    request
}
