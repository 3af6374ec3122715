//! The service's own log: structured events on standard error.

use tracing_subscriber::fmt;

use crate::config::{LogConfig, LogFormat};

/// Installs the process's subscriber. Call once, before anything is logged.
pub fn init(config: &LogConfig) {
    let log = fmt()
        .with_max_level(config.level)
        .with_writer(std::io::stderr)
        .with_target(false);
    match config.format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
