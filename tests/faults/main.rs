//! Nothing is lost: the service is broken in every way that can be thought of, and every push that
//! it accepted must end in exactly one true final status.
//!
//!     cargo test --test faults              the short version
//!     ./tests/run faults                    the long one
//!     cargo test --test faults -- kill      the rows that have this in their name
//!
//! Each row is a kind of fault and prints a line. `FAULTS_SEED` throws other dice, `FAULTS_SCALE`
//! is the share of the long version that is run.

mod plan;
mod hooks;
mod world;
mod judge;
mod row;
mod recorded;
mod points;
mod compose;
mod kill;
mod engine;
mod answers;
mod network;
mod damage;
mod pages;
mod handler;
mod missed;
mod power;
mod disk;
mod poison;
mod many;
mod hosts;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::FutureExt;

use crate::plan::{Budget, Plan};
use crate::row::{Row, Seen};
use crate::world::Bench;

const ROWS: [Row; 16] = [
    Row {
        name: "kill-at-points",
        long: Duration::from_secs(360),
        run: |bench, budget, dice| kill::at_points(bench, budget, dice).boxed_local(),
    },
    Row {
        name: "kill-at-random",
        long: Duration::from_secs(600),
        run: |bench, budget, dice| kill::at_random(bench, budget, dice).boxed_local(),
    },
    Row {
        name: "engine-away",
        long: Duration::from_secs(300),
        run: |bench, budget, dice| engine::away(bench, budget, dice).boxed_local(),
    },
    Row {
        name: "engine-answers",
        long: Duration::from_secs(900),
        run: |bench, budget, dice| answers::fail(bench, budget, dice).boxed_local(),
    },
    Row {
        name: "network",
        long: Duration::from_secs(240),
        run: |bench, budget, dice| network::fails(bench, budget, dice).boxed_local(),
    },
    Row {
        name: "damage",
        long: Duration::from_secs(60),
        run: |bench, budget, dice| damage::tarballs(bench, budget, dice).boxed_local(),
    },
    Row {
        name: "pages",
        long: Duration::from_secs(120),
        run: |bench, budget, dice| pages::overwritten(bench, budget, dice).boxed_local(),
    },
    Row {
        name: "handler-killed",
        long: Duration::from_secs(120),
        run: |bench, budget, dice| handler::killed(bench, budget, dice).boxed_local(),
    },
    Row {
        name: "handler-killed-sqs",
        long: Duration::from_secs(120),
        run: |bench, budget, dice| handler::killed_before_sqs(bench, budget, dice).boxed_local(),
    },
    Row {
        name: "missed",
        long: Duration::from_secs(300),
        run: |bench, budget, dice| missed::pushes(bench, budget, dice).boxed_local(),
    },
    Row {
        name: "power-cut",
        long: Duration::from_secs(120),
        run: |bench, budget, dice| power::cut(bench, budget, dice).boxed_local(),
    },
    Row {
        name: "disk-full",
        long: Duration::from_secs(300),
        run: |bench, budget, dice| disk::full(bench, budget, dice).boxed_local(),
    },
    Row {
        name: "poison-sqs",
        long: Duration::from_secs(120),
        run: |bench, budget, dice| poison::at_sqs(bench, budget, dice).boxed_local(),
    },
    Row {
        name: "poison-local",
        long: Duration::from_secs(60),
        run: |bench, budget, dice| poison::locally(bench, budget, dice).boxed_local(),
    },
    Row {
        name: "many",
        long: Duration::from_secs(800),
        run: |bench, budget, dice| many::builds(bench, budget, dice).boxed_local(),
    },
    Row {
        name: "hosts",
        long: Duration::from_secs(600),
        run: |bench, budget, dice| hosts::several(bench, budget, dice).boxed_local(),
    },
];

#[tokio::main]
#[expect(clippy::print_stderr, reason = "it is for whoever typed it wrong")]
async fn main() -> ExitCode {
    let plan = match Plan::of_this_process() {
        Ok(plan) => plan,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::FAILURE;
        }
    };
    match run(&plan).await {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Runs the rows that were asked for, one after the other; whether all bars were met.
#[expect(clippy::print_stdout, reason = "this is the report")]
async fn run(plan: &Plan) -> bool {
    let rows: Vec<_> = ROWS.iter().filter(|row| plan.includes(row.name)).collect();
    if rows.is_empty() {
        return true;
    }
    println!("FAULTS_SEED={} FAULTS_SCALE={}", plan.seed, plan.scale);
    let mut bench = Bench::new().await;
    let mut all_met = true;
    for row in rows {
        let began = Instant::now();
        let budget = plan.budget(row.long);
        let ran = (row.run)(&mut bench, &budget, plan.dice(row.name));
        // The panic's message, and with it the service's log, is on standard error by then.
        let seen = AssertUnwindSafe(ran).catch_unwind().await.ok();
        let (met, line) = report(row, seen, &budget, began.elapsed());
        println!("{line}");
        all_met &= met;
    }
    all_met
}

/// Whether the bar was met, and the row's line, with a line for each problem below it.
fn report(row: &Row, seen: Option<Seen>, budget: &Budget, took: Duration) -> (bool, String) {
    let seen = seen.unwrap_or_else(|| Seen {
        done: 0,
        planned: 0,
        what: "done".to_owned(),
        saw: "the row itself broke".to_owned(),
        problems: vec!["see above".to_owned()],
    });
    let Seen {
        done,
        planned,
        what,
        saw,
        mut problems,
    } = seen;
    if done < planned && budget.must_suffice() {
        problems.push(format!("only {done} of {planned} in time"));
    }
    let met = problems.is_empty();
    let verdict = if met { "ok" } else { "FAILED" };
    let name = row.name;
    let took_s = took.as_secs();
    let mut line = format!("{verdict:<7}{name:<19}{done} of {planned} {what}: {saw} ({took_s} s)");
    for problem in problems {
        line += &format!("\n       {problem}");
    }
    (met, line)
}
