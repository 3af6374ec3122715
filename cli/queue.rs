//! Opening the queue, with an error that names the setting.

use shared::config::{ConfigError, QueueConfig};
use shared::queue::{Queue, QueueError};

/// Opens the queue.
///
/// # Errors
/// A setting cannot be used. The local queue lies in `DATA_DIR`, and nothing else keeps it from
/// being opened; one at SQS is only kept by a setting.
pub(crate) async fn open(config: &QueueConfig) -> Result<Queue, ConfigError> {
    Queue::open(config).await.map_err(|error| match error {
        QueueError::Config(error) => error,
        error => ConfigError {
            variable: "DATA_DIR",
            problem: error.to_string(),
        },
    })
}
