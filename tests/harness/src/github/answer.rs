//! The answers of both servers, with GitHub's status codes and words.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::hooks::{Delivery, KnownHook};
use super::record::{CommitState, Status};
use super::route::Route;
use super::{Body, State};
use crate::payload::Push;

/// GitHub's limit for a status's description, in characters.
const DESCRIPTION_LIMIT: usize = 140;

type Answer = Result<Response<Body>, Refusal>;

/// Does what the request asks for.
pub(super) async fn answer(
    state: &Arc<State>,
    route: Route,
    request: Request<Incoming>,
) -> Response<Body> {
    let answer = match refuse_stranger(state, &route, &request) {
        Err(refusal) => Err(refusal),
        Ok(()) => match route {
            Route::PostStatus { repo, sha } => post_status(state, repo, &sha, request).await,
            Route::ListStatuses { repo, reference } => {
                list_statuses(state, &repo, &reference, &request)
            }
            Route::Commit { repo, reference } => commit(state, &repo, &reference, &request),
            Route::Tarball { repo, reference } => redirect(state, &repo, &reference, &request),
            Route::Compare { repo, base, head } => compare(state, &repo, &base, &head),
            Route::GitCommit { repo, sha } => git_commit(state, &repo, &sha),
            Route::Repository { repo } => repository(state, repo),
            Route::Hooks { owner } => Ok(hooks(state, &owner)),
            Route::HookDeliveries { owner, hook } => {
                hook_deliveries(state, &owner, &hook, &request)
            }
            Route::HookDelivery {
                owner,
                hook,
                delivery,
            } => hook_delivery(state, &owner, &hook, &delivery),
            Route::Codeload => tarball(state, &request),
            Route::AllStatuses => Ok(json_answer(200, &json!(state.record.borrow().statuses))),
            Route::PushPayload => push_payload(state, &request),
            Route::Unknown => Err(Refusal::not_found()),
        },
    };
    answer.unwrap_or_else(Refusal::into_response)
}

/// An answer of this status code with GitHub's error body.
pub(super) fn error(code: u16, message: &str) -> Response<Body> {
    json_answer(code, &json!({ "message": message }))
}

fn refuse_stranger(
    state: &State,
    route: &Route,
    request: &Request<Incoming>,
) -> Result<(), Refusal> {
    // GitHub refuses every client that doesn't name itself, whatever its token.
    if route.is_private() && !request.headers().contains_key(header::USER_AGENT) {
        let message = "Request forbidden by administrative rules. Please make sure your request has a User-Agent header";
        return Err(Refusal::new(403, message));
    }
    if route.is_private() && !is_authorized(state, request) {
        return Err(Refusal::new(401, "Bad credentials"));
    }
    Ok(())
}

fn is_authorized(state: &State, request: &Request<Incoming>) -> bool {
    let value = request.headers().get(header::AUTHORIZATION);
    let Some((scheme, token)) = value.and_then(|value| value.to_str().ok()?.split_once(' ')) else {
        return false;
    };
    let is_known = ["bearer", "token"]
        .iter()
        .any(|known| scheme.eq_ignore_ascii_case(known));
    is_known && token == state.token
}

#[derive(Deserialize)]
struct NewStatus {
    state: Value,
    target_url: Option<String>,
    description: Option<String>,
    context: Option<String>,
}

async fn post_status(state: &State, repo: String, sha: &str, request: Request<Incoming>) -> Answer {
    let body = request.into_body().collect().await;
    let body = body
        .map_err(|_| Refusal::new(400, "The body did not arrive"))?
        .to_bytes();
    let new: NewStatus =
        serde_json::from_slice(&body).map_err(|_| Refusal::new(400, "Problems parsing JSON"))?;
    // GitHub takes full ids only here; a branch's name is no sha.
    if state.resolve(&repo, sha)?.as_deref() != Some(sha) {
        return Err(Refusal::no_commit(sha));
    }
    let status = store(state, repo, sha, new)?;
    Ok(json_answer(201, &json!(status)))
}

