//! The way to other machines.

pub mod tls;
#[cfg(feature = "aws")]
pub mod aws;
