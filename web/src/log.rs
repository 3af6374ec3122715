//! `/builds/<uuid>/log`: the stored log as it is, from any byte on, and as it grows.
//!
//! A log has one address, its bytes: whoever was cut off asks again from the byte that comes next, and has
//! no gap and no repetition. Bytes that were sent never change while the build runs.

use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_compression::tokio::bufread::GzipEncoder;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use shared::build::{Build, BuildId, CommitState};
use shared::ledger::Ledger;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, BufReader};
use tokio::time::{Instant, sleep};
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

/// The size of the pieces in which a log is read.
const CHUNK_BYTES: usize = 64 << 10;
/// How often it is looked whether a log has grown.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often it is looked whether the build has ended.
const STATE_INTERVAL: Duration = Duration::from_secs(1);

/// The byte that the answer begins with.
const LOG_FROM: HeaderName = HeaderName::from_static("log-from");
/// The byte that comes next; not on an answer that follows the log.
const LOG_NEXT: HeaderName = HeaderName::from_static("log-next");
/// `true` as long as the build runs: there will be more.
const LOG_MORE: HeaderName = HeaderName::from_static("log-more");

/// What is asked for of a log.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Wanted {
    /// The first byte; 0 without it, and the end for one that is not there yet.
    #[serde(default)]
    from: u64,
    /// `1`: the answer goes on until the build ends.
    #[serde(default)]
    follow: u8,
    /// With any value: a browser stores it as a file.
    download: Option<String>,
}

/// A stored log.
#[derive(Debug, Clone)]
pub(crate) struct StoredLog {
    pub(crate) build: BuildId,
    pub(crate) path: PathBuf,
    pub(crate) ledger: Ledger,
    /// The service stops: nothing is followed any more.
    pub(crate) closing: CancellationToken,
}

impl StoredLog {
    /// Answers with the part of the log that is wanted.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(crate) async fn answer(
        self,
        build: &Build,
        wanted: Wanted,
        asked: &HeaderMap,
    ) -> io::Result<Response> {
        let runs = build.commit_state() == CommitState::Pending && !build.is_elsewhere;
        let size = match tokio::fs::metadata(&self.path).await {
            Ok(file) => file.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let mut headers = headers(self.build, &wanted);
        headers.insert(
            LOG_MORE,
            HeaderValue::from_static(if runs { "true" } else { "false" }),
        );
        if wanted.follow == 1 && runs {
            headers.insert(LOG_FROM, wanted.from.into());
            let body = Body::from_stream(self.follow(wanted.from));
            return Ok((headers, body).into_response());
        }
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        let (status, from, to) = match range(asked, size) {
            Ok(Some((from, to))) => (StatusCode::PARTIAL_CONTENT, from, to),
            Ok(None) => (StatusCode::OK, wanted.from.min(size), size),
            Err(Unsatisfiable) => {
                headers.insert(header::CONTENT_RANGE, text(format!("bytes */{size}")));
                return Ok((StatusCode::RANGE_NOT_SATISFIABLE, headers).into_response());
            }
        };
        headers.insert(LOG_FROM, from.into());
        headers.insert(LOG_NEXT, to.into());
        let part = part(&self.path, from, to - from).await?;
        if status == StatusCode::PARTIAL_CONTENT {
            let range = format!("bytes {from}-{}/{size}", to - 1);
            headers.insert(header::CONTENT_RANGE, text(range));
        } else if takes_gzip(asked) {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
            let reader = BufReader::with_capacity(CHUNK_BYTES, part);
            let packed = ReaderStream::with_capacity(GzipEncoder::new(reader), CHUNK_BYTES);
            return Ok((headers, Body::from_stream(packed)).into_response());
        }
        headers.insert(header::CONTENT_LENGTH, (to - from).into());
        let body = Body::from_stream(ReaderStream::with_capacity(part, CHUNK_BYTES));
        Ok((status, headers, body).into_response())
    }

    /// The bytes from here on, as they come, until the build has ended.
    fn follow(self, from: u64) -> impl stream::Stream<Item = io::Result<Bytes>> + Send {
        let begins = Follower {
            log: self,
            place: from,
            state_looked_at: None,
            has_ended: false,
        };
        stream::try_unfold(begins, async |mut follower| {
            let bytes = follower.next().await?;
            Ok(bytes.map(|bytes| (bytes, follower)))
        })
    }
}

