//! Which bookies get a ledger: a random choice among the writable ones, weighted by free space,
//! spread over zones, away from those that failed lately.
//!
//! Zones are a preference, unless a minimum is asked for: then every write set spans this many, or
//! there is an error that says what is missing. Quarantine is a preference only: a bookie that
//! failed lately, or has no room left, is better than none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_model::id::BookieId;
use aquifer_model::quorum::Quorum;
use aquifer_runtime::clock::{SharedClock, SystemClock};
use aquifer_runtime::rng::Rng;
use parking_lot::RwLock;

use crate::error::LedgerError;

#[cfg(test)]
mod tests;

/// Steps of the search for an ensemble that spans enough zones, at most.
const SEARCH_STEPS_MAX: usize = 4_096;
/// Bytes of free space that weigh as much as one; below, bookies weigh the same.
const WEIGHT_BYTES: u64 = 1 << 20;

/// What placement knows of a bookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookieInfo {
    /// Its identity.
    pub id: BookieId,
    /// Its failure domain; empty where unknown.
    pub zone: String,
    /// It takes no new entries now.
    pub read_only: bool,
    /// Bytes that its disks have free; 0 where unknown.
    pub free_bytes: u64,
    /// Bytes that its disks have in all; 0 where unknown.
    pub capacity_bytes: u64,
}

impl BookieInfo {
    /// Whether it has used up what it may have. It takes what it is given all the same, so it is
    /// better than none.
    fn has_no_room(&self) -> bool {
        self.capacity_bytes > 0 && self.free_bytes < WEIGHT_BYTES
    }
}

/// The bookies known to this process; clones share the set.
#[derive(Debug, Clone)]
pub struct Bookies {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: SharedClock,
    known: RwLock<Arc<Vec<BookieInfo>>>,
    /// Until when a bookie is passed over.
    quarantine: RwLock<BTreeMap<BookieId, Duration>>,
}

impl Default for Bookies {
    fn default() -> Bookies {
        Bookies::fixed(Vec::new())
    }
}

impl Bookies {
    /// A set that changes only by [`Bookies::replace`].
    #[must_use]
    pub fn fixed(bookies: Vec<BookieInfo>) -> Bookies {
        Bookies::with_clock(bookies, SystemClock::shared())
    }

    /// The same, with quarantines measured by this clock.
    #[must_use]
    pub fn with_clock(bookies: Vec<BookieInfo>, clock: SharedClock) -> Bookies {
        Bookies {
            shared: Arc::new(Shared {
                clock,
                known: RwLock::new(Arc::new(bookies)),
                quarantine: RwLock::default(),
            }),
        }
    }

    /// Sets what is known from now on.
    pub fn replace(&self, bookies: Vec<BookieInfo>) {
        *self.shared.known.write() = Arc::new(bookies);
    }

