//! What the parts of compose-ci have in common.
//!
//! Read in this order: the `codes` of a terminal, the secrets that nobody is to see ([`mask`]), the domain
//! types that a push is made of, and the states and outcomes of a build ([`build`]), the message that travels
//! through the queue ([`message`]), how far a queue has come ([`standing`]), the variables that a
//! person sets ([`config`]), the `words` in which people read about a build, the [`process`] and its
//! ways over the [`net`]work, the `ledger` of all builds, the `forge`'s API, and the [`queue`].

mod codes;
pub mod mask;
pub mod build;
pub mod message;
pub mod standing;
pub mod config;
#[cfg(feature = "words")]
pub mod words;
pub mod process;
pub mod net;
#[cfg(feature = "store")]
pub mod ledger;
#[cfg(feature = "forge")]
pub mod forge;
pub mod queue;
