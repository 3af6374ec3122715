//! `/builds/<uuid>`: the outcome of a build and its log, sent as it is read.

use std::io;
use std::path::{Path, PathBuf};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{self, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use shared::build::{Build, BuildId, Site, log_path};
use shared::ledger::Ledger;
use shared::mask::Secrets;
use shared::queue::Queue;
use tokio::fs::File;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

use crate::log::{StoredLog, Wanted};
use crate::page::{self, LogEscaper};

/// The size of the pieces in which a log is read.
const CHUNK_BYTES: usize = 64 << 10;

/// The sources of the pages.
#[derive(Debug, Clone)]
pub struct Pages {
    /// The builds.
    pub ledger: Ledger,
    /// The queue that the builds come from.
    pub queue: Queue,
    /// Where people see the repositories.
    pub site: Option<Site>,
    /// The folder below which the logs lie.
    pub data_dir: PathBuf,
    /// The values that no page must show, not even as a branch's name.
    pub secrets: Secrets,
    /// The service stops: no log is followed any more.
    pub closing: CancellationToken,
}

/// Returns the routes of the pages.
pub fn router(pages: Pages) -> Router {
    Router::new()
        .route("/builds/{id}", get(build_page))
        .route("/builds/{id}/log", get(build_log))
        .route("/readyz", get(ready))
        .with_state(pages)
}

/// Answers whether pushes are taken and built: queue and records can be used.
async fn ready(State(pages): State<Pages>) -> Response {
    let checked = tokio::join!(pages.queue.check(), pages.ledger.check());
    let problem = match checked {
        (Err(error), _) => error.to_string(),
        (_, Err(error)) => error.to_string(),
        (Ok(()), Ok(())) => return "ok\n".into_response(),
    };
    tracing::warn!(error = problem, "not ready");
    (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
}

async fn build_page(
    State(pages): State<Pages>,
    extract::Path(id): extract::Path<String>,
) -> Response {
    match pages.find(&id).await {
        Ok(build) => {
            let log = log_path(&pages.data_dir, build.request.id);
            render(&build, pages.site.as_ref(), &pages.secrets, &log).await
        }
        Err(answer) => answer,
    }
}

async fn build_log(
    State(pages): State<Pages>,
    extract::Path(id): extract::Path<String>,
    wanted: Result<Query<Wanted>, QueryRejection>,
    asked: HeaderMap,
) -> Response {
    let build = match pages.find(&id).await {
        Ok(build) => build,
        Err(answer) => return answer,
    };
    let Ok(Query(wanted)) = wanted else {
        let text = "from is the number of a byte, follow is 1\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    let id = build.request.id;
    let log = StoredLog {
        build: id,
        path: log_path(&pages.data_dir, id),
        ledger: pages.ledger,
        closing: pages.closing,
    };
    let answered = log.answer(&build, wanted, &asked).await;
    answered.unwrap_or_else(|error| {
        tracing::error!(build = %id, %error, "failed to read a log");
        let text = "the log cannot be read\n";
        (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
    })
}

impl Pages {
    /// The build of this address, or the answer where there is none.
    async fn find(&self, id: &str) -> Result<Build, Response> {
        // A malformed id is no build, like an unknown one.
        let id = id.parse::<BuildId>().map_err(|_| not_found())?;
        match self.ledger.find(id).await {
            Ok(build) => build.ok_or_else(not_found),
            Err(error) => {
                tracing::error!(build = %id, %error, "failed to read the build for its page");
                let text = "the build records cannot be read\n";
                Err((StatusCode::INTERNAL_SERVER_ERROR, text).into_response())
            }
        }
    }
}

fn not_found() -> Response {
    let headers = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (StatusCode::NOT_FOUND, headers, "no such build\n").into_response()
}

async fn render(build: &Build, site: Option<&Site>, secrets: &Secrets, log: &Path) -> Response {
    let parts = piece(secrets.mask(&page::head(build, site)))
        .chain(escaped_log(log).await)
        .chain(piece(page::foot().to_owned()));
    (page::HEADERS.clone(), Body::from_stream(parts)).into_response()
}

fn piece(text: String) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::iter([Ok(Bytes::from(text))])
}

/// Returns the log as it stands now; nothing while the hook has not started.
async fn escaped_log(path: &Path) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
    let file = File::open(path).await.ok();
    let chunks = stream::iter(file).flat_map(|file| ReaderStream::with_capacity(file, CHUNK_BYTES));
    let ended = stream::iter([Ok(None)]);
    let chunks = chunks.map_ok(Some).chain(ended);
    chunks.scan(Some(LogEscaper::default()), |escaper, chunk| {
        let text = chunk.map(|chunk| match (chunk, escaper.as_mut()) {
            (Some(chunk), Some(escaper)) => escaper.push(&chunk),
            _ => escaper.take().map(LogEscaper::finish).unwrap_or_default(),
        });
        std::future::ready(Some(text.map(Bytes::from)))
    })
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use axum::http::header;
    use shared::build::Outcome;
    use shared::build::samples::ended;

    use super::*;

    async fn served(log: &Path) -> (Response<()>, String) {
        let build = ended(Outcome::Passed, 1);
        let (parts, body) = render(&build, None, &Secrets::default(), log)
            .await
            .into_parts();
        let body = to_bytes(body, usize::MAX).await.expect("a whole page");
        let text = String::from_utf8(body.into()).expect("UTF-8");
        (Response::from_parts(parts, ()), text)
    }

    #[tokio::test]
    async fn a_log_of_many_pieces_is_served_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("build.log");
        // The character lies across the border of two pieces, and the last one is cut off.
        let log = [
            &b"<"[..],
            &b"x".repeat(CHUNK_BYTES - 2),
            "✓".as_bytes(),
            b"\xe2",
        ]
        .concat();
        std::fs::write(&path, log).expect("written");
        let (_, page) = served(&path).await;
        let expected = format!(
            "<pre>\n&lt;{}✓\u{FFFD}</pre>\n",
            "x".repeat(CHUNK_BYTES - 2)
        );
        assert!(page.contains(&expected));
        assert!(page.ends_with("</html>\n"));
    }

    #[tokio::test]
    async fn a_page_without_a_log_has_all_headers() {
        let (response, page) = served(Path::new("/nonexistent")).await;
        assert!(page.contains("<pre>\n</pre>"), "{page}");
        assert_eq!(response.headers(), &*page::HEADERS);
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            "text/html; charset=utf-8"
        );
    }
}