fn store(state: &State, repo: String, sha: &str, new: NewStatus) -> Result<Status, Refusal> {
    let commit_state: CommitState = serde_json::from_value(new.state)
        .map_err(|_| Refusal::invalid("state", "state is not included in the list"))?;
    if new
        .description
        .iter()
        .any(|text| text.chars().count() > DESCRIPTION_LIMIT)
    {
        let message = "description is too long (maximum is 140 characters)";
        return Err(Refusal::invalid("description", message));
    }
    if new
        .target_url
        .iter()
        .any(|url| !url.starts_with("http://") && !url.starts_with("https://"))
    {
        return Err(Refusal::invalid(
            "target_url",
            "target_url must use http(s) scheme",
        ));
    }
    let mut status = Status {
        id: 0,
        repo,
        sha: sha.to_owned(),
        state: commit_state,
        target_url: new.target_url,
        description: new.description,
        context: new.context.unwrap_or_else(|| "default".to_owned()),
        created_at: SystemTime::now(),
    };
    state.record.send_modify(|record| {
        status.id = record.statuses.len() + 1;
        record.statuses.push(status.clone());
    });
    Ok(status)
}

fn list_statuses(
    state: &State,
    repo: &str,
    reference: &str,
    request: &Request<Incoming>,
) -> Answer {
    let sha = state
        .resolve(repo, reference)?
        .ok_or_else(|| Refusal::no_commit(reference))?;
    let query = query(request);
    let number = |name, default| {
        query
            .get(name)
            .and_then(|n| n.parse().ok())
            .unwrap_or(default)
    };
    let (page, per_page): (usize, usize) = (number("page", 1), number("per_page", 30).min(100));
    let newest_first = state.record.borrow().of(&sha).into_iter().rev();
    let page: Vec<Status> = newest_first
        .skip((page.max(1) - 1) * per_page)
        .take(per_page)
        .collect();
    Ok(json_answer(200, &json!(page)))
}

fn commit(state: &State, repo: &str, reference: &str, request: &Request<Incoming>) -> Answer {
    let sha = state
        .resolve(repo, reference)?
        .ok_or_else(|| Refusal::no_commit(reference))?;
    let accept = request.headers().get(header::ACCEPT);
    if accept.is_some_and(|accept| accept.as_bytes() == b"application/vnd.github.sha") {
        return Ok(Response::new(whole(sha)));
    }
    let message = state.message(repo, &sha);
    Ok(json_answer(
        200,
        &json!({ "sha": sha, "commit": { "message": message } }),
    ))
}

fn compare(state: &State, repo: &str, base: &str, head: &str) -> Answer {
    let commit = |reference: &str| {
        let found = state.resolve(repo, reference)?;
        found.ok_or_else(Refusal::not_found)
    };
    let status = state.comparison(repo, &commit(base)?, &commit(head)?);
    Ok(json_answer(200, &json!({ "status": status })))
}

fn git_commit(state: &State, repo: &str, sha: &str) -> Answer {
    // Full ids only, as with GitHub.
    if state.resolve(repo, sha)?.as_deref() != Some(sha) {
        return Err(Refusal::not_found());
    }
    let message = state.message(repo, sha);
    Ok(json_answer(200, &json!({ "sha": sha, "message": message })))
}

fn repository(state: &State, repo: String) -> Answer {
    match state.content().repos.contains_key(&repo) {
        true => Ok(json_answer(200, &json!({ "full_name": repo }))),
        false => Err(Refusal::not_found()),
    }
}

/// GitHub's API never serves a tarball: it points to another host, with a token that lasts
/// for minutes. This one lasts for one request.
fn redirect(state: &State, repo: &str, reference: &str, request: &Request<Incoming>) -> Answer {
    let sha = state
        .resolve(repo, reference)?
        .ok_or_else(Refusal::not_found)?;
    let token = Uuid::new_v4().simple().to_string();
    let codeload = state.codeload_url(request.headers().get(header::HOST));
    let location = format!("{codeload}/{repo}/legacy.tar.gz/{sha}?token={token}");
    state.allow_download(token, repo, sha);
    let redirect = Response::builder()
        .status(StatusCode::FOUND)
        .header(header::LOCATION, location)
        .body(whole(""));
    Ok(redirect.expect("the location is a valid header"))
}

fn tarball(state: &State, request: &Request<Incoming>) -> Answer {
    let query = query(request);
    let token = query.get("token").ok_or_else(Refusal::not_found)?;
    let tarball = state.take_download(token).ok_or_else(Refusal::not_found)?;
    let tarball = tarball.map_err(|error| Refusal::new(500, &error.to_string()))?;
    let answer = Response::builder()
        .header(header::CONTENT_TYPE, "application/x-gzip")
        .body(tarball);
    Ok(answer.expect("the header is valid"))
}

