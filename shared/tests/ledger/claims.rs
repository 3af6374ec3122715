//! The claims of several workers to builds.

use std::time::Duration;

use compose_ci_shared::build::{BuildError, BuildState, Outcome};
use compose_ci_shared::ledger::{CLAIM, Claim, Event, LedgerError, NextReport, STATUS};

use tokio::task::JoinSet;

use crate::world::{Worker, World, alone, assert_lost, request};

const PASSED: Outcome = Outcome::Passed;

#[tokio::test]
async fn whoever_creates_a_build_has_it() {
    let world = World::new().await;
    let (one, other) = (world.worker().await, world.worker().await);
    let request = request();
    let build = one.take(&request).await;
    let by = one.ledger.worker();
    assert_eq!(build.state, BuildState::Claimed { by });
    let wait = other.wait_for(&request).await;
    let longest = (CLAIM + Duration::from_secs(1)) * 5 / 4;
    assert!(
        wait > CLAIM - Duration::from_secs(10) && wait <= longest,
        "{wait:?}"
    );
    assert!(other.known(&request).await.is_elsewhere);
    assert_eq!(other.ledger.unfinished().await.expect("read"), []);
}

#[tokio::test]
async fn of_many_workers_at_once_one_has_the_build() {
    let world = World::new().await;
    let request = request();
    let (mut workers, mut owner) = (Vec::new(), None);
    for _ in 0..8 {
        workers.push(world.worker().await);
    }
    // First it is new, then its worker is dead.
    for _ in 0..3 {
        let mut claiming = JoinSet::new();
        for worker in workers.drain(..) {
            let request = request.clone();
            claiming.spawn(async move { (worker.claim(&request).await, worker) });
        }
        let claimed = claiming.join_all().await;
        let (ours, others): (Vec<_>, Vec<_>) = claimed
            .into_iter()
            .partition(|(claim, _)| matches!(claim, Claim::Ours(_)));
        assert_eq!(ours.len(), 1);
        owner = ours.into_iter().next().map(|(_, worker)| worker);
        workers = others.into_iter().map(|(_, worker)| worker).collect();
        world.let_pass(CLAIM).await;
    }
    let owner: Worker = owner.expect("somebody has it");
    owner.ledger.start(request.id).await.expect("started");
}

#[tokio::test]
async fn a_heartbeat_and_a_step_do_not_hinder_each_other() {
    let world = World::new().await;
    let worker = world.worker().await;
    for _ in 0..5 {
        let request = request();
        worker.take(&request).await;
        let (renewed, started) = tokio::join!(
            worker.ledger.renew(request.id),
            worker.ledger.start(request.id)
        );
        renewed.expect("renewed");
        started.expect("started");
        assert!(worker.known(&request).await.state.may_have_begun());
        let (renewed, ended) = tokio::join!(
            worker.ledger.renew(request.id),
            worker.ledger.end(request.id, &PASSED, &[])
        );
        renewed.expect("renewed, or ended already");
        ended.expect("ended");
    }
}

#[tokio::test]
async fn a_worker_goes_on_with_its_own_claim_after_a_restart() {
    let world = World::new().await;
    let worker = world.worker().await;
    let (claimed, started) = (request(), request());
    worker.take(&claimed).await;
    worker.take(&started).await;
    worker.ledger.start(started.id).await.expect("started");
    // Longer than the claim lasts, and nobody took over.
    world.let_pass(CLAIM * 2).await;
    let worker = world.restart(worker).await;
    let unfinished = worker.ledger.unfinished().await.expect("read");
    let unfinished: Vec<_> = unfinished.iter().map(|build| build.request.id).collect();
    assert_eq!(unfinished, [started.id, claimed.id]);
    assert!(!worker.take(&claimed).await.state.may_have_begun());
    assert!(worker.take(&started).await.state.may_have_begun());
    // That has renewed the claim.
    world.worker().await.wait_for(&started).await;
}

#[tokio::test]
async fn a_renewed_claim_lasts_on() {
    let world = World::new().await;
    let (one, other) = (world.worker().await, world.worker().await);
    let request = request();
    one.take(&request).await;
    for _ in 0..3 {
        world.let_pass(CLAIM - Duration::from_secs(10)).await;
        let wait = other.wait_for(&request).await;
        assert!(wait < Duration::from_secs(15), "{wait:?}");
        one.ledger.renew(request.id).await.expect("renewed");
    }
    assert!(other.wait_for(&request).await > CLAIM / 2);
    one.ledger.start(request.id).await.expect("started");
    one.ledger.renew(request.id).await.expect("renewed");
    let ended = one.ledger.end(request.id, &PASSED, &[]);
    ended.await.expect("ended");
    // A heartbeat that comes late finds nothing wrong.
    one.ledger.renew(request.id).await.expect("it has ended");
}

