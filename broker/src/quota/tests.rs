use super::*;

fn rate(messages: Option<u64>, bytes: Option<u64>) -> Rate {
    Rate {
        messages,
        bytes,
        burst_ms: 1_000,
    }
}

fn cost(messages: u64, bytes: u64) -> Cost {
    Cost { messages, bytes }
}

const AT: fn(u64) -> Duration = Duration::from_millis;

#[test]
fn the_longer_wait_of_messages_and_bytes_counts() {
    let mut limiter = Limiter::unlimited();
    limiter.take(cost(1_000, 1_000_000));
    assert_eq!(limiter.wait(AT(0)), Duration::ZERO);
    limiter.set(rate(Some(10), Some(1_000)), AT(0));
    limiter.take(cost(20, 1_500));
    // Ten messages of debt are paid in a second, 500 bytes in half of one.
    assert!(!limiter.wait(AT(999)).is_zero());
    assert!(limiter.wait(AT(1_001)).is_zero());
    limiter.take(cost(1, 10_000));
    assert!(limiter.wait(AT(2_000)) > AT(7_000));
}

#[test]
fn a_limit_that_comes_back_does_not_forget_its_debt() {
    let mut limiter = Limiter::unlimited();
    limiter.set(rate(Some(10), None), AT(0));
    limiter.take(cost(30, 0));
    limiter.set(rate(Some(20), Some(5)), AT(0));
    assert!(limiter.is_limited());
    let wait = limiter.wait(AT(0));
    assert!(wait > AT(999) && wait < AT(1_002), "{wait:?}");
    limiter.set(Rate::UNLIMITED, AT(0));
    assert_eq!(
        (limiter.is_limited(), limiter.wait(AT(0))),
        (false, Duration::ZERO)
    );
}

#[test]
fn a_pause_lets_several_messages_pass_unless_the_burst_is_short() {
    let mut limiter = Limiter::unlimited();
    limiter.set(rate(Some(10_000), None), AT(0));
    assert_eq!(limiter.pause(Duration::from_nanos(1)), WAIT_MIN);
    assert_eq!(limiter.pause(AT(100)), AT(100));
    assert_eq!(limiter.pause(Duration::MAX), LOOK_MAX);
    let short = Rate {
        burst_ms: 2,
        ..rate(Some(10_000), None)
    };
    limiter.set(short, AT(0));
    assert_eq!(limiter.pause(Duration::from_nanos(1)), AT(1));
}

/// A producer that sends as fast as it may gets what the rate says, within its burst and a batch.
#[test]
fn a_rate_is_held_over_half_a_minute() {
    for batch in [1, 10, 500, 25_000] {
        let mut limiter = Limiter::unlimited();
        limiter.set(rate(Some(10_000), None), AT(0));
        let (mut now, mut passed) = (Duration::ZERO, 0u64);
        while now <= AT(30_000) {
            let wait = limiter.wait(now);
            if wait.is_zero() {
                limiter.take(cost(batch, batch));
                passed += batch;
            } else {
                // Timers are late by up to a millisecond.
                now += limiter.pause(wait) + AT(1);
            }
        }
        let most = 300_000 + 10_000 + 2 * batch;
        assert!(
            (300_000 - batch..=most).contains(&passed),
            "{batch}: {passed}"
        );
    }
}
