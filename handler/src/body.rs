//! A request's body, bounded in size, time and in what all of them together may hold.

use std::ops::Deref;
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::limits::Limits;

/// Reads bodies into memory, never more of it than the limits allow.
#[derive(Debug)]
pub(crate) struct BodyReader {
    deadline: Duration,
    max_bytes: usize,
    small_bytes: usize,
    large: Semaphore,
}

/// A whole body. While a large one lives, it holds one of the few permits.
#[derive(Debug)]
pub(crate) struct Buffered<'a> {
    bytes: Bytes,
    _permit: Option<SemaphorePermit<'a>>,
}

/// Why there is no whole body.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the body is larger than {} MiB", .max_bytes >> 20)]
    TooLarge { max_bytes: usize },
    #[error("the body took too long")]
    TooSlow,
    #[error("too many large requests at a time, deliver this again later")]
    TooMany,
    #[error("the body broke off")]
    Broken(#[source] axum::Error),
}

impl BodyReader {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            deadline: limits.body,
            max_bytes: limits.body_bytes,
            small_bytes: limits.small_body_bytes,
            large: Semaphore::new(limits.large_bodies),
        }
    }

    /// Reads a body to its end, or refuses it as soon as it is known to be too large.
    pub(crate) async fn read(&self, mut body: Body) -> Result<Buffered<'_>, BodyError> {
        let deadline = Instant::now() + self.deadline;
        let announced_bytes = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        self.check_size(announced_bytes)?;
        let first = next_chunk(&mut body, deadline).await?.unwrap_or_default();
        if body.is_end_stream() && first.len() <= self.small_bytes {
            // The usual push: one chunk, which needs no copy.
            return Ok(Buffered {
                bytes: first,
                _permit: None,
            });
        }
        self.collect(first, body, announced_bytes, deadline).await
    }

    async fn collect(
        &self,
        first: Bytes,
        mut body: Body,
        announced_bytes: usize,
        deadline: Instant,
    ) -> Result<Buffered<'_>, BodyError> {
        let mut permit = None;
        // What is announced is not there yet, and may never come.
        let mut bytes = Vec::with_capacity(announced_bytes.min(self.small_bytes));
        let mut next = Some(first);
        while let Some(chunk) = next {
            let size_bytes = bytes.len() + chunk.len();
            self.check_size(size_bytes)?;
            if permit.is_none() && size_bytes > self.small_bytes {
                permit = Some(self.permit(deadline).await?);
                bytes.reserve(announced_bytes.saturating_sub(bytes.len()));
            }
            bytes.extend_from_slice(&chunk);
            next = next_chunk(&mut body, deadline).await?;
        }
        Ok(Buffered {
            bytes: bytes.into(),
            _permit: permit,
        })
    }

    fn check_size(&self, size_bytes: usize) -> Result<(), BodyError> {
        if size_bytes > self.max_bytes {
            let max_bytes = self.max_bytes;
            return Err(BodyError::TooLarge { max_bytes });
        }
        Ok(())
    }

    async fn permit(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, BodyError> {
        let permit = timeout_at(deadline, self.large.acquire()).await;
        permit
            .map_err(|_elapsed| BodyError::TooMany)
            .map(|permit| permit.expect("the permits are never closed"))
    }
}

impl Deref for Buffered<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

async fn next_chunk(body: &mut Body, deadline: Instant) -> Result<Option<Bytes>, BodyError> {
    loop {
        match timeout_at(deadline, body.frame()).await {
            Err(_) => return Err(BodyError::TooSlow),
            Ok(None) => return Ok(None),
            Ok(Some(Err(cause))) => return Err(BodyError::Broken(cause)),
            Ok(Some(Ok(frame))) => {
                // Trailers say nothing that a webhook needs.
                if let Ok(chunk) = frame.into_data() {
                    return Ok(Some(chunk));
                }
            }
        }
    }
}
