//! The real binary as a function on Lambda, with a queue at SQS behind it.

mod fronts;
mod function;
mod link;
mod events;
mod queue;
mod start;
