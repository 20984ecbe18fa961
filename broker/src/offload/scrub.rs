//! The scrub of objects, as a duty that the brokers of a cluster share: each reads the objects of
//! the ledgers that fall to it among those that are announced now. Two that do not agree read an
//! object twice, or leave it to the next pass; nothing else depends on it.

use std::time::Duration;

use aquifer_log::offload::scrub::scrub;
use aquifer_model::id::{BrokerId, LedgerId};
use aquifer_runtime::clock;

use crate::context::Context;
use crate::members::rank;

/// Steps of a pass: for each all records of ledgers are looked at.
const STEPS: u32 = 360;
/// A step takes at least this time.
const STEP_MIN: Duration = Duration::from_secs(1);
/// The first look comes so long after the start.
const FIRST_PAUSE: Duration = Duration::from_secs(60);

/// Scrubs, step by step, for ever.
pub(super) async fn rounds(shared: &Context) {
    let Some(tier) = &shared.log.cold else { return };
    let Some(pass) = tier.settings.scrub_pass else {
        return;
    };
    let step = (pass / STEPS).max(STEP_MIN);
    // The step before this process began is looked at soon: none may live for a whole step.
    let mut from = shared.clock.wall_ms().saturating_sub(clock::millis(step));
    let mut pause = step.min(FIRST_PAUSE);
    loop {
        clock::sleep(shared.rng.jitter(pause)).await;
        pause = step;
        let now = shared.clock.wall_ms();
        // What was missed for a whole pass is one pass; and clocks may go back.
        from = from.clamp(now.saturating_sub(clock::millis(pass)), now);
        let brokers = brokers(shared);
        let is_mine = |ledger| chosen(&brokers, ledger).is_none_or(|broker| broker == shared.id);
        match scrub(&shared.log, tier, (pass, from..now), is_mine).await {
            // The store is away: nothing of this time was read.
            Ok(seen) if seen.unknown > 0 && seen.objects == 0 => {
                tracing::warn!(?seen, "objects are scrubbed later");
            }
            Ok(seen) => {
                from = now;
                if seen.unknown > 0 {
                    tracing::warn!(
                        ?seen,
                        "objects could not be scrubbed: their next pass is due"
                    );
                } else if seen.objects > 0 {
                    tracing::debug!(?seen, "scrubbed objects");
                }
            }
            Err(error) => tracing::warn!(%error, "objects are scrubbed later"),
        }
    }
}

/// The brokers that share the duty; none where there is no cluster.
fn brokers(shared: &Context) -> Vec<BrokerId> {
    let Some(cluster) = shared.ownership.cluster() else {
        return Vec::new();
    };
    cluster.members.all().into_iter().map(|m| m.id).collect()
}

/// To which of them a ledger falls: when one comes or goes, few fall to another.
fn chosen(brokers: &[BrokerId], ledger: LedgerId) -> Option<BrokerId> {
    let ledger = ledger.to_string();
    let all = brokers.iter().copied();
    all.max_by_key(|broker| rank(&ledger, *broker))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_ledger_falls_to_one_broker_and_stays_there() {
        let all: Vec<BrokerId> = (0..4).map(|n| BrokerId([n; 16])).collect();
        let mut counts = [0; 4];
        for ledger in (0..4_000).map(LedgerId) {
            let first = chosen(&all, ledger).unwrap();
            counts[usize::from(first.0[0])] += 1;
            // The others keep theirs when one goes.
            let rest: Vec<BrokerId> = all.iter().copied().filter(|b| *b != all[3]).collect();
            let second = chosen(&rest, ledger).unwrap();
            assert!(first == second || first == all[3]);
        }
        assert!(counts.iter().all(|count| *count > 700), "{counts:?}");
        assert_eq!(chosen(&[], LedgerId(1)), None);
    }
}