    /// What is known now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Vec<BookieInfo>> {
        Arc::clone(&self.shared.known.read())
    }

    /// How many take new entries now.
    #[must_use]
    pub fn writable(&self) -> usize {
        self.snapshot().iter().filter(|b| !b.read_only).count()
    }

    /// Passes a bookie over for this time, where others can take its place.
    pub fn quarantine(&self, bookie: BookieId, pause: Duration) {
        let now = self.shared.clock.monotonic();
        let mut quarantine = self.shared.quarantine.write();
        quarantine.retain(|_, until| *until > now);
        quarantine.insert(bookie, now.saturating_add(pause));
    }

    /// Whether a bookie is passed over now.
    #[must_use]
    pub fn is_quarantined(&self, bookie: BookieId) -> bool {
        let now = self.shared.clock.monotonic();
        let quarantine = self.shared.quarantine.read();
        quarantine.get(&bookie).is_some_and(|until| *until > now)
    }

    /// Chooses `count` writable bookies that are not in `exclude`, in zones that `beside` and the
    /// choice so far use least. For copies outside of an ensemble.
    ///
    /// # Errors
    /// [`LedgerError::TooFewBookies`].
    pub fn choose(
        &self,
        count: usize,
        exclude: &[BookieId],
        beside: &[BookieId],
        rng: &dyn Rng,
    ) -> Result<Vec<BookieId>, LedgerError> {
        let known = self.snapshot();
        let without = |id: &BookieId| exclude.contains(id) || beside.contains(id);
        let mut search = Search::new(&known, self.candidates(&known, without), count, rng)?;
        for info in known.iter().filter(|b| beside.contains(&b.id)) {
            *search.used.entry(&info.zone).or_default() += 1;
        }
        let mut chosen = Vec::with_capacity(count);
        while chosen.len() < count {
            let Some(zone) = search.zones_by_preference().first().copied() else {
                break;
            };
            chosen.extend(search.draw(zone).map(|info| info.id));
        }
        Ok(chosen)
    }

    /// Chooses the members of a new ledger, by position. Where `may_shrink`, and too few bookies
    /// are writable for the whole ensemble, it is made smaller, never below the ack quorum.
    ///
    /// # Errors
    /// [`LedgerError::TooFewBookies`], [`LedgerError::TooFewZones`].
    pub fn ensemble(
        &self,
        quorum: Quorum,
        zones_min: usize,
        may_shrink: bool,
        rng: &dyn Rng,
    ) -> Result<(Quorum, Vec<BookieId>), LedgerError> {
        let known = self.snapshot();
        let writable = known.iter().filter(|b| !b.read_only).count();
        let quorum = match quorum.within(writable) {
            Some(smaller) if may_shrink => smaller,
            _ => quorum,
        };
        let members = vec![None; quorum.ensemble()];
        let chosen = self.fill(&known, quorum, zones_min, members, &[], rng)?;
        Ok((quorum, chosen))
    }

    /// Chooses other bookies for the failed positions of an ensemble; returns all members.
    ///
    /// # Errors
    /// [`LedgerError::TooFewBookies`], [`LedgerError::TooFewZones`].
    pub fn replacements(
        &self,
        quorum: Quorum,
        zones_min: usize,
        members: &[BookieId],
        failed: &[usize],
        rng: &dyn Rng,
    ) -> Result<Vec<BookieId>, LedgerError> {
        self.replacements_without(quorum, zones_min, members, failed, &[], rng)
    }

    /// The same, without bookies that must not get anything of this ledger.
    ///
    /// # Errors
    /// As [`Bookies::replacements`].
    pub fn replacements_without(
        &self,
        quorum: Quorum,
        zones_min: usize,
        members: &[BookieId],
        failed: &[usize],
        without: &[BookieId],
        rng: &dyn Rng,
    ) -> Result<Vec<BookieId>, LedgerError> {
        let known = self.snapshot();
        let kept = members.iter().enumerate();
        let kept = kept.map(|(position, id)| (!failed.contains(&position)).then_some(*id));
        let kept = kept.collect();
        let exclude = [members, without].concat();
        self.fill(&known, quorum, zones_min, kept, &exclude, rng)
    }

    fn candidates<'a>(
        &self,
        known: &'a [BookieInfo],
        without: impl Fn(&BookieId) -> bool,
    ) -> (Vec<&'a BookieInfo>, Vec<&'a BookieInfo>) {
        known
            .iter()
            .filter(|b| !b.read_only && !without(&b.id))
            .partition(|b| !self.is_quarantined(b.id) && !b.has_no_room())
    }

    fn fill(
        &self,
        known: &[BookieInfo],
        quorum: Quorum,
        zones_min: usize,
        members: Vec<Option<BookieId>>,
        exclude: &[BookieId],
        rng: &dyn Rng,
    ) -> Result<Vec<BookieId>, LedgerError> {
        let open: Vec<usize> = (0..members.len())
            .filter(|&position| members[position].is_none())
            .collect();
        let candidates = self.candidates(known, |id| exclude.contains(id));
        let fresh = candidates.0.clone();
        let all = [candidates.0, candidates.1].concat();
        for candidates in [fresh, all.clone()] {
            let candidates = (candidates, Vec::new());
            let Ok(mut search) = Search::new(known, candidates, open.len(), rng) else {
                continue;
            };
            let zone_of = |id: &Option<BookieId>| {
                let info = known.iter().find(|b| Some(b.id) == *id);
                info.map(|info| info.zone.as_str())
            };
            let mut zones: Vec<Option<&str>> = members.iter().map(zone_of).collect();
            for zone in zones.iter().flatten() {
                *search.used.entry(zone).or_default() += 1;
            }
            let mut steps = SEARCH_STEPS_MAX;
            let spread = Spread { quorum, zones_min };
            if spread.search(&mut search, &open, &mut zones, &mut steps) {
                let mut members = members;
                for &position in &open {
                    let zone = zones[position].unwrap_or_default();
                    members[position] = search.take(zone).map(|info| info.id);
                }
                return Ok(members.into_iter().flatten().collect());
            }
        }
        Search::new(known, (all, Vec::new()), open.len(), rng)?;
        Err(LedgerError::TooFewZones {
            needed: zones_min,
            zones: zones_of(known),
        })
    }
}

/// The zones of writable bookies, for people.
fn zones_of(known: &[BookieInfo]) -> String {
    let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
    for info in known.iter().filter(|b| !b.read_only) {
        *zones.entry(&info.zone).or_default() += 1;
    }
    let name = |zone: &str| match zone {
        "" => "no zone".to_owned(),
        zone => zone.to_owned(),
    };
    let zones = zones
        .iter()
        .map(|(zone, n)| format!("{} ({n})", name(zone)));
    zones.collect::<Vec<_>>().join(", ")
}

/// The minimum of zones of every write set.
struct Spread {
    quorum: Quorum,
    zones_min: usize,
}

