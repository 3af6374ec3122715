//! What the parts of compose-ci have in common.
//!
//! Read in this order: the domain types that a push is made of ([`build`]), the message that
//! travels through the queue ([`message`]), the variables that a person sets ([`config`]), the
//! [`queue`] itself, `github`'s API, and the process's surroundings: [`lock`], [`tls`], `aws`, [`telemetry`],
//! [`shutdown`], [`exit`].

pub mod build;
pub mod message;
pub mod variables;
pub mod config;
pub mod lock;
pub mod tls;
#[cfg(feature = "github")]
pub mod github;
#[cfg(feature = "aws")]
pub mod aws;
pub mod queue;
pub mod telemetry;
pub mod shutdown;
pub mod exit;
