//! Bookies that run out of space: what they have of closed ledgers goes into objects at once, and
//! their copies go as soon as that is checked.

use std::collections::BTreeSet;
use std::sync::Arc;

use aquifer_ledger::placement::BookieInfo;
use aquifer_model::id::BookieId;
use parking_lot::Mutex;

/// A bookie with more of its space in use is under pressure,
const BEGINS_ABOVE_PERCENT: u128 = 80;
/// until it has less.
const ENDS_BELOW_PERCENT: u128 = 70;

/// The bookies that are under pressure.
#[derive(Debug, Default)]
pub struct Pressure {
    bookies: Mutex<Arc<BTreeSet<BookieId>>>,
}

/// How much of its space a bookie has in use, in percent, where it says so.
fn used_percent(bookie: &BookieInfo) -> Option<u128> {
    let (all, free) = (bookie.capacity_bytes, bookie.free_bytes);
    let used = u128::from(all.saturating_sub(free));
    (all > 0).then(|| used * 100 / u128::from(all))
}

impl Pressure {
    /// Takes in what bookies say of their space. One that is away is under no pressure: it has to
    /// come back first.
    pub fn look(&self, bookies: &[BookieInfo]) {
        let mut now = self.bookies.lock();
        let is_pressed = |bookie: &&BookieInfo| {
            used_percent(bookie).is_some_and(|used| match now.contains(&bookie.id) {
                true => used >= ENDS_BELOW_PERCENT,
                false => used > BEGINS_ABOVE_PERCENT,
            })
        };
        let pressed: BTreeSet<BookieId> = bookies.iter().filter(is_pressed).map(|b| b.id).collect();
        for bookie in pressed.difference(&now) {
            tracing::warn!(%bookie, "bookie runs out of space: what it has of closed ledgers is offloaded");
        }
        if pressed != **now {
            *now = Arc::new(pressed);
        }
    }

    /// Those that are.
    #[must_use]
    pub fn bookies(&self) -> Arc<BTreeSet<BookieId>> {
        Arc::clone(&self.bookies.lock())
    }

    /// Whether any is.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.bookies.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_ends_well_below_where_it_begins() {
        let id = BookieId([7; 16]);
        let pressure = Pressure::default();
        let look = |free_bytes, capacity_bytes| {
            pressure.look(&[BookieInfo {
                id,
                zone: String::new(),
                read_only: false,
                free_bytes,
                capacity_bytes,
            }]);
            pressure.is_on()
        };
        assert!(!look(0, 0), "it does not say");
        assert!(!look(20, 100) && look(19, 100));
        assert!(look(30, 100) && !look(31, 100) && !look(25, 100));
        assert!(look(0, 100));
        pressure.look(&[]);
        assert!(!pressure.is_on());
    }
}
