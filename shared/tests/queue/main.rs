//! What a queue promises: the [`suite`] that each kind of queue passes, and what the local queue
//! promises beyond that.

mod suite;
mod local;
mod crash;
