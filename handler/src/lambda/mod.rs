//! The functions on AWS Lambda.

#[cfg(feature = "standalone")]
pub(crate) mod webhook;
#[cfg(feature = "scheduled")]
pub mod scheduled;
