//! The process and its surroundings on this machine.

pub mod lock;
pub mod telemetry;
pub mod shutdown;
pub mod exit;
