//! Pushes come while nobody listens, and GitHub does not send them again by itself.

use std::net::{Ipv4Addr, TcpListener};

use fastrand::Rng;

use crate::plan::Budget;
use crate::row::Seen;
use crate::world::{Bench, DEADLINE, World};

/// All of them are built once the service is there, without anybody's help.
pub(crate) async fn pushes(bench: &mut Bench, budget: &Budget, _dice: Rng) -> Seen {
    let planned = budget.times(300);
    let world = World::new().await;
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}/");
    let hook = world.webhook(&url);
    let mut missed = Vec::new();
    for number in 1..=planned {
        let commit = world.made_up(number, "", |_| {});
        let payload = world.payload(&commit.sha);
        let delivery = world.github.deliver(hook, "push", &payload).await;
        assert_ne!(delivery.status_code, 202, "somebody listens");
        missed.push(commit);
    }
    let setup = world.setup(bench).env("HOOK", "true");
    let setup = setup.env("PORT", port.to_string()).env("WEBHOOK_URL", url);
    let mut service = setup.env("CONCURRENCY", "4").start().await;
    for commit in &missed {
        world.github.wait_for_end(&commit.sha, 2 * DEADLINE).await;
    }
    service.stop(DEADLINE).await;
    let problems: Vec<_> = missed
        .iter()
        .filter_map(|commit| world.is_not_passed(commit))
        .collect();
    Seen {
        did: format!("the webhook down for {planned} pushes"),
        saw: format!("{} built once", planned - problems.len()),
        problems,
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let address = listener.and_then(|listener| listener.local_addr());
    address.expect("a port is free").port()
}
