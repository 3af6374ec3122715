//! The end of a build container, and its meaning.

use std::time::Duration;

use shared::build::{BuildError, Outcome};
use shared::config::HookConfig;

use crate::container;
use crate::engine::{ContainerInfo, Engine, EngineError, Phase};

/// The facts about a build container that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ending {
    /// True if the wrapper left the end mark of this very exit code.
    marked: bool,
    /// The exit code that the engine reports.
    exit_code: i64,
    /// True if the engine saw the kernel kill a process of the container for want of memory.
    oom_killed: bool,
    /// True if the hook was stopped at the end of its time.
    timed_out: bool,
}

impl Ending {
    /// Looks at a container, which was stopped at its deadline or not; nothing if it still runs.
    ///
    /// # Errors
    /// The container is gone, or the engine does not answer.
    pub(super) async fn of(
        engine: &Engine,
        container: &str,
        at_deadline: bool,
        timeout: Duration,
    ) -> Result<Option<Self>, EngineError> {
        let found = engine.inspect(container).await?;
        if found.phase == Phase::Running {
            return Ok(None);
        }
        let mark = container::end_mark(found.exit_code);
        let marked = engine.exists(container, &mark).await?;
        // The worker that stopped it may have been killed meanwhile.
        let over_time = ran_for(&found).is_some_and(|time| time >= timeout);
        Ok(Some(Self {
            marked,
            exit_code: found.exit_code,
            oom_killed: found.oom_killed,
            // A hook that was stopped leaves no mark: with one, it ended unseen before.
            timed_out: !marked && (at_deadline || over_time),
        }))
    }

    /// Decides the outcome.
    ///
    /// Success needs the end mark: an engine that is stopped in the middle of a build reports
    /// exit code 0 as well. A build that lost a process to the OOM killer is never a success,
    /// even if the hook went on and ended with 0.
    pub(super) fn outcome(self, hook: &HookConfig) -> Outcome {
        let exit_code = self.exit_code;
        match self {
            Self {
                timed_out: true, ..
            } => Outcome::TimedOut {
                timeout_s: hook.timeout.as_secs(),
            },
            Self {
                oom_killed: true, ..
            } => Outcome::OutOfMemory {
                limit_bytes: hook.memory_bytes,
            },
            Self { marked: false, .. } => BuildError::NoEndMark { exit_code }.into(),
            Self { exit_code: 0, .. } => Outcome::Passed,
            _ => Outcome::Failed { exit_code },
        }
    }
}

/// The time that it ran, by the engine's clock.
fn ran_for(ended: &ContainerInfo) -> Option<Duration> {
    ended.finished_at?.duration_since(ended.started_at?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: Ending = Ending {
        marked: true,
        exit_code: 0,
        oom_killed: false,
        timed_out: false,
    };

    fn outcome(ending: Ending) -> Outcome {
        ending.outcome(&HookConfig {
            command: String::new(),
            env: Default::default(),
            image: None,
            registry: None,
            timeout: Duration::from_secs(60),
            memory_bytes: Some(512),
            nano_cpus: None,
            pids: 1,
            log_limit_bytes: 1,
            garbage_collect: true,
            rerun_interrupted: false,
        })
    }

    #[test]
    fn the_exit_code_decides_between_passed_and_failed() {
        assert_eq!(outcome(CLEAN), Outcome::Passed);
        let failed = Ending {
            exit_code: 3,
            ..CLEAN
        };
        assert_eq!(outcome(failed), Outcome::Failed { exit_code: 3 });
    }

    #[test]
    fn exit_code_0_without_an_end_mark_is_an_error() {
        let interrupted = outcome(Ending {
            marked: false,
            ..CLEAN
        });
        assert_eq!(interrupted, BuildError::NoEndMark { exit_code: 0 }.into());
    }

    #[test]
    fn out_of_memory_is_no_success_even_with_exit_code_0() {
        let outcome = outcome(Ending {
            oom_killed: true,
            ..CLEAN
        });
        assert_eq!(
            outcome,
            Outcome::OutOfMemory {
                limit_bytes: Some(512)
            }
        );
    }

    #[test]
    fn a_stopped_hook_timed_out_whatever_it_answered() {
        let stopped = Ending {
            timed_out: true,
            ..CLEAN
        };
        assert_eq!(outcome(stopped), Outcome::TimedOut { timeout_s: 60 });
    }
}
