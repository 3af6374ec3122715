//! The way of a request, from its first byte to its answer.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use tokio::time::timeout;
use tracing::{error, info, warn};

use shared::build::BuildRequest;
use shared::config::WebhookConfig;
use shared::message::Message;
use shared::queue::{Queue, QueueError};

use crate::body::{BodyError, BodyReader};
use crate::decide::{Decision, Ignored, Policy, Refused, decide};
use crate::event::Malformed;
use crate::forge::{Delivery, Payload};
use crate::limits::Limits;
use crate::verify::{Admitted, Proven, Unproven, Verified, Verifier};

/// A header above this length is left out of the service's log: anybody can send it.
const LOGGED_HEADER_MAX_BYTES: usize = 64;

/// `POST /` and `GET /healthz`, to be served alone or merged with other pages.
pub fn router(config: &WebhookConfig, queue: Queue) -> Router {
    router_with_limits(config, queue, &Limits::default())
}

/// As [`router`], with other limits.
pub fn router_with_limits(config: &WebhookConfig, queue: Queue, limits: &Limits) -> Router {
    let webhook = Webhook {
        bodies: BodyReader::new(limits),
        judge: Judge::new(config),
        queue,
        queue_deadline: limits.queue,
    };
    Router::new()
        .route("/", post(receive))
        .route("/healthz", get(health))
        .with_state(Arc::new(webhook))
}

struct Webhook {
    bodies: BodyReader,
    judge: Judge,
    queue: Queue,
    queue_deadline: Duration,
}

/// Decides on requests: all of the webhook but to read a body and to speak to the queue.
pub struct Judge {
    verifier: Verifier,
    policy: Policy,
    status_context: String,
}

/// What became of a request that nothing was wrong with.
enum Answer {
    Queued(BuildRequest),
    Ignored(Ignored),
}

/// Why a request is not answered with a 2xx. The text is what the sender sees.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Unproven(#[from] Unproven),
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the queue cannot be reached, deliver this again later")]
    Queue(#[from] QueueError),
}

impl Webhook {
    async fn handle(
        &self,
        head: &Parts,
        delivery: Delivery<'_>,
        body: Body,
    ) -> Result<Answer, Refusal> {
        let Parts { uri, headers, .. } = head;
        let admitted = self.judge.admit(uri.query(), headers, &delivery)?;
        let body = self.bodies.read(body).await?;
        let verified = admitted.verify(&body)?;
        if let Some(proof) = head.extensions.get::<Proven>() {
            proof.set(true);
        }
        match self.judge.decide(delivery, &verified)? {
            Decision::Ignore(why) => Ok(Answer::Ignored(why)),
            Decision::Build(request) => self.enqueue(request).await.map(Answer::Queued),
        }
    }

    /// When this returns `Ok`, the build is durable.
    async fn enqueue(&self, request: BuildRequest) -> Result<BuildRequest, Refusal> {
        let message = Message::V2(request);
        in_time(self.queue_deadline, self.queue.send(&message)).await?;
        Ok(message.into_request())
    }
}

impl Judge {
    /// With the secrets, repositories and branches of this configuration.
    pub fn new(config: &WebhookConfig) -> Self {
        Self {
            verifier: Verifier::new(config),
            policy: Policy::new(config),
            status_context: config.status_context.clone(),
        }
    }

    /// Returns the build that a request asks for; nothing if nothing is to run.
    ///
    /// # Errors
    /// The request is not proven, cannot be read or is refused: the line that its sender sees.
    pub fn judge(
        &self,
        query: Option<&str>,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Option<BuildRequest>, String> {
        let delivery = Delivery::of(headers);
        let decided = self.admit(query, headers, &delivery).and_then(|admitted| {
            let verified = admitted.verify(body)?;
            self.decide(delivery, &verified)
        });
        match decided.map_err(|refusal| refusal.to_string())? {
            Decision::Ignore(_) => Ok(None),
            Decision::Build(request) => Ok(Some(request)),
        }
    }

    fn admit(
        &self,
        query: Option<&str>,
        headers: &HeaderMap,
        delivery: &Delivery<'_>,
    ) -> Result<Admitted<'_>, Refusal> {
        Ok(self.verifier.admit(query, headers, delivery.signature)?)
    }

    fn decide(&self, delivery: Delivery<'_>, body: &Verified<'_>) -> Result<Decision, Refusal> {
        let payload = Payload::of(delivery, body)?;
        let event = payload.event()?;
        let id = delivery.build_id(&self.status_context);
        Ok(decide(&event, &self.policy, delivery.forge, id)?)
    }
}