#[tokio::test]
async fn a_dead_claim_is_taken_over() {
    let world = World::new().await;
    let (dead, heir) = (world.worker().await, world.worker().await);
    let (claimed, started) = (request(), request());
    dead.take(&claimed).await;
    dead.take(&started).await;
    dead.ledger.start(started.id).await.expect("started");
    world.let_pass(CLAIM).await;
    let by = heir.ledger.worker();
    let build = heir.take(&claimed).await;
    assert_eq!(build.state, BuildState::Claimed { by });
    let build = heir.take(&started).await;
    assert_eq!(build.state, BuildState::Started { by });
    assert!(build.started_at.is_some() && !build.is_elsewhere);
    let lost = BuildError::WorkerLost.into();
    let ended = heir.ledger.end(started.id, &lost, &[STATUS]);
    ended.await.expect("ended");

    let back = world.restart(dead).await;
    let Claim::Ended(build) = back.claim(&started).await else {
        panic!("it has ended");
    };
    assert_eq!(build.outcome(), Some(&lost));
    back.wait_for(&claimed).await;
    assert_eq!(back.ledger.unfinished().await.expect("read"), []);
}

#[tokio::test]
async fn a_late_worker_has_lost_its_claim() {
    let world = World::new().await;
    let (late, heir) = (world.worker().await, world.worker().await);
    let requests = [request(), request(), request(), request()];
    for request in &requests {
        late.take(request).await;
        let began = late.ledger.owe(request.id, STATUS, Event::Began, false);
        began.await.expect("owed");
    }
    world.let_pass(CLAIM).await;
    for request in &requests {
        heir.take(request).await;
    }
    let [renewed, started, ended, released] = &requests;
    assert_lost(late.ledger.renew(renewed.id).await);
    assert_lost(late.ledger.start(started.id).await);
    assert_lost(late.ledger.end(ended.id, &PASSED, &[STATUS]).await);
    assert_lost(late.ledger.release(released.id).await);
    for request in &requests {
        assert!(late.known(request).await.is_elsewhere);
        assert_eq!(heir.known(request).await.outcome(), None);
    }
    // Nor does it report of what is not its own.
    let next = late.ledger.next_due(STATUS).await.expect("read");
    assert!(matches!(next, NextReport::Nothing), "{next:?}");
}

#[tokio::test]
async fn a_released_build_is_claimed_at_once() {
    let world = World::new().await;
    let (one, other) = (world.worker().await, world.worker().await);
    let request = request();
    one.take(&request).await;
    one.ledger.release(request.id).await.expect("released");
    assert!(!one.known(&request).await.is_elsewhere);
    other.take(&request).await;
    one.wait_for(&request).await;
}

#[tokio::test]
async fn an_end_is_for_ever() {
    let world = World::new().await;
    let (one, other) = (world.worker().await, world.worker().await);
    let request = request();
    let build = one.take(&request).await;
    one.ledger.start(request.id).await.expect("started");
    let outcome = Outcome::Failed { exit_code: 3 };
    let ended = one.ledger.end(request.id, &outcome, &[STATUS]);
    ended.await.expect("ended");
    world.let_pass(CLAIM * 2).await;
    let Claim::Ended(seen) = other.claim(&request).await else {
        panic!("it has ended");
    };
    assert_eq!(seen.outcome(), Some(&outcome));
    assert_eq!(seen.duration(), one.known(&request).await.duration());
    // In whole milliseconds.
    let apart = seen.claimed_at.duration_since(build.claimed_at);
    assert!(apart.unwrap_or_default() < Duration::from_millis(1));
    // Who ended it reports it; others can report again.
    assert!(one.ledger.is_owed(request.id, STATUS).await.expect("read"));
    assert!(
        !other
            .ledger
            .is_owed(request.id, STATUS)
            .await
            .expect("read")
    );
    let again = other.ledger.owe(request.id, STATUS, Event::Ended, true);
    again.await.expect("owed");
    let next = other.ledger.next_due(STATUS).await.expect("read");
    assert!(matches!(next, NextReport::Due(due) if due.maybe_sent));

    for done in [
        other.ledger.start(request.id).await,
        other.ledger.end(request.id, &PASSED, &[]).await,
    ] {
        assert!(matches!(done, Err(LedgerError::Illegal(_))), "{done:?}");
    }
    assert_eq!(one.known(&request).await.outcome(), Some(&outcome));
}

#[tokio::test]
async fn reconcile_knows_what_was_ever_claimed() {
    let world = World::new().await;
    let (claimed, ended) = (request(), request());
    let worker = world.worker().await;
    worker.take(&claimed).await;
    worker.take(&ended).await;
    let end = worker.ledger.end(ended.id, &PASSED, &[]);
    end.await.expect("ended");
    let store = world.store().await;
    assert!(store.is_known(claimed.id).await.expect("read"));
    assert!(store.is_known(ended.id).await.expect("read"));
    assert!(!store.is_known(request().id).await.expect("read"));
}

#[tokio::test]
async fn without_a_store_a_message_is_a_claim() {
    let world = World::new().await;
    let worker = world.worker().await;
    assert!(worker.ledger.has_store());
    let (_directory, alone) = alone();
    assert!(!alone.has_store());
    let request = request();
    let claim = alone.claim(&request).await.expect("claimed");
    assert!(matches!(claim, Claim::Ours(_)));
    alone.renew(request.id).await.expect("nothing to renew");
    worker.take(&request).await;
}
