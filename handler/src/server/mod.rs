//! The listener: HTTP/1.1, or HTTPS where there is a certificate.
//!
//! `axum::serve` gives hyper no timer, so that its deadlines never end a connection; this accept
//! loop exists for the deadlines, the cap on connections, TLS and an orderly end.

mod descriptors;
mod seats;
mod tls;
mod pace;
mod connection;

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use shared::config::{ConfigError, ListenConfig};
use shared::process::shutdown::Shutdown;

use self::seats::{Seat, Seats};
use crate::limits::Limits;

/// How long nothing is accepted after the process ran out of what a connection needs (file
/// descriptors, memory). The connection stays in the backlog, so without a pause this would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A bound socket, ready to serve.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    limits: Limits,
}

impl Server {
    /// Reads the certificate and binds the socket; from now on connections wait in its backlog.
    ///
    /// # Errors
    /// The certificate cannot be used, or the address is not free.
    pub async fn bind(config: &ListenConfig) -> Result<Self, ConfigError> {
        let tls = config.cert_path.as_deref().map(tls::acceptor).transpose()?;
        let cannot_listen = |cause: io::Error| ConfigError {
            variable: match cause.kind() {
                ErrorKind::AddrNotAvailable => "BIND",
                _ => "PORT",
            },
            problem: format!("cannot listen on {}: {cause}", config.address),
        };
        let listener = TcpListener::bind(config.address)
            .await
            .map_err(cannot_listen)?;
        let address = listener.local_addr().map_err(cannot_listen)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        info!("listening on {scheme}://{address}");
        Ok(Self {
            listener,
            address,
            tls,
            limits: Limits::default(),
        })
    }

    /// The same server with other limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Where it listens: the port that the system chose, if it was asked to.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the shutdown drains. Then nothing more is accepted, and requests in flight
    /// have [`Limits::drain`] to end.
    pub async fn serve(self, router: Router, shutdown: &Shutdown) {
        let connections = TaskTracker::new();
        let connections_max = descriptors::connections(self.limits.connections);
        let seats = Seats::new(connections_max);
        let peers = Arc::new(Peers {
            tls: self.tls,
            router,
            limits: self.limits,
            drain: shutdown.drain.clone(),
            cut: shutdown.abort.child_token(),
        });
        let accepting = accept(&self.listener, &seats);
        tokio::pin!(accepting);
        while let Some((stream, seat)) =
            shutdown.drain.run_until_cancelled(accepting.as_mut()).await
        {
            let peers = Arc::clone(&peers);
            connections.spawn(async move { peers.attend(stream, seat).await });
            accepting.set(accept(&self.listener, &seats));
        }
        connections.close();
        if timeout(peers.limits.drain, connections.wait())
            .await
            .is_err()
        {
            peers.cut.cancel();
            connections.wait().await;
        }
    }
}

/// What all connections have in common.
struct Peers {
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
    /// No request after the one in flight.
    drain: CancellationToken,
    /// No patience any more.
    cut: CancellationToken,
}

impl Peers {
    async fn attend(&self, stream: TcpStream, seat: Seat) {
        if let Err(cause) = stream.set_nodelay(true) {
            debug!(%cause, "no TCP_NODELAY");
        }
        let attended = async {
            match &self.tls {
                None => self.serve_http(stream, &seat).await,
                Some(tls) => match timeout(self.limits.handshake, tls.accept(stream)).await {
                    Ok(Ok(stream)) => self.serve_http(stream, &seat).await,
                    Ok(Err(cause)) => debug!(%cause, "TLS handshake failed"),
                    Err(_) => debug!("TLS handshake took too long"),
                },
            }
        };
        tokio::select! {
            () = attended => {}
            () = seat.lost() => debug!("another peer took the connection's place"),
            () = self.cut.cancelled() => {}
        }
    }

    async fn serve_http<S>(&self, stream: S, seat: &Seat)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let router = self.router.clone();
        connection::serve(stream, router, &self.limits, seat, &self.drain).await;
    }
}

/// The next connection, as soon as there is a seat for it.
async fn accept(listener: &TcpListener, seats: &Seats) -> (TcpStream, Seat) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, seats.take(peer.ip()).await),
            Err(cause) if is_of_the_peer(&cause) => debug!(%cause, "connection lost before accept"),
            Err(cause) => {
                warn!(%cause, "failed to accept a connection; trying again");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_the_peer(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused
    )
}
