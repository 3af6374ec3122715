//! Pushes come while nobody listens, and GitHub does not send them again by itself.

use std::net::{Ipv4Addr, TcpListener};

use fastrand::Rng;
use harness::Hook;
use shared::build::{BuildId, DEFAULT_STATUS_CONTEXT};

use crate::judge::{Bar, Tally};
use crate::plan::Budget;
use crate::row::Seen;
use crate::world::{Bench, Build, DEADLINE, World, log};

/// How often the service is stopped, and is gone for a while.
const OUTAGES: usize = 3;
/// For each push that is missed in an outage one in so many was delivered before it.
const MISSED_PER_DELIVERED: usize = 3;

/// All of them are built once the service is there again, without anybody's help, and none that was
/// delivered is built a second time.
pub(crate) async fn pushes(bench: &mut Bench, budget: &Budget, _dice: Rng) -> Seen {
    let planned = budget.times(300);
    let world = World::new().await;
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}/");
    let hook = world.webhook(&url);
    let setup = world.setup(bench).env("CONCURRENCY", "4");
    let setup = setup.env("PORT", port.to_string()).env("WEBHOOK_URL", url);
    let mut service = setup.start().await;
    let (mut builds, mut missed) = (Vec::new(), 0);
    for outage in 1..=OUTAGES {
        let share = planned * outage / OUTAGES - missed;
        for _ in 0..share.div_ceil(MISSED_PER_DELIVERED) {
            builds.push(deliver(&world, hook, true).await);
        }
        service.stop(DEADLINE).await;
        for _ in 0..share {
            builds.push(deliver(&world, hook, false).await);
        }
        missed += share;
        service.start_again().await;
    }
    for build in &builds {
        let sha = &build.commit.sha;
        world.github.wait_for_end(sha, 4 * DEADLINE).await;
    }
    let engine = bench.engine.connect().await;
    Tally::nothing_is_left(&engine, &builds).await;
    service.stop(DEADLINE).await;
    let mut tally = Tally::default();
    for build in &builds {
        let log = log(&service, &build.id);
        tally.judge(&world, &bench.hooks, &service, (build, &log), Bar::RESULT);
    }
    let delivered = builds.len() - missed;
    let did = format!("pushes missed in {OUTAGES} outages, {delivered} delivered between them");
    Seen::of(missed, planned, did, tally)
}

/// Pushes a commit, which the webhook takes, or is not there to take.
async fn deliver(world: &World, hook: Hook, listens: bool) -> Build {
    let commit = world.commit(0);
    let payload = world.payload(&commit.sha);
    let delivery = world.github.deliver(hook, "push", &payload).await;
    assert_eq!(delivery.status_code == 202, listens, "{delivery:?}");
    Build {
        id: BuildId::from_delivery(&delivery.guid, DEFAULT_STATUS_CONTEXT).to_string(),
        commit,
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let address = listener.and_then(|listener| listener.local_addr());
    address.expect("a port is free").port()
}
