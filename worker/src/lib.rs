//! The worker: leases a commit from the queue, builds it on a Docker engine, reports the outcome.
//!
//! [`job`] is the function to read first: the way of one delivery as a list of steps. The modules
//! stand in the order in which the steps use them.

pub mod disk;
pub mod engine;
pub mod outcome;
pub mod record;
mod registry;
pub mod container;
mod archive;
mod checkout;
mod mask;
pub mod log;
mod cleanup;
mod images;
mod retention;
mod housekeeping;
mod hold;
pub mod claim;
pub mod build;
mod surroundings;
mod terminal;
pub mod render;
pub mod page;
pub mod mail;
pub mod report;
mod supersede;
pub mod job;
mod delivery;
mod poll;
pub mod service;

pub use poll::Worker;