fn hooks(state: &State, owner: &str) -> Response<Body> {
    let content = state.content();
    let hooks = content.hooks.iter().filter(|hook| hook.owner == owner);
    let hooks: Vec<Value> = hooks.map(KnownHook::json).collect();
    json_answer(200, &json!(hooks))
}

/// Newest first; the cursor is the number of the delivery that a page begins with.
fn hook_deliveries(state: &State, owner: &str, hook: &str, request: &Request<Incoming>) -> Answer {
    let query = query(request);
    let number = |name| query.get(name).and_then(|n| n.parse::<u64>().ok());
    let first = number("cursor").unwrap_or(u64::MAX);
    let per_page = number("per_page").unwrap_or(30).min(100) as usize;
    let content = state.content();
    let hook = known_hook(&content.hooks, owner, hook)?;
    let newest_first = hook.remembered().rev();
    let mut rest = newest_first.skip_while(|delivery| delivery.id > first);
    let page: Vec<Value> = rest.by_ref().take(per_page).map(Delivery::json).collect();
    let mut answer = json_answer(200, &json!(page));
    if let Some(next) = rest.next() {
        // The name leads elsewhere, as behind a proxy.
        let link = format!(
            "<https://api.github.example/hooks/{}/deliveries?per_page={per_page}&cursor={}>; rel=\"next\"",
            hook.id, next.id
        );
        let link = HeaderValue::try_from(link).expect("the link is a valid header");
        answer.headers_mut().insert(header::LINK, link);
    }
    Ok(answer)
}

fn hook_delivery(state: &State, owner: &str, hook: &str, delivery: &str) -> Answer {
    let content = state.content();
    let hook = known_hook(&content.hooks, owner, hook)?;
    Ok(json_answer(
        200,
        &known_delivery(hook, delivery)?.whole_json(),
    ))
}

fn known_delivery<'a>(hook: &'a KnownHook, id: &str) -> Result<&'a Delivery, Refusal> {
    let known = hook.remembered().find(|known| known.id.to_string() == id);
    known.ok_or_else(Refusal::not_found)
}

fn known_hook<'a>(
    hooks: &'a [KnownHook],
    owner: &str,
    hook: &str,
) -> Result<&'a KnownHook, Refusal> {
    let known = hooks
        .iter()
        .find(|known| known.owner == owner && known.id.to_string() == hook);
    known.ok_or_else(Refusal::not_found)
}

fn push_payload(state: &State, request: &Request<Incoming>) -> Answer {
    let query = query(request);
    let (Some(repo), Some(reference)) = (query.get("repo"), query.get("ref")) else {
        return Err(Refusal::new(
            400,
            "repo=owner/name and ref=refs/heads/… are needed",
        ));
    };
    let sha = state
        .resolve(repo, reference)?
        .ok_or_else(|| Refusal::no_commit(reference))?;
    let message = state.message(repo, &sha).unwrap_or_default();
    let push = Push {
        repo,
        reference,
        after: &sha,
        message: &message,
    };
    Ok(json_answer(200, &push.payload()))
}

fn query(request: &Request<Incoming>) -> HashMap<String, String> {
    let query = request.uri().query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect()
}

fn json_answer(code: u16, body: &Value) -> Response<Body> {
    let answer = Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, "application/json; charset=utf-8")
        .body(whole(body.to_string()));
    answer.expect("the status code is valid")
}

fn whole(body: impl Into<Bytes>) -> Body {
    Full::new(body.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A request that GitHub would not grant.
#[derive(Debug)]
pub(super) struct Refusal {
    code: u16,
    body: Value,
}

impl Refusal {
    fn new(code: u16, message: &str) -> Self {
        Self {
            code,
            body: json!({ "message": message }),
        }
    }

    pub(super) fn not_found() -> Self {
        Self::new(404, "Not Found")
    }

    fn no_commit(reference: &str) -> Self {
        Self::new(422, &format!("No commit found for SHA: {reference}"))
    }

    fn invalid(field: &str, message: &str) -> Self {
        let error =
            json!({ "resource": "Status", "code": "custom", "field": field, "message": message });
        Self {
            code: 422,
            body: json!({ "message": "Validation Failed", "errors": [error] }),
        }
    }

    fn into_response(self) -> Response<Body> {
        json_answer(self.code, &self.body)
    }
}
