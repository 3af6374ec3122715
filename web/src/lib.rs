//! All HTML of compose-ci, without a script and with one style sheet.
//!
//! Read in this order: the colours of a log (`terminal`), the HTML of a [`mail`], the parts of a
//! build's `page`, its `log` as it is, and the `pages` that are served over the ledger and the logs.

mod terminal;
pub mod mail;
pub mod page;
mod log;
mod pages;

pub use pages::{Pages, router};
