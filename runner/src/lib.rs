//! The runner: a commit in a container, from its checkout to its outcome.
//!
//! [`run()`] is the function to read first: the way of one build as a list of steps. The modules stand
//! in the order in which the steps use them. The runner speaks to a Docker engine and to nothing
//! else: it knows no forge, no queue and no database.

pub mod engine;
mod stop;
mod obstacle;
pub mod registry;
pub mod log;
pub mod container;
mod create;
pub mod cleanup;
mod source;
mod follow;
mod run;

pub use container::Spec;
pub use engine::{Engine, EngineError};
pub use log::{ProofFilter, Secrets, Sink};
pub use obstacle::{Ended, Obstacle};
pub use run::run;
pub use source::{ArchiveError, Source, repack};
pub use stop::Stop;
