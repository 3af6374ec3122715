//! How fast reports leave that have piled up.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// So many at once, and then one in each interval.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) burst: u32,
    pub(super) interval: Duration,
}

/// Keeps to a pace.
#[derive(Debug)]
pub(super) struct Paced {
    pace: Pace,
    /// The time at which the whole burst is free again.
    free_at: Instant,
}

impl Paced {
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            pace,
            free_at: Instant::now(),
        }
    }

    /// Returns when the next report may leave.
    pub(super) async fn next(&mut self) {
        let Pace { burst, interval } = self.pace;
        self.free_at = self.free_at.max(Instant::now()) + interval;
        sleep_until(self.free_at - interval * burst).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_a_burst_one_leaves_in_each_interval() {
        let interval = Duration::from_secs(1);
        let mut paced = Paced::new(Pace { burst: 3, interval });
        let begun = Instant::now();
        let mut left_after = Vec::new();
        for _ in 0..5 {
            paced.next().await;
            left_after.push(begun.elapsed().as_secs());
        }
        assert_eq!(left_after, [0, 0, 0, 1, 2]);
        tokio::time::advance(2 * interval).await;
        paced.next().await;
        paced.next().await;
        assert_eq!(begun.elapsed().as_secs(), 4);
    }
}
