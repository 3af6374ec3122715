//! Has GitHub deliver the pushes again that the webhook has missed, from time to time and for as
//! long as GitHub remembers them. What comes of that GitHub remembers as well, so nothing does here.

use std::cell::RefCell;
use std::fmt;
use std::time::{Duration, SystemTime};

use anyhow::anyhow;
use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use serde::de::IgnoredAny;
use shared::config::{Env, LogConfig, LookupConfig};
use shared::forge::github::{Attempt, FailureStreak, HookOwner, LookupError, MissedPushes};
use shared::process::telemetry;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

/// GitHub wants this pause between requests that change something.
/// <https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api>
const PAUSE: Duration = Duration::from_secs(1);
/// An attempt without a result that is younger may still be under way: GitHub gives up after 10 s,
/// and may be late.
const UNDER_WAY: Duration = Duration::from_secs(5 * 60);
/// The longest wait between two attempts: a little under an hour, so that every fourth look makes
/// one where a look comes each quarter of an hour. No push waits longer once a webhook that was down
/// for long is up again, and none is delivered more than 80 times in the three days.
const WAIT_MAX: Duration = Duration::from_secs(55 * 60);
/// What is left of a function's time when a look ends, for its answer.
const MARGIN: Duration = Duration::from_secs(5);

/// Looks at every scheduled event on AWS Lambda where that is what started this process, and
/// otherwise once.
///
/// # Errors
/// A setting cannot be used, not all could be looked at or asked for, or the connection to Lambda
/// breaks.
pub async fn run(env: &Env) -> anyhow::Result<()> {
    let log = LogConfig::load(env)?;
    let config = LookupConfig::load(env)?;
    telemetry::init(&log);
    let redelivery = Redelivery {
        missed: MissedPushes::new(&config)?,
        told: RefCell::default(),
    };
    if env.is_of_lambda() {
        return redelivery.serve().await;
    }
    let mut findings = Findings::default();
    redelivery.look(&mut findings).await;
    findings.result().map_err(|problems| anyhow!(problems))
}

/// Knows where to look for missed pushes, and what the last look has told.
struct Redelivery {
    missed: MissedPushes,
    told: RefCell<String>,
}

/// What one look at GitHub came to.
#[derive(Default)]
struct Findings {
    missed: usize,
    redelivered: usize,
    problems: Vec<String>,
}

/// Why a look has failed. Lambda's runtime logs how it is debugged, so that tells it but once.
struct Failure {
    problems: String,
    is_told: bool,
}

impl Redelivery {
    /// Answers events for as long as Lambda sends them.
    async fn serve(&self) -> anyhow::Result<()> {
        let function = service_fn(|event: LambdaEvent<IgnoredAny>| self.answer(event));
        lambda_runtime::run(function)
            .await
            .map_err(|cause| anyhow!(cause))
    }

    async fn answer(&self, event: LambdaEvent<IgnoredAny>) -> Result<(), Failure> {
        let time_left = event.context.deadline().duration_since(SystemTime::now());
        let time = time_left.unwrap_or_default().saturating_sub(MARGIN);
        let result = self.look_within(time).await.result();
        let problems = result.err().unwrap_or_default();
        let is_told = self.told.replace(problems.clone()) == problems;
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Failure { problems, is_told }),
        }
    }

    /// Looks for so long. What was not asked for then waits for the next look.
    async fn look_within(&self, time: Duration) -> Findings {
        let mut findings = Findings::default();
        let in_time = timeout(time, self.look(&mut findings)).await.is_ok();
        if !in_time && findings.redelivered == 0 {
            let problem = "GitHub did not answer in time";
            findings.problems.push(problem.to_owned());
        }
        findings
    }

    async fn look(&self, findings: &mut Findings) {
        let mut pace = interval(PAUSE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for owner in self.missed.owners() {
            if let Err(problem) = self.look_at(owner, &mut pace, findings).await {
                findings.problems.push(problem.to_string());
            }
        }
    }

    async fn look_at(
        &self,
        owner: &HookOwner,
        pace: &mut Interval,
        findings: &mut Findings,
    ) -> Result<(), LookupError> {
        let now = SystemTime::now();
        let missed = self.missed.find(owner).await?;
        findings.missed += missed.len();
        let mut streak = FailureStreak::default();
        for push in missed
            .iter()
            .filter(|push| is_due(&push.first, &push.last, now))
        {
            pace.tick().await;
            match self.missed.redeliver(push).await {
                Ok(()) => {
                    tracing::info!(delivery = push.guid, %owner, "GitHub delivers a missed push again");
                    findings.redelivered += 1;
                    streak.succeeded();
                }
                Err(error) if streak.failed(&error) => return Err(error),
                Err(error) => findings.problems.push(error.to_string()),
            }
        }
        Ok(())
    }
}

