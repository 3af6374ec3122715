//! The worker: leases a commit from the queue, builds it on a Docker engine, reports the outcome.
//!
//! Read [`job::Job::work_on`] first: the way of one delivery as a list of steps. The modules stand in
//! the order in which the steps use them; the build itself is the crate `runner`.

mod surroundings;
mod slots;
mod heartbeat;
mod housekeeping;
mod supersede;
pub mod notify;
pub mod job;
mod delivery;
mod worker;
pub mod service;

pub use worker::Worker;
