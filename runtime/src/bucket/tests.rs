//! Against a model that keeps every admission and counts it.

use proptest::prelude::*;

use super::*;

/// What happens to a bucket.
#[derive(Debug, Clone)]
enum Step {
    /// Time passes, in nanoseconds.
    Pass(u64),
    /// Something of this size wants to pass.
    Offer(u64),
    /// Waits as long as the bucket says, and offers.
    WaitAndOffer(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..3_000_000_000).prop_map(Step::Pass),
        (1u64..5_000).prop_map(Step::Offer),
        (1u64..5_000).prop_map(Step::WaitAndOffer),
    ]
}

/// The simplest bucket: in floating point, with whole history.
struct Model {
    rate: f64,
    burst: f64,
    admitted: Vec<(Duration, u64)>,
}

impl Model {
    /// Whether more than the bound was admitted in some window that begins and ends with an
    /// admission; others hold less.
    fn excess(&self) -> Option<(Duration, Duration, u64)> {
        let all = &self.admitted;
        for (begin, (from, _)) in all.iter().enumerate() {
            let mut sum = 0;
            for (until, size) in &all[begin..] {
                sum += size;
                let largest = *size as f64;
                let window = (*until - *from).as_secs_f64();
                if sum as f64 > self.rate * window + self.burst + largest + 1.0 {
                    return Some((*from, *until, sum));
                }
            }
        }
        None
    }
}

proptest! {
    /// Whatever is offered when, no window has more than rate * W + burst + one batch; and what has
    /// waited as long as it was told passes.
    #[test]
    fn no_window_has_more_than_the_bound(
        rate in 1u64..100_000,
        burst_ms in 0u64..3_000,
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let burst = Duration::from_millis(burst_ms);
        let mut now = Duration::from_secs(5);
        let mut bucket = Bucket::new(rate, burst, now);
        let mut model = Model {
            rate: rate as f64,
            burst: (rate as f64 * burst.as_secs_f64()).max(1.0),
            admitted: Vec::new(),
        };
        for step in steps {
            let size = match step {
                Step::Pass(nanos) => {
                    now += Duration::from_nanos(nanos);
                    continue;
                }
                Step::Offer(size) => size,
                Step::WaitAndOffer(size) => {
                    now += bucket.wait(now);
                    prop_assert_eq!(bucket.wait(now), Duration::ZERO, "the wait was long enough");
                    size
                }
            };
            if bucket.wait(now).is_zero() {
                bucket.take(size);
                model.admitted.push((now, size));
            }
        }
        prop_assert_eq!(model.excess(), None);
    }

    /// The wait is not longer than it must be.
    #[test]
    fn nothing_passes_before_the_wait_is_over(rate in 1u64..1_000_000, debt in 1u64..100_000) {
        let now = Duration::ZERO;
        let mut bucket = Bucket::new(rate, Duration::ZERO, now);
        bucket.take(debt);
        let wait = bucket.wait(now);
        if let Some(sooner) = wait.checked_sub(Duration::from_nanos(1)) {
            prop_assert!(!bucket.wait(sooner).is_zero());
        }
        prop_assert!(bucket.wait(wait).is_zero());
    }

    /// A change of the rate gives nothing away and takes nothing that has room.
    #[test]
    fn a_change_keeps_tokens_and_debt(
        rates in proptest::collection::vec((0u64..10_000, 0u64..3_000), 1..10),
        taken in 0u64..30_000,
    ) {
        let now = Duration::from_secs(1);
        let mut bucket = Bucket::new(1_000, Duration::from_secs(10), now);
        bucket.take(taken);
        let mut lowest = bucket.parts;
        for (rate, burst_ms) in rates {
            let burst = Duration::from_millis(burst_ms);
            bucket.change(rate, burst, now);
            lowest = lowest.min(burst_of(rate, burst));
            prop_assert_eq!(bucket.parts, lowest);
            prop_assert!(bucket.parts <= bucket.burst);
        }
    }
}

#[test]
fn a_rate_of_nothing_lets_nothing_pass() {
    let mut bucket = Bucket::new(0, Duration::from_secs(1), Duration::ZERO);
    assert_eq!(bucket.wait(Duration::from_secs(1_000)), Duration::MAX);
    bucket.change(10, Duration::from_secs(1), Duration::from_secs(1_000));
    let soon = bucket.wait(Duration::from_secs(1_000));
    assert!(
        soon > Duration::ZERO && soon < Duration::from_millis(1),
        "{soon:?}"
    );
}

#[test]
fn extreme_numbers_do_not_overflow() {
    let mut bucket = Bucket::new(u64::MAX, Duration::MAX, Duration::ZERO);
    for _ in 0..3 {
        bucket.take(u64::MAX);
    }
    let _ = bucket.wait(Duration::MAX);
    assert!(bucket.tokens() > 0);
}

#[test]
fn a_clock_that_goes_back_changes_nothing() {
    let mut bucket = Bucket::new(10, Duration::from_secs(1), Duration::from_secs(10));
    bucket.take(10);
    assert!(!bucket.wait(Duration::from_secs(5)).is_zero());
    assert!(bucket.wait(Duration::from_secs(11)).is_zero());
}
