//! Randomness. Components take a [`SharedRng`]; a simulation hands them a seeded one and replays.
//!
//! Nothing here is meant for cryptographic keys; ids drawn from [`SystemRng`] are unpredictable
//! enough to be unique.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

/// A source of random numbers.
pub trait Rng: Send + Sync + 'static {
    /// A uniformly distributed number.
    fn next_u64(&self) -> u64;

    /// Sixteen random bytes, enough for an id that never repeats.
    fn id16(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.next_u64().to_be_bytes());
        id[8..].copy_from_slice(&self.next_u64().to_be_bytes());
        id
    }

    /// A number below `n`; zero when `n` is zero.
    fn below(&self, n: u64) -> u64 {
        // Multiply and shift: the bias is below n / 2^64.
        let wide = u128::from(self.next_u64()) * u128::from(n);
        u64::try_from(wide >> 64).expect("the upper half of a 128-bit product fits in 64 bits")
    }

    /// A duration between 50 % and 100 % of the given one, so that peers do not retry in step.
    fn jitter(&self, duration: Duration) -> Duration {
        let half = duration / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX - 1);
        half.saturating_add(Duration::from_nanos(self.below(nanos.saturating_add(1))))
            .min(duration)
    }
}

/// A random source that components hold and share.
pub type SharedRng = Arc<dyn Rng>;

/// The generator of the process, seeded by the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRng;

impl SystemRng {
    /// The system's generator, ready to hand to a component.
    #[must_use]
    pub fn shared() -> SharedRng {
        Arc::new(SystemRng)
    }
}

impl Rng for SystemRng {
    #[allow(
        clippy::disallowed_methods,
        reason = "the one place that uses unseeded randomness"
    )]
    fn next_u64(&self) -> u64 {
        rand::rng().next_u64()
    }
}

/// A deterministic generator: the same seed gives the same numbers.
#[derive(Debug)]
pub struct SeededRng {
    state: Mutex<StdRng>,
}

impl SeededRng {
    /// A generator for a seed.
    #[must_use]
    pub fn new(seed: u64) -> SeededRng {
        SeededRng {
            state: Mutex::new(StdRng::seed_from_u64(seed)),
        }
    }

    /// The same, ready to hand to a component.
    #[must_use]
    pub fn shared(seed: u64) -> SharedRng {
        Arc::new(SeededRng::new(seed))
    }
}

impl Rng for SeededRng {
    fn next_u64(&self) -> u64 {
        self.state.lock().next_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_replays() {
        let (a, b, c) = (SeededRng::new(7), SeededRng::new(7), SeededRng::new(8));
        let draw = |rng: &SeededRng| (0..20).map(|_| rng.next_u64()).collect::<Vec<_>>();
        let first = draw(&a);
        assert_eq!(first, draw(&b));
        assert_ne!(first, draw(&c));
    }

    #[test]
    fn below_covers_its_range_and_nothing_else() {
        let rng = SeededRng::new(1);
        let mut seen = [false; 5];
        for _ in 0..500 {
            seen[usize::try_from(rng.below(5)).unwrap()] = true;
        }
        assert_eq!(seen, [true; 5]);
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.below(1), 0);
    }

    #[test]
    fn jitter_stays_between_half_and_whole() {
        let rng = SeededRng::new(2);
        let whole = Duration::from_millis(200);
        for _ in 0..500 {
            let drawn = rng.jitter(whole);
            assert!(drawn >= whole / 2 && drawn <= whole, "{drawn:?}");
        }
        assert_eq!(rng.jitter(Duration::ZERO), Duration::ZERO);
        assert!(rng.jitter(Duration::MAX) >= Duration::MAX / 2);
    }

    #[test]
    fn ids_of_the_system_differ() {
        let rng = SystemRng::shared();
        assert_ne!(rng.id16(), rng.id16());
    }
}
