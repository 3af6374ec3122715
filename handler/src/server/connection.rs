//! One connection, from its first request to its end.

use std::convert::Infallible;
use std::pin::pin;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::pace::{Pace, PacedBody, PacedStream};
use super::seats::Seat;
use crate::limits::Limits;

/// Bounds hyper's buffers of one connection, and with them a request's head. A usual push, head
/// and body, fits and so is read at once.
const BUFFER_BYTES: usize = 16 << 10;

/// Serves requests until the peer closes or takes too long, or `drain` asks for the end.
pub(super) async fn serve<S>(
    stream: S,
    router: Router,
    limits: &Limits,
    seat: &Seat,
    drain: &CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let pace = Pace::new(limits);
    let router = TowerToHyperService::new(router);
    let service = service_fn(|mut request: Request<Incoming>| {
        pace.exchange();
        request.extensions_mut().insert(seat.proof().clone());
        let response = router.call(request);
        let pace = pace.clone();
        async move {
            let response = response.await?;
            seat.answered();
            Ok::<_, Infallible>(response.map(|body| PacedBody::new(body, pace)))
        }
    });
    let stream = TokioIo::new(PacedStream::new(stream, pace.clone()));
    let mut connection = pin!(
        http1::Builder::new()
            .header_read_timeout(None)
            .max_buf_size(BUFFER_BYTES)
            // Otherwise hyper reads ahead while a request is answered, to see the peer leave, and
            // that takes another buffer. An answer does not take long; a push that was sent whole
            // is stored whether or not its sender waits.
            .half_close(true)
            .serve_connection(stream, service)
    );
    let mut too_slow = pin!(pace.too_slow());
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(cause) = ended {
                    debug!(%cause, "connection broke");
                }
                return;
            }
            () = too_slow.as_mut() => return debug!("peer too slow"),
            () = drain.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
