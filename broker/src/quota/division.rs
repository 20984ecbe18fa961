//! How brokers divide a rate that they share, without I/O: what each claims of it, as one record
//! has it that all of them change by compare-and-swap.
//!
//! Invariants:
//! - The claims of a record sum up to the whole at most: a broker lowers its own to what is fair,
//!   and raises it only by what is free. So a share moves when the one that has too much has given
//!   it up, and the other has claimed it.
//! - A broker uses at most what its record says: it uses less before it writes that, and more
//!   after ([`of_broker`]).
//!
//! Fair is max–min: a broker that wants less than an equal part gets what it wants, the others
//! share the rest equally. What no broker wants is divided equally, so that a broker alone has
//! everything. A small part is not claimed at all and belongs to all brokers that serve, so that
//! one whose topic begins to be used does not wait for metadata.

use std::collections::BTreeMap;

use aquifer_model::id::BrokerId;

/// All of a rate: shares are millionths.
pub(super) const WHOLE: u32 = 1_000_000;
/// What belongs to all brokers that serve, in equal parts.
const UNCLAIMED: u32 = 20_000;
/// A claim that would grow by less stays as it is, so that nothing is written.
const STEP: u32 = WHOLE / 200;
/// What a broker wants is rounded up to this, and a change by less than two steps is not told, for
/// the same reason.
const DEMAND_STEP: u32 = 50_000;

/// What a broker has of a rate and what it wants, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Claim {
    pub(super) share: u32,
    /// [`WHOLE`]: as much as it can get.
    pub(super) demand: u32,
}

/// The claims of one direction of a rate.
pub(super) type Claims = BTreeMap<BrokerId, Claim>;

/// What a broker may use that has claimed a share, of a rate that a number of brokers divide.
pub(super) fn of_broker(claimed: u32, brokers: u64) -> u32 {
    if brokers <= 1 {
        return WHOLE;
    }
    let unclaimed = u64::from(UNCLAIMED) / brokers;
    let claimed = u64::from(claimed) * u64::from(WHOLE - UNCLAIMED) / u64::from(WHOLE);
    u32::try_from(unclaimed + claimed).unwrap_or(WHOLE)
}

/// What a broker wants that has used `used` of `limit` in the last while: some more than that, or
/// everything if something had to wait.
pub(super) fn demand(used: u64, limit: u64, has_waited: bool) -> u32 {
    if has_waited || limit == 0 {
        return WHOLE;
    }
    let wanted = u128::from(used) * u128::from(WHOLE) * 5 / 4 / u128::from(limit);
    let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
    let step = u64::from(DEMAND_STEP);
    let rounded = wanted.div_ceil(step).saturating_mul(step);
    u32::try_from(rounded).unwrap_or(WHOLE).min(WHOLE)
}

/// What a broker claims next; the same as before when that is not worth a change.
pub(super) fn next(claims: &Claims, me: BrokerId, demand: u32) -> Claim {
    let known = claims.get(&me);
    let now = known.copied().unwrap_or_default();
    let is_same =
        demand.abs_diff(now.demand) < 2 * DEMAND_STEP && (demand == WHOLE) == (now.demand == WHOLE);
    // A broker alone has everything, whatever it wants.
    let demand = match known {
        Some(now) if is_same || claims.len() == 1 => now.demand,
        _ => demand,
    };
    let mut wanted: BTreeMap<BrokerId, u32> = claims
        .iter()
        .map(|(broker, claim)| (*broker, claim.demand))
        .collect();
    wanted.insert(me, demand);
    let others = claims.iter().filter(|(broker, _)| **broker != me);
    let others: u32 = others
        .map(|(_, claim)| claim.share)
        .fold(0, u32::saturating_add);
    let free = WHOLE.saturating_sub(others);
    let share = fair(&wanted, me).min(free);
    // What others lack is given up to the last part.
    let is_near = now.share <= share && share - now.share < STEP;
    Claim {
        share: if is_near { now.share } else { share },
        demand,
    }
}

/// The fair part of a broker.
fn fair(wanted: &BTreeMap<BrokerId, u32>, me: BrokerId) -> u32 {
    let mut rising: Vec<(u32, BrokerId)> = wanted.iter().map(|(id, want)| (*want, *id)).collect();
    rising.sort_unstable();
    let (mut left, mut mine) = (WHOLE, 0);
    for (at, (want, broker)) in rising.iter().enumerate() {
        let brokers = u32::try_from(rising.len() - at).unwrap_or(u32::MAX);
        let part = (left / brokers).min(*want);
        left -= part;
        if *broker == me {
            mine = part;
        }
    }
    let brokers = u32::try_from(rising.len()).unwrap_or(u32::MAX).max(1);
    mine + left / brokers
}

#[cfg(test)]
mod tests;
