//! Which connections are open at once, and which one ends for another.
//!
//! Invariants:
//! - At most [`FULL_MAX`] are served in full, [`PEER_MAX`] of them from one address. One
//!   more ends the one that has been idle for longest, of the same address where that is at its
//!   bound.
//! - Where none is idle, one more is served probes alone, in a place that is kept for them. There
//!   the oldest ends first, of the address that has most of these places: no address keeps the
//!   probes of another out.
//! - Those that are ending count too, so that no more are ever open than [`OPEN_MAX`].

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Connections at once that are served in full.
pub(super) const FULL_MAX: usize = 64;
/// Those of one address.
pub(super) const PEER_MAX: usize = 32;
/// Connections beside them that are served probes.
pub(super) const PROBES_MAX: usize = 8;
/// All that are open, with those that were told to end.
pub(super) const OPEN_MAX: usize = FULL_MAX + 2 * PROBES_MAX;

/// What a connection is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Full,
    Probes,
}

/// See the module.
pub(super) struct Places {
    open: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By number, the oldest first.
    taken: BTreeMap<u64, Taken>,
    next: u64,
    /// Counts what happens: what is idle for longest has the lowest number.
    events: u64,
}

struct Taken {
    peer: IpAddr,
    lane: Lane,
    /// Requests that are being answered.
    busy: u32,
    /// When something of it was last seen.
    seen: u64,
    end: Arc<Notify>,
}

/// The place of one connection, until it is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    lane: Lane,
    end: Arc<Notify>,
    _open: OwnedSemaphorePermit,
}

/// A request is being answered.
pub(super) struct Busy(Arc<Place>);

impl Places {
    pub(super) fn new() -> Arc<Places> {
        Arc::new(Places {
            open: Arc::new(Semaphore::new(OPEN_MAX)),
            state: Mutex::default(),
        })
    }

    /// A place for a connection from this address. It waits while too many are ending, which takes
    /// them no longer than it takes to be told.
    pub(super) async fn enter(self: &Arc<Places>, address: IpAddr) -> Arc<Place> {
        let open = Arc::clone(&self.open).acquire_owned().await;
        self.place(open.expect("it is never closed"), address)
    }

    fn place(self: &Arc<Places>, open: OwnedSemaphorePermit, address: IpAddr) -> Arc<Place> {
        let peer = network(address);
        let end = Arc::new(Notify::new());
        let mut state = self.state.lock();
        let lane = state.make_room(peer);
        let (number, seen) = (state.next, state.events);
        state.next += 1;
        state.events += 1;
        state.taken.insert(
            number,
            Taken {
                peer,
                lane,
                busy: 0,
                seen,
                end: Arc::clone(&end),
            },
        );
        Arc::new(Place {
            places: Arc::clone(self),
            number,
            lane,
            end,
            _open: open,
        })
    }
}

impl State {
    /// Ends the connection for which there is no place beside a new one of this peer, and answers
    /// what the new one is served.
    fn make_room(&mut self, peer: IpAddr) -> Lane {
        let full = self.taken.values().filter(|one| one.lane == Lane::Full);
        let (all, of_peer) = full.fold((0, 0), |(all, of_peer), one| {
            (all + 1, of_peer + usize::from(one.peer == peer))
        });
        if all < FULL_MAX && of_peer < PEER_MAX {
            return Lane::Full;
        }
        let idle = self.taken.iter().filter(|(_, one)| {
            let is_in_question = of_peer < PEER_MAX || one.peer == peer;
            one.lane == Lane::Full && one.busy == 0 && is_in_question
        });
        let longest = idle.min_by_key(|(_, one)| one.seen);
        if let Some(number) = longest.map(|(number, _)| *number) {
            self.end(number);
            return Lane::Full;
        }
        let probes = || {
            self.taken
                .iter()
                .filter(|(_, one)| one.lane == Lane::Probes)
        };
        if probes().count() >= PROBES_MAX {
            let mut peers: HashMap<IpAddr, usize> = HashMap::new();
            for (_, one) in probes() {
                *peers.entry(one.peer).or_default() += 1;
            }
            let most = peers.values().copied().max().unwrap_or(0);
            let oldest = probes().find(|(_, one)| peers.get(&one.peer) == Some(&most));
            if let Some(number) = oldest.map(|(number, _)| *number) {
                self.end(number);
            }
        }
        Lane::Probes
    }

