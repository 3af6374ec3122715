//! How long a forge is waited for while it is not available.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder, Retryable};
use tokio::time::{Instant, sleep};

use super::ForgeError;

/// Where an answer is waited for at once, nobody waits longer than this between two attempts.
const SHORT_WAIT_MAX: Duration = Duration::from_secs(120);
/// So long one attempt to build waits for the forge. GitHub's incidents last 10 to 20 minutes and more;
/// a commit has three attempts, so that an hour of them costs waiting, and no build. Nothing has run
/// by then, and what it holds up, other builds, needs the forge as well.
const PATIENCE: Duration = Duration::from_secs(20 * 60);
/// The longest wait between two questions, before jitter, which up to doubles it.
const DELAY_MAX: Duration = Duration::from_secs(30);

/// Asks again, a few times and with growing waits, while the forge is not available: about half a
/// minute in all.
///
/// # Errors
/// Those of the last time.
pub(super) async fn retried<T, F>(ask: impl FnMut() -> F) -> Result<T, ForgeError>
where
    F: Future<Output = Result<T, ForgeError>>,
{
    ask.retry(delays().with_max_times(4))
        .when(|error| {
            let wait = error.retry_after().unwrap_or_default();
            error.is_transient() && wait <= SHORT_WAIT_MAX
        })
        .adjust(|error, delay| delay.map(|delay| at_least(delay, error.retry_after())))
        .await
}

/// What one attempt to build has to spare for a forge that is not available: 20 minutes from the
/// first question, and what the forge itself asks to wait, which is an hour at most.
#[derive(Debug)]
pub struct Patience {
    until: Instant,
    delays: ExponentialBackoff,
    is_told: bool,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            until: Instant::now() + PATIENCE,
            delays: delays().without_max_times().build(),
            is_told: false,
        }
    }
}

impl Patience {
    /// Asks again and again while the forge is not available and patience lasts.
    ///
    /// # Errors
    /// Those of the last time.
    pub async fn outlast<T, F>(&mut self, mut ask: impl FnMut() -> F) -> Result<T, ForgeError>
    where
        F: Future<Output = Result<T, ForgeError>>,
    {
        loop {
            match ask().await {
                Err(error) if error.is_transient() => {
                    if !self.wait(&error.to_string(), error.retry_after()).await {
                        return Err(error);
                    }
                }
                answer => return answer,
            }
        }
    }

    /// Waits before the forge is asked again, for as long as it asked for if that is longer; false, and
    /// at once, when it was waited for long enough. The first trouble is logged.
    pub async fn wait(&mut self, trouble: &str, asked: Option<Duration>) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        let delay = self.delays.next().unwrap_or(DELAY_MAX);
        let wait = at_least(delay, asked);
        if !self.is_told {
            tracing::warn!(trouble, wait_s = wait.as_secs(), "waiting for GitHub");
            self.is_told = true;
        }
        sleep(wait).await;
        true
    }
}

fn delays() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_secs(1))
        .with_max_delay(DELAY_MAX)
        .with_jitter()
}

/// What the forge asks for is jittered as well: the delay, which differs from time to time, comes on
/// top of it. So does nobody ask at once whom it asks to wait no time at all.
fn at_least(delay: Duration, asked: Option<Duration>) -> Duration {
    delay.saturating_add(asked.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn unavailable(retry_after: Option<Duration>) -> ForgeError {
        ForgeError::Unavailable {
            what: "the test".to_owned(),
            reason: "it is down".to_owned(),
            retry_after,
            ambiguous: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_incident_of_twenty_minutes_is_outlasted() {
        let begun = Instant::now();
        let asked = Cell::new(0);
        let mut patience = Patience::default();
        let answer = patience.outlast(async || {
            asked.set(asked.get() + 1);
            match begun.elapsed() < Duration::from_secs(19 * 60) {
                true => Err(unavailable(None)),
                false => Ok(()),
            }
        });
        assert_eq!(answer.await, Ok(()));
        assert!((20..60).contains(&asked.get()), "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends() {
        let begun = Instant::now();
        let mut patience = Patience::default();
        let answer = patience.outlast(async || Err::<(), _>(unavailable(None)));
        assert_eq!(answer.await, Err(unavailable(None)));
        let waited = begun.elapsed();
        assert!((PATIENCE..PATIENCE + 2 * DELAY_MAX).contains(&waited));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_of_an_hour_is_waited_for() {
        const HOUR: Duration = Duration::from_secs(60 * 60);
        let begun = Instant::now();
        let mut patience = Patience::default();
        let answer = patience.outlast(async || match begun.elapsed() < HOUR {
            true => Err(unavailable(Some(HOUR))),
            false => Ok(()),
        });
        assert_eq!(answer.await, Ok(()));
        assert!(begun.elapsed() < HOUR + 2 * DELAY_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_asked_to_wait_no_time_waits_all_the_same() {
        let begun = Instant::now();
        let zero = Some(Duration::ZERO);
        let answer = retried(async || Err::<(), _>(unavailable(zero))).await;
        assert_eq!(answer, Err(unavailable(zero)));
        assert!(begun.elapsed() >= Duration::from_secs(15));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_not_waited_for() {
        let begun = Instant::now();
        let refused = ForgeError::Refused {
            what: "the test".to_owned(),
            status: 404,
            hint: "",
        };
        let mut patience = Patience::default();
        let answer = patience.outlast(async || Err::<(), _>(refused.clone()));
        assert_eq!(answer.await, Err(refused.clone()));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