/// One reader of a log that grows.
struct Follower {
    log: StoredLog,
    place: u64,
    state_looked_at: Option<Instant>,
    has_ended: bool,
}

impl Follower {
    /// Returns the next bytes; nothing after the last one.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            // Before the look at the log: what comes after it belongs to the end.
            let is_last = self.has_ended;
            let bytes = read(&self.log.path, self.place).await?;
            if !bytes.is_empty() {
                self.place += bytes.len() as u64;
                return Ok(Some(bytes));
            }
            if is_last || self.log.closing.is_cancelled() {
                return Ok(None);
            }
            let looked_at = self.state_looked_at;
            if looked_at.is_none_or(|time| time.elapsed() >= STATE_INTERVAL) {
                self.state_looked_at = Some(Instant::now());
                self.has_ended = self.ended().await;
                if self.has_ended {
                    continue;
                }
            }
            tokio::select! {
                () = sleep(POLL_INTERVAL) => {}
                () = self.log.closing.cancelled() => {}
            }
        }
    }

    async fn ended(&self) -> bool {
        match self.log.ledger.find(self.log.build).await {
            Ok(Some(build)) => build.is_elsewhere || build.outcome().is_some(),
            Ok(None) => true,
            // The records may come back.
            Err(_) => false,
        }
    }
}

/// Reads what is there from this byte on, a piece of it at most. The file is opened anew each time: a
/// recording that is made once more is another file.
async fn read(path: &Path, from: u64) -> io::Result<Bytes> {
    let mut bytes = Vec::new();
    match part(path, from, CHUNK_BYTES as u64).await {
        Ok(mut part) => part.read_to_end(&mut bytes).await.map(drop)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(bytes.into())
}

/// So many bytes of a file from this one on; none of a file that is missing and of which none are wanted.
async fn part(path: &Path, from: u64, bytes: u64) -> io::Result<tokio::io::Take<File>> {
    let opened = match File::open(path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound && bytes == 0 => {
            File::open("/dev/null").await
        }
        opened => opened,
    };
    let mut file = opened?;
    file.seek(SeekFrom::Start(from)).await?;
    Ok(file.take(bytes))
}

/// The range that is asked for lies outside the log.
struct Unsatisfiable;

/// The one range that is asked for, as first byte and the one behind the last; nothing if all is, or several
/// ranges are: then all of it is answered.
fn range(asked: &HeaderMap, size: u64) -> Result<Option<(u64, u64)>, Unsatisfiable> {
    let value = asked
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok());
    let Some(parsed) = value.and_then(|value| http_range_header::parse_range_header(value).ok())
    else {
        return Ok(None);
    };
    match parsed.validate(size).as_deref() {
        Ok([one]) => Ok(Some((*one.start(), one.end() + 1))),
        Ok(_) => Ok(None),
        Err(_) => Err(Unsatisfiable),
    }
}

fn takes_gzip(asked: &HeaderMap) -> bool {
    let values = asked.get_all(header::ACCEPT_ENCODING).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim() == "gzip")
}

fn headers(build: BuildId, wanted: &Wanted) -> HeaderMap {
    let mut headers: HeaderMap = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; sandbox",
        ),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ]
    .map(|(name, value)| (name, HeaderValue::from_static(value)))
    .into_iter()
    .collect();
    if wanted.download.is_some() {
        let disposition = format!("attachment; filename=\"{build}.log\"");
        headers.insert(header::CONTENT_DISPOSITION, text(disposition));
    }
    headers
}

fn text(value: String) -> HeaderValue {
    HeaderValue::try_from(value).expect("digits and ASCII letters")
}
