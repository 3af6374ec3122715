//! How long a peer may take with what it does now, and the transport that watches it.
//!
//! hyper has one deadline, from the end of a response to the end of the next head: short, it
//! closes connections that a proxy wants to use again; long, it gives a slow sender of heads all
//! that time. So idling and sending are told apart here, and so is a peer that stops reading.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

use crate::limits::Limits;

/// Stands for "no deadline"; tokio's timers reach about two years.
const FAR: Duration = Duration::from_secs(24 * 60 * 60);

/// What a peer lets us wait for, and until when. Clones watch the same connection: its transport,
/// its service and its response body each see a part of it, all within one task.
#[derive(Debug, Clone)]
pub(super) struct Pace(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    phase: Phase,
    phase_deadline: Option<Instant>,
    stall_deadline: Option<Instant>,
    head: Duration,
    idle: Duration,
    stall: Duration,
    linger: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The peer sends a head.
    Head,
    /// A request is being answered. The handler has its own deadline for the body.
    Exchange,
    /// The peer may send another request.
    Idle,
    /// Our side is closed; the peer may still be sending.
    Linger,
}

impl Pace {
    /// The pace of a new connection.
    pub(super) fn new(limits: &Limits) -> Self {
        let state = State {
            phase: Phase::Head,
            phase_deadline: Some(Instant::now() + limits.head),
            stall_deadline: None,
            head: limits.head,
            idle: limits.idle,
            stall: limits.stall,
            linger: limits.linger,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// A head is complete.
    pub(super) fn exchange(&self) {
        self.state().enter(Phase::Exchange);
    }

    /// Completes when the peer took too long. To be polled after the connection, in its task:
    /// nothing else wakes it when a deadline moves closer.
    pub(super) async fn too_slow(&self) {
        let mut timer = pin!(sleep_until(Instant::now() + FAR));
        poll_fn(|context| {
            loop {
                let deadline = self.state().deadline();
                // Deadlines mostly move away, and then it is cheaper to wake up once in vain.
                if deadline < timer.deadline() {
                    timer.as_mut().reset(deadline);
                }
                ready!(timer.as_mut().poll(context));
                if deadline <= Instant::now() {
                    return Poll::Ready(());
                }
                timer.as_mut().reset(deadline);
            }
        })
        .await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole after every statement, also if a panic poisoned the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn enter(&mut self, phase: Phase) {
        let limit = match phase {
            Phase::Head => Some(self.head),
            Phase::Exchange => None,
            Phase::Idle => Some(self.idle),
            Phase::Linger => Some(self.linger),
        };
        self.phase = phase;
        self.phase_deadline = limit.map(|limit| Instant::now() + limit);
    }

    fn received(&mut self) {
        if self.phase == Phase::Idle {
            self.enter(Phase::Head);
        }
    }

    /// A write or a flush: what TLS has taken may wait in it until it is flushed. hyper flushes only what
    /// it has written whole.
    fn sent<T>(&mut self, result: &Poll<T>) {
        if result.is_ready() {
            self.stall_deadline = None;
        } else if self.stall_deadline.is_none() {
            self.stall_deadline = Some(Instant::now() + self.stall);
        }
    }

    fn deadline(&self) -> Instant {
        let deadlines = [self.phase_deadline, self.stall_deadline];
        let nearest = deadlines.into_iter().flatten().min();
        nearest.unwrap_or_else(|| Instant::now() + FAR)
    }
}

/// A transport that tells the pace what the peer does, and that lingers when it is closed.
pub(super) struct PacedStream<S> {
    stream: S,
    pace: Pace,
}

impl<S> PacedStream<S> {
    pub(super) fn new(stream: S, pace: Pace) -> Self {
        Self { stream, pace }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PacedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.pace.state().received();
        }
        result
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for PacedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.pace.state().sent(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.pace.state().sent(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(context);
        self.pace.state().sent(&result);
        result
    }

    /// Closes our side, then drops what still comes until the peer closes too: see
    /// [`Limits::linger`].
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let lingers = self.pace.state().phase == Phase::Linger;
        if !lingers {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.pace.state().enter(Phase::Linger);
        }
        let mut scratch = [0; 4096];
        loop {
            let mut dropped = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut dropped))?;
            if dropped.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// A response's body. hyper drops it when its last byte is on the way; then the peer may idle.
pub(super) struct PacedBody {
    body: Body,
    pace: Pace,
}

impl PacedBody {
    pub(super) fn new(body: Body, pace: Pace) -> Self {
        Self { body, pace }
    }
}

impl hyper::body::Body for PacedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for PacedBody {
    fn drop(&mut self) {
        self.pace.state().enter(Phase::Idle);
    }
}
