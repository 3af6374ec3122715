//! Where commits come from, and where their statuses go.

pub mod github;
