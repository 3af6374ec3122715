//! The webhook over real connections, with a real queue behind it.

#![expect(
    clippy::unwrap_used,
    reason = "a helper that cannot go on fails its test"
)]

mod client;
mod service;
mod answers;
mod proofs;
mod bodies;
mod deadlines;
mod shutdown;
mod https;
mod examples;
