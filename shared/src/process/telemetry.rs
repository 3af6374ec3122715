//! The service's own log: structured events on standard error, without the values of secrets.

use std::io::{self, Write};

use tracing_subscriber::fmt;

use crate::config::{LogConfig, LogFormat};
use crate::mask::Secrets;

/// Installs the process's subscriber. Call once, before anything is logged.
pub fn init(config: &LogConfig) {
    let secrets = config.secrets.clone();
    let log = fmt()
        .with_max_level(config.level)
        .with_writer(move || Masked(secrets.clone()))
        .with_target(false);
    match config.format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// Standard error, for one line at a time.
struct Masked(Secrets);

impl Write for Masked {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let masked = self.0.mask(&String::from_utf8_lossy(line));
        io::stderr().write_all(masked.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
