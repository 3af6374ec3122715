//! The seats of connections. When all are taken, a new peer takes the seat of one that has proved nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::verify::Proven;

/// The shortest time between two lines in the log about peers that lost their seats.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// All seats. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Seats(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    count: usize,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    taken: HashMap<u64, Occupant>,
    next: u64,
    /// The peers that lost their seats since the last line in the log.
    turned_away: u64,
    reported_at: Option<Instant>,
}

#[derive(Debug)]
struct Occupant {
    address: IpAddr,
    /// The time since which it has proved nothing.
    unproven_since: Instant,
    proof: Proven,
    turned_away: CancellationToken,
}

/// The seat of one peer. Clones are the same seat.
#[derive(Debug, Clone)]
pub(super) struct Seat(Arc<Taken>);

#[derive(Debug)]
struct Taken {
    seats: Seats,
    id: u64,
    proof: Proven,
    turned_away: CancellationToken,
}

impl Seats {
    pub(super) fn new(count: usize) -> Self {
        Self(Arc::new(Shared {
            count,
            state: Mutex::default(),
            freed: Notify::new(),
        }))
    }

    /// Gives a peer a free seat, or that of the peer which has proved nothing for the longest time, of those
    /// at the address which has the most seats. Waits while every peer is being served.
    pub(super) async fn take(&self, address: IpAddr) -> Seat {
        loop {
            let freed = self.0.freed.notified();
            if let Some(seat) = self.try_take(address) {
                return seat;
            }
            freed.await;
        }
    }

    fn try_take(&self, address: IpAddr) -> Option<Seat> {
        let mut state = self.state();
        if state.taken.len() >= self.0.count {
            let victim = state.victim()?;
            state.turn_away(victim);
        }
        let (turned_away, proof) = (CancellationToken::new(), Proven::default());
        let id = state.next;
        state.next += 1;
        let occupant = Occupant {
            address,
            unproven_since: Instant::now(),
            proof: proof.clone(),
            turned_away: turned_away.clone(),
        };
        state.taken.insert(id, occupant);
        Some(Seat(Arc::new(Taken {
            seats: self.clone(),
            id,
            proof,
            turned_away,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole after every statement, also if a panic poisoned the lock.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn victim(&self) -> Option<u64> {
        let mut by_address: HashMap<IpAddr, usize> = HashMap::new();
        for occupant in self.taken.values() {
            *by_address.entry(occupant.address).or_default() += 1;
        }
        let unproven = self.taken.iter().filter(|(_, one)| !one.proof.is_given());
        let victim = unproven.max_by_key(|(_, one)| {
            let idle_for = one.unproven_since.elapsed();
            (by_address[&one.address], idle_for)
        });
        victim.map(|(id, _)| *id)
    }

    fn turn_away(&mut self, id: u64) {
        if let Some(victim) = self.taken.remove(&id) {
            victim.turned_away.cancel();
        }
        self.turned_away += 1;
        let is_due = |at: Instant| at.elapsed() >= REPORT_INTERVAL;
        if self.reported_at.is_none_or(is_due) {
            let connections = self.turned_away;
            warn!(
                connections,
                "closed connections that had proved nothing: there are too many"
            );
            self.reported_at = Some(Instant::now());
            self.turned_away = 0;
        }
    }
}

impl Seat {
    /// Returns when another peer has taken the seat.
    pub(super) async fn lost(&self) {
        self.0.turned_away.cancelled().await;
    }

    /// The proof of the peer's request, which keeps the seat until the answer.
    pub(super) fn proof(&self) -> &Proven {
        &self.0.proof
    }

    /// The peer has its answer.
    pub(super) fn answered(&self) {
        if let Some(occupant) = self.0.seats.state().taken.get_mut(&self.0.id) {
            occupant.unproven_since = Instant::now();
        }
        self.0.proof.set(false);
        self.0.seats.0.freed.notify_waiters();
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.seats.state().taken.remove(&self.id);
        self.seats.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn address(last: u8) -> IpAddr {
        [127, 0, 0, last].into()
    }

    async fn taken(seats: &Seats, by: u8) -> Seat {
        let seat = seats.take(address(by)).await;
        advance(SECOND).await;
        seat
    }

    fn is_lost(seat: &Seat) -> bool {
        seat.lost().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn the_peer_idle_longest_loses_its_seat() {
        let seats = Seats::new(3);
        let first = taken(&seats, 1).await;
        let second = taken(&seats, 1).await;
        let third = taken(&seats, 1).await;
        first.answered();
        let _fourth = taken(&seats, 1).await;
        assert_eq!([&first, &second, &third].map(is_lost), [false, true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_of_many_seats_loses_one_first() {
        let seats = Seats::new(3);
        let alone = taken(&seats, 1).await;
        let first = taken(&seats, 2).await;
        let second = taken(&seats, 2).await;
        let _new = taken(&seats, 2).await;
        assert_eq!([&alone, &first, &second].map(is_lost), [false, true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_proven_request_keeps_its_seat_until_the_answer() {
        let seats = Seats::new(1);
        let seat = taken(&seats, 1).await;
        seat.proof().set(true);
        let mut waits = Box::pin(seats.take(address(2)));
        assert!(waits.as_mut().now_or_never().is_none());
        seat.answered();
        waits.await;
        assert!(is_lost(&seat));
    }

    #[tokio::test(start_paused = true)]
    async fn a_seat_that_is_left_is_free() {
        let seats = Seats::new(1);
        let first = taken(&seats, 1).await;
        drop(first);
        let second = taken(&seats, 1).await;
        assert!(!is_lost(&second));
    }
}
