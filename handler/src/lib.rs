//! The webhook: proves that a push is genuine and queues its commit.
//!
//! Start with [`webhook`], which reads as the way of a request: its [`body`] is bounded, its
//! proof is [`verify`]-ed, it is read as its [`forge`] writes it into an [`event`], and what to do is
//! [`decide`]-d.
//! [`server`] carries it over HTTP and HTTPS, `lambda` over the events of AWS Lambda, and
//! `service` is a process of its own that does the one or the other.
//!
//! `reconcile` goes a part of that way for pushes that never came in; `lambda` does so from time to time
//! as well, where no service does.

pub mod limits;
mod body;
mod verify;
mod event;
mod forge;
mod decide;
pub mod webhook;
pub mod server;
#[cfg(feature = "reconcile")]
pub mod reconcile;
#[cfg(any(feature = "standalone", feature = "scheduled"))]
pub mod lambda;
#[cfg(feature = "standalone")]
pub mod service;
#[cfg(any(feature = "standalone", feature = "scheduled"))]
pub mod usage;
