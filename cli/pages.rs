//! `/builds/<uuid>`: what a build came to and what it wrote, sent as it is read.

use std::io;
use std::path::{Path, PathBuf};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{self, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use shared::build::BuildId;
use tokio::fs::File;
use tokio_util::io::ReaderStream;
use worker::Worker;
use worker::page::{self, LogEscaper};
use worker::record::{Build, Records};
use worker::report::Links;

/// The size of the pieces in which a log is read.
const CHUNK_BYTES: usize = 64 << 10;

#[derive(Clone)]
struct Pages {
    records: Records,
    links: Links,
    data_dir: PathBuf,
}

/// The pages of all builds of this worker.
pub(crate) fn router(worker: &Worker, data_dir: &Path) -> Router {
    Router::new()
        .route("/builds/{id}", get(build_page))
        .with_state(Pages {
            records: worker.records(),
            links: worker.links(),
            data_dir: data_dir.to_owned(),
        })
}

async fn build_page(
    State(pages): State<Pages>,
    extract::Path(id): extract::Path<String>,
) -> Response {
    // A malformed id is no build, like an unknown one.
    let Ok(id) = id.parse::<BuildId>() else {
        return not_found();
    };
    match pages.records.find(id).await {
        Ok(Some(build)) => pages.render(&build).await,
        Ok(None) => not_found(),
        Err(error) => {
            tracing::error!(%error, "cannot show a build");
            let text = "the build records cannot be read\n";
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "no such build\n").into_response()
}

impl Pages {
    async fn render(&self, build: &Build) -> Response {
        let head = page::head(build, self.links.web_url.as_deref());
        let log = worker::log::path(&self.data_dir, build.request.id);
        let parts = piece(head)
            .chain(escaped_log(&log).await)
            .chain(piece(page::foot().to_owned()));
        let mut response = Body::from_stream(parts).into_response();
        for (name, value) in page::HEADERS {
            let (name, value) = (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
            response.headers_mut().insert(name, value);
        }
        response
    }
}

fn piece(text: String) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::iter([Ok(Bytes::from(text))])
}

/// The log as it stands now; nothing while the hook has not started.
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
