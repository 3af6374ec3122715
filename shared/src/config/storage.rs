//! How much of its disks the service may use, and how long it keeps what it does not need.

use std::time::Duration;

use super::{Env, Result};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What is kept, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorageConfig {
    /// No build begins or goes on with less free room than this; 0 is never too little.
    pub free_min_bytes: u64,
    /// The age at which the log of a build is removed, if ever.
    pub log_retention: Option<Duration>,
    /// What all logs together may take up, if that is limited.
    pub log_total_limit_bytes: Option<u64>,
    /// How long an image that the worker pulled is kept after its last build, if not for ever.
    pub image_retention: Option<Duration>,
}

impl StorageConfig {
    pub(super) fn load(env: &Env) -> Result<Self> {
        let age =
            |name, default| Ok(Some(env.duration(name, default)?).filter(|age| !age.is_zero()));
        let log_total_limit_bytes = env.size_or_zero("LOG_TOTAL_LIMIT", 10 << 30)?;
        Ok(Self {
            free_min_bytes: env.size_or_zero("DISK_FREE_MIN", 1 << 30)?,
            log_retention: age("LOG_RETENTION", 90 * DAY)?,
            log_total_limit_bytes: Some(log_total_limit_bytes).filter(|limit| *limit > 0),
            image_retention: age("IMAGE_RETENTION", 14 * DAY)?,
        })
    }
}
