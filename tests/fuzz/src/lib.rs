//! Runs a target on inputs that strangers might write, for a limited time.
//!
//! A target is a test: it gets inputs from a strategy of [`proptest`] and panics over one that is treated
//! wrongly. The failure then names the smallest such input that was found.

pub mod mutation;

use std::fmt::Debug;
use std::io::{self, Write};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};

/// The time for each target, unless `FUZZ_SECONDS` says otherwise.
const DEFAULT_SECONDS: u64 = 10;
/// The seed, unless `FUZZ_SEED` says otherwise: the tests of a commit are the same each time.
const DEFAULT_SEED: u64 = 1;
/// The time is looked at after so many executions.
const BATCH_EXECUTIONS: u32 = 64;

/// The bounds of a run; the first that is reached ends it.
struct Bounds {
    time: Duration,
    executions: u64,
    seed: RngSeed,
}

/// Gives a target inputs until its time is over (`FUZZ_SECONDS`), or it has had enough of them
/// (`FUZZ_EXECUTIONS`), and prints their number. `FUZZ_SEED` chooses other inputs.
///
/// # Panics
/// The target panicked; the message holds the smallest input found over which it does.
pub fn fuzz<S>(target: &str, inputs: S, test: impl Fn(S::Value))
where
    S: Strategy<Value: Debug>,
{
    let bounds = bounds();
    let began = Instant::now();
    let mut executions = 0;
    let mut runner = runner(bounds.seed);
    while began.elapsed() < bounds.time && executions < bounds.executions {
        for _ in 0..BATCH_EXECUTIONS {
            let tree = inputs.new_tree(&mut runner);
            let tree = tree.expect("the strategy makes an input");
            let run = runner.run_one(tree, |input| {
                test(input);
                Ok(())
            });
            if let Err(TestError::Fail(why, input)) = run {
                panic!("{target}: {why}\nover the input {input:#?}");
            }
            executions += 1;
        }
    }
    say(target, executions, began.elapsed());
}

fn bounds() -> &'static Bounds {
    static BOUNDS: OnceLock<Bounds> = OnceLock::new();
    BOUNDS.get_or_init(|| Bounds {
        time: Duration::from_secs(setting("FUZZ_SECONDS").unwrap_or(DEFAULT_SECONDS)),
        executions: setting("FUZZ_EXECUTIONS").unwrap_or(u64::MAX),
        seed: RngSeed::Fixed(setting("FUZZ_SEED").unwrap_or(DEFAULT_SEED)),
    })
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}: not a number: {text}")),
    )
}

fn runner(seed: RngSeed) -> TestRunner {
    TestRunner::new(Config {
        failure_persistence: None,
        max_shrink_iters: 20_000,
        max_shrink_time: 30_000,
        rng_seed: seed,
        ..Config::default()
    })
}

/// Prints past the capture of the test's output: the number is wanted of tests that pass.
fn say(target: &str, executions: u64, time: Duration) {
    let seconds = time.as_secs_f64();
    let line = format!("fuzz {target}: {executions} executions in {seconds:.0} s\n");
    io::stderr()
        .write_all(line.as_bytes())
        .expect("standard error can be written");
}
