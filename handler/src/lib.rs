//! The webhook: proves that a push is genuine and queues its commit.
//!
//! Start with [`webhook`], which reads as the way of a request: its [`body`] is bounded, its
//! proof is [`verify`]-ed, it is read as its [`forge`] writes it into an [`event`], and what to do is
//! [`decide`]-d.
//! [`missed`] goes a part of that way for pushes that never came in.
//! [`server`] carries it over HTTP and HTTPS, `lambda` over the events of AWS Lambda, and
//! `service` is a process of its own that does the one or the other.
//!
//! `redeliver` is another program, for where no worker looks for missed pushes: it has GitHub
//! deliver them to the webhook again.

pub mod limits;
mod body;
mod verify;
mod event;
mod forge;
mod decide;
pub mod webhook;
pub mod missed;
pub mod server;
#[cfg(feature = "standalone")]
mod lambda;
#[cfg(feature = "standalone")]
pub mod service;
#[cfg(feature = "redeliver")]
pub mod redeliver;
#[cfg(any(feature = "standalone", feature = "redeliver"))]
pub mod usage;