async fn receive(State(webhook): State<Arc<Webhook>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let delivery = Delivery::of(&head.headers);
    let result = webhook.handle(&head, delivery, body).await;
    log(&delivery, &result);
    match &result {
        Ok(answer) => answer.render(wants_json(&head.headers)),
        Err(refusal) => refusal.render(wants_json(&head.headers)),
    }
}

async fn health(State(webhook): State<Arc<Webhook>>) -> Response {
    match in_time(webhook.queue_deadline, webhook.queue.check()).await {
        Ok(()) => (StatusCode::OK, "ok\n").into_response(),
        Err(cause) => {
            error!(%cause, "unhealthy");
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "the queue cannot be reached\n",
            )
                .into_response()
        }
    }
}

/// What the queue was asked, or an error when it does not answer in time.
async fn in_time(
    deadline: Duration,
    asked: impl Future<Output = Result<(), QueueError>>,
) -> Result<(), QueueError> {
    match timeout(deadline, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(QueueError::Unreachable(format!(
            "no answer within {deadline:?}"
        ))),
    }
}

fn wants_json(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|types| types.contains("application/json"))
}

/// One line for each request. The URL is never in it, as it may carry the token.
fn log(delivery: &Delivery<'_>, result: &Result<Answer, Refusal>) {
    let is_short = |text: &&str| text.len() <= LOGGED_HEADER_MAX_BYTES;
    let (event, delivery) = (
        delivery.event.filter(is_short),
        delivery.id.filter(is_short),
    );
    match result {
        Ok(Answer::Queued(BuildRequest {
            id, repo, revision, ..
        })) => {
            info!(delivery, event, build = %id, %repo, %revision, "queued");
        }
        Ok(Answer::Ignored(why)) => info!(delivery, event, %why, "ignored"),
        Err(Refusal::Queue(cause)) => error!(delivery, event, %cause, "not queued"),
        Err(why) => warn!(delivery, event, %why, "refused"),
    }
}

/// The JSON answer to a push that builds.
#[derive(Serialize)]
struct QueuedJson<'a> {
    build: String,
    repository: &'a str,
    revision: String,
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    ref_name: Option<&'a str>,
}

#[derive(Serialize)]
struct IgnoredJson {
    ignored: String,
}

#[derive(Serialize)]
struct RefusedJson {
    error: String,
}

impl Answer {
    fn render(&self, as_json: bool) -> Response {
        match self {
            Self::Queued(request) if as_json => {
                let answer = QueuedJson {
                    build: request.id.to_string(),
                    repository: request.repo.as_str(),
                    revision: request.revision.to_string(),
                    ref_name: request.ref_name(),
                };
                json(StatusCode::ACCEPTED, &answer)
            }
            Self::Queued(request) => line(StatusCode::ACCEPTED, &request.id),
            Self::Ignored(why) if as_json => {
                let ignored = why.to_string();
                json(StatusCode::OK, &IgnoredJson { ignored })
            }
            Self::Ignored(why) => line(StatusCode::OK, why),
        }
    }
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unproven(_) => StatusCode::UNAUTHORIZED,
            Self::Body(BodyError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Body(BodyError::TooSlow) => StatusCode::REQUEST_TIMEOUT,
            Self::Body(BodyError::TooMany) | Self::Queue(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Refused(Refused::RepoNotConfigured(_)) => StatusCode::FORBIDDEN,
            Self::Body(BodyError::Broken(_))
            | Self::Malformed(_)
            | Self::Refused(Refused::Malformed(_) | Refused::RepoNotNamed) => {
                StatusCode::BAD_REQUEST
            }
        }
    }

    fn render(&self, as_json: bool) -> Response {
        let status = self.status();
        let mut response = if as_json {
            let error = self.to_string();
            json(status, &RefusedJson { error })
        } else {
            line(status, self)
        };
        if status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

fn line(status: StatusCode, text: &impl ToString) -> Response {
    let mut body = text.to_string();
    body.push('\n');
    (status, body).into_response()
}

fn json(status: StatusCode, answer: &impl Serialize) -> Response {
    let mut body = serde_json::to_string(answer).expect("string fields only");
    body.push('\n');
    (status, [(CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_queue_that_never_answers_is_not_waited_for() {
        let asked = in_time(Duration::from_millis(1), std::future::pending());
        let answer = timeout(Duration::from_secs(10), asked).await;
        let error = answer.expect("an end").expect_err("no answer");
        assert_eq!(
            error.to_string(),
            "the queue cannot be reached: no answer within 1ms"
        );
    }
}
