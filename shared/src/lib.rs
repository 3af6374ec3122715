//! What the parts of compose-ci have in common.
//!
//! Read in this order: the domain types that a push is made of, and the states and outcomes of a
//! build ([`build`]), the message that travels through the queue ([`message`]), the variables that a
//! person sets ([`config`]), the [`process`] and its ways over the [`net`]work, the `ledger` of all
//! builds, the `forge`'s API, and the [`queue`].

pub mod build;
pub mod message;
pub mod config;
pub mod process;
pub mod net;
#[cfg(feature = "store")]
pub mod ledger;
#[cfg(feature = "github")]
pub mod forge;
pub mod queue;
