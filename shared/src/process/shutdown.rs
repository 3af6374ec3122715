//! How the process ends: the first signal asks, the second insists.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The two stages of an orderly end. Clones watch the same signals.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Cancelled by the first signal: take no new work, finish what runs.
    pub drain: CancellationToken,
    /// Cancelled by the second signal: stop at once.
    pub abort: CancellationToken,
}

impl Shutdown {
    /// Listens for SIGTERM and SIGINT for as long as the process lives.
    ///
    /// # Errors
    /// The signal handlers cannot be installed.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::default();
        let (drain, abort) = (shutdown.drain.clone(), shutdown.abort.clone());
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::spawn(async move {
            for (stage, told) in [
                (drain, "asked to stop; a second signal insists"),
                (abort, "stopping at once"),
            ] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                tracing::info!("{told}");
                stage.cancel();
            }
        });
        Ok(shutdown)
    }
}
