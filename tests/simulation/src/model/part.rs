//! Parts of a state that many states share, and fingerprints of states.
//!
//! A step changes few parts. The others are shared with the state before it, and so is what was
//! computed over them.

use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

/// 128 bits that stand for a state. Two different states among n have the same one with a
/// probability of about n² / 2^129.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u128);

impl Fingerprint {
    /// The fingerprint of a value.
    pub fn of(value: &impl Hash) -> Fingerprint {
        let mut lanes = Lanes::default();
        value.hash(&mut lanes);
        lanes.fingerprint()
    }
}

/// A value behind an `Arc`, with its fingerprint once that was computed.
#[derive(Debug, Clone, Default)]
pub struct Part<T> {
    value: Arc<T>,
    fingerprint: OnceLock<Fingerprint>,
}

impl<T> Part<T> {
    pub fn new(value: T) -> Part<T> {
        Part {
            value: Arc::new(value),
            fingerprint: OnceLock::new(),
        }
    }
}

impl<T: Clone> Part<T> {
    /// To change it. Other holders keep the old value.
    pub fn change(&mut self) -> &mut T {
        self.fingerprint = OnceLock::new();
        Arc::make_mut(&mut self.value)
    }
}

impl<T> Deref for Part<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for Part<T> {
    fn eq(&self, other: &Part<T>) -> bool {
        Arc::ptr_eq(&self.value, &other.value) || self.value == other.value
    }
}

impl<T: Eq> Eq for Part<T> {}

impl<T: Hash> Hash for Part<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let print = self
            .fingerprint
            .get_or_init(|| Fingerprint::of(&*self.value));
        state.write_u128(print.0);
    }
}

/// Two independent lanes of multiply and fold.
#[derive(Debug, Clone, Copy)]
struct Lanes(u64, u64);

const FIRST: u64 = 0x9e37_79b9_7f4a_7c15;
const SECOND: u64 = 0xd6e8_feb8_6659_fd93;

impl Default for Lanes {
    fn default() -> Lanes {
        Lanes(SECOND, FIRST)
    }
}

/// Both halves of the product, so that every bit of the input reaches every bit.
fn fold(one: u64, other: u64) -> u64 {
    let product = (u128::from(one) * u128::from(other)).to_le_bytes();
    let (mut low, mut high) = ([0; 8], [0; 8]);
    low.copy_from_slice(&product[..8]);
    high.copy_from_slice(&product[8..]);
    u64::from_le_bytes(low) ^ u64::from_le_bytes(high)
}

impl Lanes {
    fn fingerprint(self) -> Fingerprint {
        let high = fold(self.0 ^ self.1.rotate_left(29), SECOND);
        let low = fold(self.1 ^ self.0.rotate_left(31), FIRST);
        Fingerprint(u128::from(high) << 64 | u128::from(low))
    }
}

impl Hasher for Lanes {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = fold(self.0 ^ value, FIRST).wrapping_add(SECOND);
        self.1 = fold(self.1.wrapping_add(value), SECOND) ^ value.rotate_left(17);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn finish(&self) -> u64 {
        fold(self.0, self.1 | 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn values_that_differ_little_have_fingerprints_that_do_not_meet() {
        let mut halves = (HashSet::new(), HashSet::new());
        let mut count = 0;
        for one in 0_u64..256 {
            for other in 0_u64..256 {
                for last in [0_u8, 1, 255] {
                    let print = Fingerprint::of(&(one << (other % 56), vec![other], last)).0;
                    halves.0.insert(print >> 64);
                    halves.1.insert(print << 64);
                    count += 1;
                }
            }
        }
        // No bit is shifted out, so that all values differ, and both halves tell them apart.
        assert_eq!((halves.0.len(), halves.1.len()), (count, count));
    }

    #[test]
    fn a_changed_part_has_another_fingerprint_and_leaves_the_shared_one_alone() {
        let one = Part::new(vec![1]);
        let mut other = one.clone();
        assert_eq!(Fingerprint::of(&one), Fingerprint::of(&other));
        other.change().push(2);
        assert_ne!(Fingerprint::of(&one), Fingerprint::of(&other));
        assert_eq!((&*one, &*other), (&vec![1], &vec![1, 2]));
        other.change().pop();
        assert_eq!(Fingerprint::of(&one), Fingerprint::of(&other));
    }
}
