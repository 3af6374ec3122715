//! How much a peer may ask of this process, and how long it may take.

use std::time::Duration;

/// Every bound on what an outsider can make the webhook spend. The default is what the service
/// runs with; tests shorten the times.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at a time, or half as many as this process may have files open, if that is less;
    /// more wait in the kernel's backlog.
    pub connections: usize,
    /// From the first byte of a request's head, or the start of the connection, to the head's end.
    pub head: Duration,
    /// From the end of a request's head to the end of its body. GitHub waits no longer than this
    /// for its answer.
    pub body: Duration,
    /// From a response to the first byte of the next request. Longer than the 60 s for which
    /// common proxies keep a connection, so that none sends into one that we just closed.
    pub idle: Duration,
    /// How long a peer may take no byte of a response.
    pub stall: Duration,
    /// From the start of a connection to the end of the TLS handshake.
    pub handshake: Duration,
    /// After the end of a connection's last response: how long the peer's remaining bytes are read
    /// and dropped. Closing with unread bytes resets the connection, and the peer may then never
    /// see the response.
    pub linger: Duration,
    /// How long requests in flight may take to end after the signal to stop.
    pub drain: Duration,
    /// How long the queue may take to store a build or to answer a health check. GitHub gives up
    /// on a delivery after 10 s.
    pub queue: Duration,
    /// The largest body; GitHub sends none above 25 MB.
    pub body_bytes: usize,
    /// The largest body that is buffered without one of the [`large_bodies`](Self::large_bodies)
    /// permits. A push of a few dozen commits is smaller.
    pub small_body_bytes: usize,
    /// Bodies above [`small_body_bytes`](Self::small_body_bytes) at a time: whoever sends them has
    /// proved nothing yet, so together they must fit into memory.
    pub large_bodies: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            head: Duration::from_secs(10),
            body: Duration::from_secs(10),
            idle: Duration::from_secs(65),
            stall: Duration::from_secs(30),
            handshake: Duration::from_secs(10),
            linger: Duration::from_secs(2),
            drain: Duration::from_secs(10),
            queue: Duration::from_secs(5),
            body_bytes: 25 << 20,
            small_body_bytes: 64 << 10,
            large_bodies: 4,
        }
    }
}