impl Spread {
    /// Gives every open position a zone, the least used first; goes back where that does not do.
    fn search<'a>(
        &self,
        search: &mut Search<'a>,
        open: &[usize],
        zones: &mut Vec<Option<&'a str>>,
        steps: &mut usize,
    ) -> bool {
        let Some((&position, rest)) = open.split_first() else {
            return self.holds(zones);
        };
        for zone in search.zones_by_preference() {
            if *steps == 0 {
                return false;
            }
            *steps -= 1;
            search.reserve(zone);
            zones[position] = Some(zone);
            if self.holds(zones) && self.search(search, rest, zones, steps) {
                return true;
            }
            zones[position] = None;
            search.release(zone);
        }
        false
    }

    /// Whether every write set spans enough zones, or still can.
    fn holds(&self, zones: &[Option<&str>]) -> bool {
        (0..self.quorum.ensemble() as u64).all(|entry| {
            let mut spanned: Vec<&str> = Vec::new();
            let mut open = 0;
            for position in self.quorum.write_set(entry) {
                match zones.get(position).copied().flatten() {
                    Some(zone) if !spanned.contains(&zone) => spanned.push(zone),
                    Some(_) => {}
                    None => open += 1,
                }
            }
            spanned.len() + open >= self.zones_min
        })
    }
}

/// Candidates by zone, and how much each zone is used.
struct Search<'a> {
    free: BTreeMap<&'a str, Vec<&'a BookieInfo>>,
    /// Places given to a zone for which no bookie was drawn yet.
    reserved: BTreeMap<&'a str, usize>,
    used: BTreeMap<&'a str, usize>,
    /// What a bookie weighs whose free space is not known.
    usual_weight: u64,
    rng: &'a dyn Rng,
}

impl<'a> Search<'a> {
    /// A search among the first candidates, and the second where the first are too few.
    fn new(
        known: &[BookieInfo],
        (fresh, quarantined): (Vec<&'a BookieInfo>, Vec<&'a BookieInfo>),
        count: usize,
        rng: &'a dyn Rng,
    ) -> Result<Search<'a>, LedgerError> {
        let available = fresh.len() + quarantined.len();
        if available < count {
            let read_only = known.iter().any(|b| b.read_only);
            return Err(LedgerError::TooFewBookies {
                needed: count,
                available,
                hint: if read_only {
                    " (others are read-only)"
                } else {
                    ""
                },
            });
        }
        let chosen = match fresh.len() < count {
            true => [fresh, quarantined].concat(),
            false => fresh,
        };
        let known: Vec<u64> = chosen
            .iter()
            .filter(|b| b.capacity_bytes > 0)
            .map(|b| weight(b))
            .collect();
        let usual_weight = known.iter().sum::<u64>() / (known.len() as u64).max(1);
        let mut free: BTreeMap<&str, Vec<&BookieInfo>> = BTreeMap::new();
        for info in chosen {
            free.entry(&info.zone).or_default().push(info);
        }
        Ok(Search {
            free,
            reserved: BTreeMap::new(),
            used: BTreeMap::new(),
            usual_weight: usual_weight.max(1),
            rng,
        })
    }

    fn weight_of(&self, info: &BookieInfo) -> u64 {
        match info.capacity_bytes {
            0 => self.usual_weight,
            _ => weight(info),
        }
    }

    /// Zones with a free bookie: the least used first, by chance and free space among equals.
    fn zones_by_preference(&self) -> Vec<&'a str> {
        let mut zones = Vec::new();
        let mut left: BTreeMap<usize, Vec<(&str, u64)>> = BTreeMap::new();
        for (zone, infos) in &self.free {
            if infos.len() > self.reserved.get(zone).copied().unwrap_or(0) {
                let used = self.used.get(zone).copied().unwrap_or(0);
                let weight = infos.iter().map(|info| self.weight_of(info)).sum();
                left.entry(used).or_default().push((zone, weight));
            }
        }
        for mut equals in left.into_values() {
            while !equals.is_empty() {
                let at = draw(equals.iter().map(|(_, weight)| *weight), self.rng);
                zones.push(equals.swap_remove(at).0);
            }
        }
        zones
    }

    fn reserve(&mut self, zone: &'a str) {
        *self.reserved.entry(zone).or_default() += 1;
        *self.used.entry(zone).or_default() += 1;
    }

    fn release(&mut self, zone: &'a str) {
        for counts in [&mut self.reserved, &mut self.used] {
            if let Some(count) = counts.get_mut(zone) {
                *count -= 1;
            }
        }
    }

    /// Draws a bookie of a zone.
    fn take(&mut self, zone: &str) -> Option<&'a BookieInfo> {
        let infos = self.free.get(zone)?;
        let at = draw(infos.iter().map(|info| self.weight_of(info)), self.rng);
        let infos = self.free.get_mut(zone)?;
        (!infos.is_empty()).then(|| infos.swap_remove(at))
    }

    /// Draws a bookie of a zone that was not reserved.
    fn draw(&mut self, zone: &'a str) -> Option<&'a BookieInfo> {
        *self.used.entry(zone).or_default() += 1;
        self.take(zone)
    }
}

fn weight(info: &BookieInfo) -> u64 {
    (info.free_bytes / WEIGHT_BYTES).max(1)
}

/// An index, by weight.
fn draw(weights: impl Iterator<Item = u64> + Clone, rng: &dyn Rng) -> usize {
    let total: u64 = weights.clone().fold(0, u64::saturating_add);
    let mut at = rng.below(total);
    for (index, weight) in weights.enumerate() {
        if at < weight {
            return index;
        }
        at -= weight;
    }
    0
}
