//! How much is fetched ahead of a reader: what is usual from bookies, and more of a ledger that is
//! in an object alone while the reader waits for it. A store takes long until the first byte comes,
//! and a bill counts requests: so ranges become larger, and more of them are fetched at once.
//!
//! Invariant: large ranges leave a part of the read-ahead budget to readers that have little.

use aquifer_ledger::offload::Copies;
use aquifer_model::id::{AttemptId, EntryId, LedgerId};
use aquifer_runtime::budget::BytePermit;

use crate::ranges::Plan;
use crate::state::{LogInner, Segment};

/// Most entries of one fetch: small ones cost more than their bytes.
pub(crate) const FETCH_ENTRIES_MAX: usize = 16 * 1024;
/// Fetches of one reader in flight at once: while one waits for the disk, another computes.
const FETCHES: usize = 2;
/// How often a reader has waited for objects when its window does not grow any more.
pub(crate) const WAITS_MAX: u8 = 3;
/// Large ranges leave this part of the read-ahead budget free: a quarter.
const LEFT_PART: usize = 4;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// Bytes of one fetch.
    pub(crate) range_bytes: usize,
    /// Fetches in flight at once.
    pub(crate) fetches: usize,
}

impl Window {
    /// That of a reader which has waited so often for objects.
    fn grown(usual_bytes: usize, waits: u8) -> Window {
        let (times, fetches) = match waits {
            0 => (1, FETCHES),
            1 => (2, FETCHES),
            2 => (4, FETCHES),
            _ => (4, 2 * FETCHES),
        };
        Window {
            range_bytes: usual_bytes.saturating_mul(times),
            fetches,
        }
    }

    /// Some room for entries that are larger than usual: a fetch that ends early leaves a gap.
    pub(crate) fn bytes_max(self) -> usize {
        self.range_bytes + self.range_bytes / 8
    }

    /// Whether these bytes and these fetches in flight are all that a reader has ahead.
    pub(crate) fn is_full(self, bytes: usize, fetches: usize) -> bool {
        fetches >= self.fetches
            || bytes + fetches * self.range_bytes >= self.fetches * self.range_bytes
    }
}

impl LogInner {
    /// The attempt whose object has a ledger that bookies do not serve, as far as that is known.
    fn object_of(&self, ledger: LedgerId) -> Option<AttemptId> {
        let infos = self.infos.lock();
        let offload = infos.get(&ledger)?.offload.as_ref()?;
        (!offload.copies().is_none_or(Copies::serve)).then(|| offload.attempt())
    }

    /// Whether bookies do not serve a ledger, as far as that is known.
    pub(crate) fn is_in_object(&self, ledger: LedgerId) -> bool {
        self.object_of(ledger).is_some()
    }

    /// What is usual.
    pub(crate) fn usual_window(&self) -> Window {
        Window::grown(self.ctx.settings.read_ahead_range_bytes, 0)
    }

    /// The window of a reader in a ledger, by how often it has waited for objects.
    pub(crate) fn window(&self, ledger: LedgerId, waits: u8) -> Window {
        match waits > 0 && self.is_in_object(ledger) {
            true => Window::grown(self.ctx.settings.read_ahead_range_bytes, waits),
            false => self.usual_window(),
        }
    }

    /// Counts that a reader has waited for a range of a ledger.
    pub(crate) fn waited_for(&self, ledger: LedgerId, waits: u8) -> u8 {
        match self.is_in_object(ledger) {
            true => waits.saturating_add(1).min(WAITS_MAX),
            false => waits,
        }
    }

    /// Room for a fetch ahead, and the bytes of its range: as large as the window wants it, or as
    /// is usual.
    pub(crate) fn take_ahead(&self, window: Window) -> Option<(BytePermit, usize)> {
        let (cache, usual) = (&self.ctx.cache, self.usual_window());
        let (used, capacity) = {
            let budget = cache.read_ahead();
            (budget.used_bytes(), budget.capacity_bytes())
        };
        let fits = used.saturating_add(window.bytes_max()) <= capacity - capacity / LEFT_PART;
        let window = match window == usual || fits {
            true => window,
            false => usual,
        };
        let permit = cache.try_read_ahead(window.bytes_max())?;
        Some((permit, window.range_bytes))
    }

    /// A fetch of one large range; of an object it ends with a block, so that no block is read for
    /// two ranges.
    pub(crate) fn plan_ahead(
        &self,
        first: EntryId,
        segment: &Segment,
        (permit, range_bytes): (BytePermit, usize),
    ) -> Plan {
        let mut plan = self.plan(first, segment, range_bytes);
        let cold = self.ctx.cold.as_ref();
        let whole = cold
            .zip(self.object_of(segment.ledger))
            .and_then(|(tier, attempt)| tier.cache.entries_within(attempt, first, range_bytes));
        if let Some(entries) = whole.and_then(|entries| usize::try_from(entries).ok()) {
            plan.entries = entries.clamp(1, FETCH_ENTRIES_MAX);
        }
        Plan {
            bytes_max: range_bytes + range_bytes / 8,
            permit: Some(permit),
            ..plan
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_grows_with_the_waits_and_has_an_end() {
        let mib = 1 << 20;
        let sizes = |waits| {
            let window = Window::grown(2 * mib, waits);
            (window.range_bytes / mib, window.fetches)
        };
        let all: Vec<(usize, usize)> = (0..=WAITS_MAX).map(sizes).collect();
        assert_eq!(all, [(2, 2), (4, 2), (8, 2), (8, 4)]);
        assert_eq!(sizes(u8::MAX), (8, 4));
        let window = Window::grown(2 * mib, 0);
        assert!(!window.is_full(mib, 1) && window.is_full(0, 2) && window.is_full(2 * mib, 1));
    }
}
