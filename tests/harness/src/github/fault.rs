//! What can go wrong between a client and GitHub, on a test's order.

use std::collections::{HashMap, VecDeque};
use std::io;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use http_body_util::{BodyDataStream, BodyExt, StreamBody};
use hyper::body::Frame;

use super::Body;

/// What a fault is planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `POST /repos/{owner}/{repo}/statuses/{sha}`.
    PostStatus,
    /// `GET /repos/{owner}/{repo}/commits/{sha}/statuses`.
    ListStatuses,
    /// `GET /repos/{owner}/{repo}/commits/{ref}`.
    Commit,
    /// `GET /repos/{owner}/{repo}/tarball/{ref}`, which redirects.
    Tarball,
    /// `GET /repos/{owner}/{repo}/compare/{base}...{head}`.
    Compare,
    /// `GET /repos/{owner}/{repo}/git/commits/{sha}`.
    GitCommit,
    /// `GET /repos/{owner}/{repo}/hooks` and `GET /orgs/{org}/hooks`.
    Hooks,
    /// `GET …/hooks/{hook_id}/deliveries`.
    HookDeliveries,
    /// `GET …/hooks/{hook_id}/deliveries/{delivery_id}`.
    HookDelivery,
    /// The tarball itself, on the other host.
    Codeload,
}

/// One thing that goes wrong with one request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers this, and does nothing of what was asked.
    Answer {
        /// The HTTP status code.
        code: u16,
        /// Further headers, such as `Retry-After`.
        headers: Vec<(&'static str, String)>,
        /// The `message` of the JSON body.
        message: &'static str,
    },
    /// Never answers.
    Hang,
    /// Answers, but ends the connection after this many bytes of the body.
    CutAfter(usize),
    /// Answers, but falls silent after this many bytes of the body.
    StallAfter(usize),
    /// Does what was asked, and ends the connection before the answer.
    LoseAnswer,
}

impl Fault {
    /// An answer with this status code and nothing else.
    pub fn code(code: u16) -> Self {
        Self::Answer {
            code,
            headers: Vec::new(),
            message: "A fault that the test planned",
        }
    }

    /// GitHub's answer to a client that is too fast: 403 with `Retry-After`.
    pub fn secondary_limit(retry_after_s: u64) -> Self {
        Self::Answer {
            code: 403,
            headers: vec![("retry-after", retry_after_s.to_string())],
            message: "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.",
        }
    }

    /// The same where only the words tell it from a token that lacks a right, and no time is named.
    pub fn unannounced_limit() -> Self {
        Self::Answer {
            code: 403,
            headers: vec![("x-ratelimit-remaining", "4987".to_owned())],
            message: "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.",
        }
    }

    /// GitHub's answer when the hour's requests are used up, until `reset` (Unix time, seconds).
    pub fn primary_limit(reset: u64) -> Self {
        Self::Answer {
            code: 403,
            headers: vec![
                ("x-ratelimit-remaining", "0".to_owned()),
                ("x-ratelimit-reset", reset.to_string()),
            ],
            message: "API rate limit exceeded",
        }
    }
}

/// The faults that wait for their requests.
#[derive(Debug, Default)]
pub(super) struct Script {
    planned: HashMap<Endpoint, VecDeque<Fault>>,
}

impl Script {
    pub(super) fn plan(&mut self, endpoint: Endpoint, count: usize, fault: Fault) {
        let faults = self.planned.entry(endpoint).or_default();
        faults.extend(std::iter::repeat_n(fault, count));
    }

    pub(super) fn forget(&mut self, endpoint: Endpoint) {
        self.planned.remove(&endpoint);
    }

    pub(super) fn take(&mut self, endpoint: Endpoint) -> Option<Fault> {
        self.planned.get_mut(&endpoint)?.pop_front()
    }

    /// Faults that no request has met.
    pub(super) fn unmet(&self) -> Vec<(Endpoint, Fault)> {
        let of_endpoint = |(&endpoint, faults): (&Endpoint, &VecDeque<Fault>)| {
            faults
                .iter()
                .map(|fault| (endpoint, fault.clone()))
                .collect::<Vec<_>>()
        };
        self.planned.iter().flat_map(of_endpoint).collect()
    }
}

/// The first `limit` bytes, then an error: the server ends the connection.
pub(super) fn cut_after(body: Body, limit: usize) -> Body {
    let broken = stream::once(async {
        // The bytes before are written only when the body has nothing more at hand.
        tokio::task::yield_now().await;
        Err(io::Error::other("cut, as the test planned"))
    });
    streamed(first_bytes(body, limit).chain(broken))
}

/// The first `limit` bytes, then nothing, and no end.
pub(super) fn stall_after(body: Body, limit: usize) -> Body {
    streamed(first_bytes(body, limit).chain(stream::pending()))
}

/// A body of these chunks.
pub(super) fn streamed(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(chunks.map_ok(Frame::data)).boxed_unsync()
}

fn first_bytes(body: Body, limit: usize) -> impl Stream<Item = io::Result<Bytes>> {
    BodyDataStream::new(body)
        .scan(limit, |left, chunk| {
            let chunk = chunk.map(|bytes| bytes.slice(..bytes.len().min(*left)));
            *left -= chunk.as_ref().map_or(0, Bytes::len);
            async move { Some(chunk) }
        })
        .take_while(|chunk| {
            let more = !matches!(chunk, Ok(bytes) if bytes.is_empty());
            async move { more }
        })
}
