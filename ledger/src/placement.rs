//! Which bookies get a new ledger: a random choice among the writable ones, spread over zones
//! where these are known.

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_model::id::BookieId;
use aquifer_runtime::rng::Rng;
use parking_lot::RwLock;

use crate::error::LedgerError;

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

/// The bookies known to this process; clones share the set.
#[derive(Debug, Clone, Default)]
pub struct Bookies {
    known: Arc<RwLock<Arc<Vec<BookieInfo>>>>,
}

impl Bookies {
    /// A set that changes only by [`Bookies::replace`].
    #[must_use]
    pub fn fixed(bookies: Vec<BookieInfo>) -> Bookies {
        Bookies {
            known: Arc::new(RwLock::new(Arc::new(bookies))),
        }
    }

    /// Sets what is known from now on.
    pub fn replace(&self, bookies: Vec<BookieInfo>) {
        *self.known.write() = Arc::new(bookies);
    }

    /// What is known now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Vec<BookieInfo>> {
        Arc::clone(&self.known.read())
    }

    /// Chooses `count` writable bookies that are not in `exclude`: first one from each zone that
    /// `beside` and the choice so far leave free, then any.
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
        let mut candidates: Vec<&BookieInfo> = known
            .iter()
            .filter(|b| !b.read_only && !exclude.contains(&b.id) && !beside.contains(&b.id))
            .collect();
        if candidates.len() < count {
            let read_only = known.iter().any(|b| b.read_only);
            return Err(LedgerError::TooFewBookies {
                needed: count,
                available: candidates.len(),
                hint: if read_only {
                    " (others are read-only)"
                } else {
                    ""
                },
            });
        }
        let mut used: BTreeMap<&str, usize> = BTreeMap::new();
        for info in known.iter().filter(|b| beside.contains(&b.id)) {
            *used.entry(&info.zone).or_default() += 1;
        }
        let mut chosen = Vec::with_capacity(count);
        while chosen.len() < count {
            // The least used zone first; a known zone beats an unknown one only by being unused.
            let load = |b: &BookieInfo| used.get(b.zone.as_str()).copied().unwrap_or(0);
            let least = candidates.iter().map(|b| load(b)).min().unwrap_or(0);
            let best: Vec<usize> = (0..candidates.len())
                .filter(|&i| load(candidates[i]) == least)
                .collect();
            let draw = usize::try_from(rng.below(best.len() as u64)).unwrap_or(0);
            let info = candidates.swap_remove(best[draw]);
            *used.entry(&info.zone).or_default() += 1;
            chosen.push(info.id);
        }
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use aquifer_runtime::rng::SeededRng;

    use super::*;

    fn bookie(n: u8, zone: &str, read_only: bool) -> BookieInfo {
        BookieInfo {
            id: BookieId([n; 16]),
            zone: zone.to_owned(),
            read_only,
            free_bytes: 0,
            capacity_bytes: 0,
        }
    }

    #[test]
    fn spreads_over_zones_and_skips_read_only() {
        let bookies = Bookies::fixed(vec![
            bookie(1, "a", false),
            bookie(2, "a", false),
            bookie(3, "b", false),
            bookie(4, "c", true),
            bookie(5, "c", false),
        ]);
        for seed in 0..50 {
            let rng = SeededRng::new(seed);
            let chosen = bookies.choose(3, &[], &[], &rng).unwrap();
            assert!(chosen.contains(&BookieId([3; 16])) && chosen.contains(&BookieId([5; 16])));
            let beside = [BookieId([3; 16]), BookieId([5; 16])];
            let replacement = bookies
                .choose(1, &[BookieId([1; 16])], &beside, &rng)
                .unwrap();
            assert_eq!(replacement, [BookieId([2; 16])]);
        }
    }

    #[test]
    fn too_few_is_an_error_that_counts() {
        let bookies = Bookies::fixed(vec![bookie(1, "", false), bookie(2, "", true)]);
        let error = bookies.choose(2, &[], &[], &SeededRng::new(1)).unwrap_err();
        assert!(error.to_string().contains("needs 2"), "{error}");
        assert!(error.to_string().contains("read-only"), "{error}");
    }
}
