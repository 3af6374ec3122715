//! Tarballs that arrive damaged, without any sign of it on the way.

use fastrand::Rng;
use harness::CommitState;

use crate::judge::Tally;
use crate::plan::Budget;
use crate::row::Seen;
use crate::world::{Bench, Build, Commit, DEADLINE, World, log};

/// So many are pushed at a time.
const WAVE: usize = 10;

/// What the hook shows of the commit.
fn content() -> String {
    (1..=500).map(|line| format!("line {line}\n")).collect()
}

/// A hook sees the commit as it is, or none at all.
pub(crate) async fn tarballs(bench: &mut Bench, budget: &Budget, mut dice: Rng) -> Seen {
    let planned = budget.times(200);
    let world = World::new().await;
    let engine = bench.engine.connect().await;
    let setup = world.setup(bench).env("HOOK", "cat content");
    let service = setup.env("CONCURRENCY", "4").start().await;
    let (mut refused, mut harmless, mut problems) = (0, 0, Vec::new());
    let mut numbers = 1..=planned;
    while !budget.is_spent() {
        let wave = numbers.by_ref().take(WAVE);
        let commits: Vec<_> = wave
            .map(|number| damaged(&world, number, &mut dice))
            .collect();
        let mut builds = Vec::new();
        for commit in commits {
            builds.push(world.push(&service, commit).await);
        }
        if builds.is_empty() {
            break;
        }
        for Build { commit, id } in &builds {
            let statuses = world.github.wait_for_end(&commit.sha, DEADLINE).await;
            let state = statuses.last().map(|status| status.state);
            let log = log(&service, id);
            match state {
                Some(CommitState::Error) if log.is_empty() => refused += 1,
                // Some bits of gzip's header say nothing of the content.
                Some(CommitState::Success) if log == content() => harmless += 1,
                _ => problems.push(format!("{id} of a damaged tarball was told {state:?}")),
            }
        }
        Tally::nothing_is_left(&engine, &builds).await;
    }
    Seen {
        done: refused + harmless + problems.len(),
        planned,
        what: "damaged tarballs".to_owned(),
        saw: format!("{refused} refused, {harmless} whose content was whole"),
        problems,
    }
}

/// A commit of which GitHub sends a tarball with one wrong bit, or without its end.
fn damaged(world: &World, number: usize, dice: &mut Rng) -> Commit {
    world.made_up(number, &content(), |tarball| {
        let place = dice.usize(..tarball.len());
        match dice.u8(..4) {
            0 => tarball.truncate(place),
            _ => tarball[place] ^= 1 << dice.u8(..8),
        }
    })
}