impl Findings {
    /// Notes the figures; the problems, if there are any, are the error.
    fn result(&self) -> Result<(), String> {
        let Self {
            missed,
            redelivered,
            problems,
        } = self;
        tracing::info!(missed, redelivered, "looked for missed pushes");
        match problems.is_empty() {
            true => Ok(()),
            false => Err(problems.join("; ")),
        }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_told {
            true => f.write_str("as at the last look"),
            false => f.write_str(&self.problems),
        }
    }
}

impl From<Failure> for Diagnostic {
    fn from(failure: Failure) -> Self {
        Self {
            error_type: "LookupFailed".to_owned(),
            error_message: failure.problems,
        }
    }
}

/// Whether it is time for another attempt, where these were the first and the last. A push waits as
/// long again as it has waited already, up to [`WAIT_MAX`], and until GitHub has forgotten the
/// first: attempts that somebody asked for do not make it younger.
fn is_due(first: &Attempt, last: &Attempt, now: SystemTime) -> bool {
    let since_last = time_between(last.delivered_at, now);
    let waited = time_between(first.delivered_at, last.delivered_at);
    let is_under_way = last.status_code == 0 && since_last < UNDER_WAY;
    !first.redelivery && !is_under_way && since_last >= waited.min(WAIT_MAX)
}

fn time_between(earlier: SystemTime, later: SystemTime) -> Duration {
    later.duration_since(earlier).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use shared::forge::github::REMEMBERED;

    use super::*;

    fn attempt(after: Duration, redelivery: bool, status_code: u32) -> Attempt {
        Attempt {
            id: 1,
            guid: "a GUID".to_owned(),
            delivered_at: SystemTime::UNIX_EPOCH + after,
            redelivery,
            status_code,
            event: "push".to_owned(),
        }
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// After how many minutes a push is delivered, if looks come each quarter of an hour and every
    /// delivery fails.
    fn minutes_of_attempts(first_look: Duration) -> Vec<u64> {
        let mut attempts = vec![attempt(Duration::ZERO, false, 502)];
        let looks = (0..10_000).map(|look| first_look + seconds(look * 15 * 60));
        for look in looks {
            let now = SystemTime::UNIX_EPOCH + look;
            let remembered = |attempt: &&Attempt| now < attempt.delivered_at + REMEMBERED;
            let known: Vec<_> = attempts.iter().filter(remembered).collect();
            let (Some(first), Some(last)) = (known.first(), known.last()) else {
                break;
            };
            if is_due(first, last, now) {
                // GitHub takes its time to do as it is told.
                attempts.push(attempt(look + seconds(20), true, 503));
            }
        }
        let since_first = attempts
            .iter()
            .map(|attempt| time_between(SystemTime::UNIX_EPOCH, attempt.delivered_at));
        since_first.map(|time| time.as_secs() / 60).collect()
    }

    #[test]
    fn a_hopeless_push_is_delivered_ever_more_rarely_and_not_for_ever() {
        let minutes = minutes_of_attempts(seconds(10 * 60));
        assert_eq!(minutes[..8], [0, 10, 25, 55, 115, 175, 235, 295]);
        assert_eq!(minutes.last(), Some(&4315));
        for first_look in 0..15 {
            let count = minutes_of_attempts(seconds(first_look * 60)).len();
            assert!((70..=80).contains(&count), "{count} from {first_look}");
        }
    }

    #[test]
    fn an_attempt_without_a_result_may_be_under_way() {
        let first = attempt(Duration::ZERO, false, 0);
        let after = |time| is_due(&first, &first, SystemTime::UNIX_EPOCH + time);
        assert!(!after(seconds(299)));
        assert!(after(seconds(300)));
        let failed = attempt(Duration::ZERO, false, 502);
        assert!(is_due(&failed, &failed, SystemTime::UNIX_EPOCH));
    }

    #[test]
    fn a_push_that_github_has_forgotten_is_not_kept_alive_by_its_redeliveries() {
        let (first, last) = (
            attempt(Duration::ZERO, true, 502),
            attempt(seconds(60), true, 502),
        );
        assert!(!is_due(&first, &last, SystemTime::UNIX_EPOCH + REMEMBERED));
    }
}
