//! What a queue promises: the [`suite`] that each kind of queue passes, and what each promises
//! beyond that.

mod suite;
mod local;
mod crash;
#[cfg(feature = "sqs")]
mod sqs;
