//! Sets of slots: the places of an ensemble that a state machine keeps track of.

use std::ops::{BitAnd, BitOr, BitOrAssign, Sub, SubAssign};

use aquifer_model::limits::ENSEMBLE_MAX;

/// A set of slots of an ensemble, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct SlotSet(u16);

const _: () = assert!(ENSEMBLE_MAX <= 16, "a set has a bit for every slot");

impl SlotSet {
    pub(crate) const EMPTY: SlotSet = SlotSet(0);

    fn only(slot: usize) -> SlotSet {
        SlotSet(1 << slot)
    }

    pub(crate) fn insert(&mut self, slot: usize) {
        *self |= SlotSet::only(slot);
    }

    pub(crate) fn remove(&mut self, slot: usize) {
        *self -= SlotSet::only(slot);
    }

    pub(crate) fn contains(self, slot: usize) -> bool {
        self & SlotSet::only(slot) != SlotSet::EMPTY
    }

    pub(crate) fn is_empty(self) -> bool {
        self == SlotSet::EMPTY
    }

    pub(crate) fn len(self) -> usize {
        usize::try_from(self.0.count_ones()).unwrap_or(0)
    }

    /// Its slots, in order.
    pub(crate) fn iter(self) -> impl Iterator<Item = usize> {
        (0..16).filter(move |slot| self.contains(*slot))
    }
}

impl FromIterator<usize> for SlotSet {
    fn from_iter<I: IntoIterator<Item = usize>>(slots: I) -> SlotSet {
        let with = |set, slot| set | SlotSet::only(slot);
        slots.into_iter().fold(SlotSet::EMPTY, with)
    }
}

impl BitAnd for SlotSet {
    type Output = SlotSet;

    fn bitand(self, other: SlotSet) -> SlotSet {
        SlotSet(self.0 & other.0)
    }
}

impl BitOr for SlotSet {
    type Output = SlotSet;

    fn bitor(self, other: SlotSet) -> SlotSet {
        SlotSet(self.0 | other.0)
    }
}

impl BitOrAssign for SlotSet {
    fn bitor_assign(&mut self, other: SlotSet) {
        *self = *self | other;
    }
}

/// What is in the first set and not in the second.
impl Sub for SlotSet {
    type Output = SlotSet;

    fn sub(self, other: SlotSet) -> SlotSet {
        SlotSet(self.0 & !other.0)
    }
}

impl SubAssign for SlotSet {
    fn sub_assign(&mut self, other: SlotSet) {
        *self = *self - other;
    }
}

impl std::fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