    fn end(&mut self, number: u64) {
        if let Some(taken) = self.taken.remove(&number) {
            taken.end.notify_one();
        }
    }

    fn seen(&mut self, number: u64, busy: impl FnOnce(u32) -> u32) {
        self.events += 1;
        if let Some(taken) = self.taken.get_mut(&number) {
            taken.seen = self.events;
            taken.busy = busy(taken.busy);
        }
    }
}

impl Place {
    /// Whether the connection is served nothing but probes.
    pub(super) fn is_for_probes(&self) -> bool {
        self.lane == Lane::Probes
    }

    /// Waits until the connection must end for another.
    pub(super) async fn ended(&self) {
        self.end.notified().await;
    }

    /// The connection has sent something.
    pub(super) fn sent(&self) {
        self.places.state.lock().seen(self.number, |busy| busy);
    }

    /// A request is being answered for as long as the answer lives.
    pub(super) fn answers(self: &Arc<Place>) -> Busy {
        let mut state = self.places.state.lock();
        state.seen(self.number, |busy| busy + 1);
        Busy(Arc::clone(self))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.0.places.state.lock();
        state.seen(self.0.number, |busy| busy.saturating_sub(1));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.state.lock().taken.remove(&self.number);
    }
}

/// What counts as one address: a peer with one address of a network of version 6 has all of it.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    /// A place if there is one at once.
    fn enter(places: &Arc<Places>, address: IpAddr) -> Option<Arc<Place>> {
        let open = Arc::clone(&places.open).try_acquire_owned().ok()?;
        Some(places.place(open, address))
    }

    fn is_ended(place: &Place) -> bool {
        !place.places.state.lock().taken.contains_key(&place.number)
    }

    #[test]
    fn an_address_has_its_share_and_ends_its_own_idle_connections() {
        let places = Places::new();
        let other = enter(&places, peer(2)).unwrap();
        let mine: Vec<_> = (0..PEER_MAX)
            .map(|_| enter(&places, peer(1)).unwrap())
            .collect();
        let busy = mine[0].answers();
        mine[1].sent();
        let more = enter(&places, peer(1)).unwrap();
        assert!(!more.is_for_probes());
        assert!(is_ended(&mine[2]), "it was idle for longest");
        let ended = mine.iter().filter(|place| is_ended(place)).count();
        assert_eq!((ended, is_ended(&other)), (1, false));
        drop(busy);
    }

    #[test]
    fn where_all_are_busy_there_are_places_for_probes() {
        let places = Places::new();
        let mut held = Vec::new();
        for number in 0..FULL_MAX {
            let address = peer(u8::try_from(number / PEER_MAX).unwrap());
            let place = enter(&places, address);
            let place = place.unwrap();
            held.push((place.answers(), place));
        }
        let probe = enter(&places, peer(9)).unwrap();
        assert!(probe.is_for_probes());
        let greedy: Vec<_> = (0..3 * PROBES_MAX)
            .map_while(|_| enter(&places, peer(0)))
            .collect();
        assert!(greedy.iter().all(|place| place.is_for_probes()));
        assert!(!is_ended(&probe), "another address has more of them");
        let stay = greedy.iter().filter(|place| !is_ended(place)).count();
        assert_eq!(stay, PROBES_MAX - 1);
        assert_eq!(
            greedy.len(),
            OPEN_MAX - FULL_MAX - 1,
            "those that end count"
        );
        assert!(held.iter().all(|(_, place)| !is_ended(place)));
        drop(held.pop());
        drop(greedy);
        assert!(!enter(&places, peer(9)).unwrap().is_for_probes());
    }

    #[test]
    fn a_network_of_version_6_counts_as_one_address() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
