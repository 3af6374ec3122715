//! The end of a build container, and its meaning.

use std::ops::RangeInclusive;
use std::time::Duration;

use shared::build::{BuildError, Outcome, StopReason};
use shared::config::HookConfig;

use super::Follower;
use crate::container;
use crate::engine::{EngineError, Phase};

/// The facts about a build container that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ending {
    proof: Proof,
    /// The exit code that the engine reports.
    exit_code: i64,
    /// True if the engine saw the kernel kill a process of the container for want of memory.
    oom_killed: bool,
    /// True if the hook was stopped at the end of its time.
    timed_out: bool,
    /// How long the hook ran, if the engine tells.
    ran_for: Option<Duration>,
}

/// The wrapper's proof that the hook came to its end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// The end mark of this very exit code, or the last bytes of the log.
    End,
    /// None: the container was stopped, or the disk is full.
    None,
    /// None: the hook has removed the directory of the marks.
    Removed,
}

/// The exit codes that a shell makes of no signal and of no command that it cannot run.
const OWN_CODES: RangeInclusive<i64> = 1..=125;

/// A look at a container whose hook was told to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It runs.
    Running,
    /// It has ended, and the hook had not begun.
    Unbegun {
        /// The exit code that the engine reports.
        exit_code: i64,
    },
    /// It has ended.
    Ended(Ending),
}

impl End {
    /// Looks at the container of a build. One that is gone may have left the proof of its hook's end in
    /// the log; whether the kernel killed a process of it is not known then.
    ///
    /// # Errors
    /// The container is gone without such a proof, or the engine does not answer.
    pub(super) async fn of(build: &Follower<'_>) -> Result<Self, EngineError> {
        let (engine, container) = (build.engine, build.container);
        let listened_for = build.listened_since.map(|since| since.elapsed());
        let told = build.log.end_code();
        let found = match (engine.inspect(container).await, told) {
            (Err(EngineError::NotFound(_)), Some(exit_code)) => {
                return Ok(Self::Ended(Ending {
                    proof: Proof::End,
                    exit_code,
                    oom_killed: false,
                    timed_out: false,
                    ran_for: listened_for,
                }));
            }
            (found, _) => found?,
        };
        let exit_code = found.exit_code;
        if found.phase == Phase::Running {
            return Ok(Self::Running);
        }
        let has = async |mark: &str| engine.exists(&found.id, mark).await;
        let proof = if told == Some(exit_code) || has(&container::end_mark(&found)).await? {
            Proof::End
        } else if !has(container::marks_dir(&found)).await? {
            Proof::Removed
        } else if found.waits_for_go && !has(&container::begin_mark(&found)).await? {
            return Ok(Self::Unbegun { exit_code });
        } else {
            Proof::None
        };
        let is_proven = proof == Proof::End;
        let at_deadline = build.stop.reason() == Some(&StopReason::Deadline);
        // The worker that stopped it may have been killed meanwhile.
        let by_the_engine = || found.finished_at?.duration_since(build.began_at).ok();
        let ran_for = listened_for.or_else(by_the_engine);
        let over_time = ran_for.is_some_and(|time| time >= build.spec.hook.timeout);
        Ok(Self::Ended(Ending {
            proof,
            exit_code,
            oom_killed: found.oom_killed,
            // A hook that was stopped proves nothing: with a proof, it ended unseen before.
            timed_out: !is_proven && (at_deadline || over_time),
            ran_for,
        }))
    }
}

impl Ending {
    /// How long the hook ran, if that is known.
    pub(super) fn ran_for(&self) -> Option<Duration> {
        self.ran_for
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
            Self {
                proof: Proof::None, ..
            } => BuildError::NoEndMark { exit_code }.into(),
            Self {
                proof: Proof::Removed,
                ..
            } if !OWN_CODES.contains(&exit_code) => BuildError::MarksRemoved { exit_code }.into(),
            Self { exit_code: 0, .. } => Outcome::Passed,
            _ => Outcome::Failed { exit_code },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: Ending = Ending {
        proof: Proof::End,
        exit_code: 0,
        oom_killed: false,
        timed_out: false,
        ran_for: None,
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
            proof: Proof::None,
            ..CLEAN
        });
        assert_eq!(interrupted, BuildError::NoEndMark { exit_code: 0 }.into());
    }

    #[test]
    fn hook_that_removed_our_directory_keeps_its_own_exit_code() {
        for (exit_code, expected) in [
            (3, Outcome::Failed { exit_code: 3 }),
            (0, BuildError::MarksRemoved { exit_code: 0 }.into()),
            // An engine that stops ends its containers like this.
            (143, BuildError::MarksRemoved { exit_code: 143 }.into()),
        ] {
            let ending = Ending {
                proof: Proof::Removed,
                exit_code,
                ..CLEAN
            };
            assert_eq!(outcome(ending), expected);
        }
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
