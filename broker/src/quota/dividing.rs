//! Divides the rates of tenants and namespaces between the brokers of a cluster: tells the others
//! through a record what this broker uses, and claims its share of the rate (`division.rs`).
//!
//! A record is written when a claim changes, at most once in [`PERIOD`] by each broker with topics
//! of the tenant or namespace. Nothing waits for it: while metadata is away, shares stay as they
//! are. A broker that has lost its lease keeps its share too, and the others divide it among
//! themselves once they have not seen the broker for a while; for as long as it goes on to serve
//! until it is fenced, more than the limit may pass.
//!
//! There may be as many rates as tenants and namespaces: a record is decoded once, several are
//! written at once, and other tasks have their turn in between.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::cache::PrefixCache;
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::record;
use aquifer_metadata::store::{Expect, Operation, Revision, Transaction, Versioned};
use aquifer_model::id::BrokerId;
use aquifer_model::policy::PolicyScope;
use aquifer_model::policy::rate::Rate;
use aquifer_proto::v1::{RateClaim, RateSharesRecord};
use aquifer_runtime::clock;
use futures::StreamExt;

use crate::bundle::ownership::Cluster;
use crate::context::Context;
use crate::quota::Cost;
use crate::quota::division::{self, Claim, Claims, WHOLE};
use crate::quota::rates::serving;
use crate::quota::shared::SharedRates;

/// From one look at what is used to the next.
const PERIOD: Duration = Duration::from_millis(1_000);
/// Shortest time between two looks at what other brokers claim.
const LOOK_MIN: Duration = Duration::from_millis(100);
/// Rates that may be divided.
const RATES_MAX: usize = 100_000;
/// Rates that are looked at before other tasks have their turn.
const CHUNK_RATES: usize = 256;
/// Records that are written at once.
const WRITES_AT_ONCE: usize = 16;
/// A broker that is not announced for this time, beyond its lease, has no claim.
const ABSENT: Duration = Duration::from_secs(5);

/// Divides rates from now on, where there may be other brokers.
pub(crate) fn start(shared: &Arc<Context>) {
    if shared.ownership.cluster().is_none() {
        return;
    }
    let (token, shared) = (shared.tasks.shutdown_token(), Arc::clone(shared));
    let tasks = shared.tasks.clone();
    tasks.spawn("rate-shares", async move {
        let mut dividing = Dividing::new(shared);
        tokio::select! {
            () = token.wait() => {}
            () = dividing.run() => {}
        }
    });
}

struct Dividing {
    shared: Arc<Context>,
    cache: PrefixCache,
    /// What the records say, by key, and up to where that is current.
    records: HashMap<String, Known>,
    seen: Option<Revision>,
    /// The rates that this broker uses.
    used: HashMap<PolicyScope, Used>,
    /// Brokers with claims that are not announced, and since when.
    absent: HashMap<BrokerId, Duration>,
}

/// A rate that this broker uses.
struct Used {
    measured: Duration,
    demands: [u32; 2],
    /// The record that this broker wrote last.
    written: Revision,
}

/// A record as it was read last.
struct Known {
    revision: Revision,
    scope: Option<PolicyScope>,
    /// What brokers claim; nothing when the record cannot be read.
    claims: Option<Vec<(BrokerId, [Claim; 2])>>,
}

/// A record that is to be written.
struct Change {
    scope: PolicyScope,
    expect: Expect,
    both: Both,
    /// What this broker has with it.
    claimed: Option<(Arc<SharedRates>, [u32; 2])>,
}

/// The claims of a record: of publishing, and of dispatch.
type Both = [Claims; 2];

impl Dividing {
    fn new(shared: Arc<Context>) -> Dividing {
        let (store, rng) = (Arc::clone(shared.ownership.store()), shared.rng.clone());
        let prefix = keys::RATE_SHARES_PREFIX;
        Dividing {
            cache: PrefixCache::start(store, prefix, RATES_MAX, rng, &shared.tasks),
            shared,
            records: HashMap::new(),
            seen: None,
            used: HashMap::new(),
            absent: HashMap::new(),
        }
    }

    async fn run(&mut self) {
        self.cache.ready().await;
        let mut changes = self.cache.changes();
        loop {
            let shared = Arc::clone(&self.shared);
            let limited = shared.aggregates.limited();
            self.read().await;
            self.note_absent();
            for some in limited.chunks(CHUNK_RATES) {
                let mut due = Vec::new();
                for (scope, rates) in some {
                    due.extend(self.divide(scope, rates));
                }
                self.write(due).await;
                tokio::task::yield_now().await;
            }
            self.give_back(&limited).await;
            clock::sleep(LOOK_MIN).await;
            // What others change is looked at early, what is used when it is due.
            let pause = shared.rng.jitter(PERIOD - LOOK_MIN);
            let _ = clock::timeout(pause, changes.changed()).await;
        }
    }

    /// Reads the records that have changed.
    async fn read(&mut self) {
        // Asked first: what is read is not older.
        let seen = *self.cache.changes().borrow();
        if seen == self.seen {
            return;
        }
        let mut before = std::mem::take(&mut self.records);
        for (number, stored) in self.cache.items().into_iter().enumerate() {
            let known = before.remove(&stored.key);
            let known = known.filter(|known| known.revision == stored.revision);
            let known = known.unwrap_or_else(|| Known::read(&stored));
            self.records.insert(stored.key, known);
            if number % CHUNK_RATES == CHUNK_RATES - 1 {
                tokio::task::yield_now().await;
            }
        }
        self.seen = seen;
    }

    /// Claims what is fair of one rate. Answers what is to be written for that.
    fn divide(&mut self, scope: &PolicyScope, rates: &Arc<SharedRates>) -> Option<Change> {
        let now = self.shared.clock.monotonic();
        let used = self.used.entry(scope.clone()).or_insert_with(|| Used {
            measured: now,
            // Until it is known.
            demands: [WHOLE; 2],
            written: Revision(0),
        });
        let passed = now.saturating_sub(used.measured);
        if passed >= PERIOD - LOOK_MIN {
            used.measured = now;
            let uses = rates.take_use().into_iter().zip(rates.limits());
            let demands = uses.map(|((cost, waited), limit)| demand(cost, waited, limit, passed));
            for (known, demand) in used.demands.iter_mut().zip(demands) {
                *known = demand;
            }
        }
        let (demands, written) = (used.demands, used.written);
        // What was read is not older than what this broker has written itself. A record that is
        // gone since has no revision: it is what was read of all that must not be behind.
        if self.seen.is_none_or(|seen| seen < written) {
            return None;
        }
        let known = self.records.get(&keys::rate_shares(scope));
        let mut both = self.claims(known)?;
        let me = self.shared.id;
        let mut is_changed = false;
        for (claims, demand) in both.iter_mut().zip(demands) {
            let next = division::next(claims, me, demand);
            is_changed |= claims.insert(me, next) != Some(next);
        }
        let share = |claims: &Claims| claims.get(&me).map_or(0, |claim| claim.share);
        let claimed = [share(&both[0]), share(&both[1])];
        // What is given up is not used any more before others may have it.
        let before = rates.claimed();
        let less = [claimed[0].min(before[0]), claimed[1].min(before[1])];
        let brokers = serving(&self.shared);
        rates.claim(less, now, brokers);
        if !is_changed {
            rates.claim(claimed, now, brokers);
            return None;
        }
        Some(Change {
            scope: scope.clone(),
            expect: known.map_or(Expect::Absent, |known| Expect::Revision(known.revision)),
            both,
            claimed: Some((Arc::clone(rates), claimed)),
        })
    }

    /// Gives up what this broker has of rates that it does not use any more.
    async fn give_back(&mut self, limited: &[(PolicyScope, Arc<SharedRates>)]) {
        let used: HashSet<&PolicyScope> = limited.iter().map(|(scope, _)| scope).collect();
        let mut changes = Vec::new();
        for (number, known) in self.records.values().enumerate() {
            if number % CHUNK_RATES == CHUNK_RATES - 1 {
                tokio::task::yield_now().await;
            }
            let Some(scope) = known.scope.as_ref().filter(|scope| !used.contains(scope)) else {
                continue;
            };
            let Some(mut both) = self.claims(Some(known)) else {
                continue;
            };
            let mut is_changed = false;
            for claims in &mut both {
                is_changed |= claims.remove(&self.shared.id).is_some();
            }
            // One of brokers that are gone is of use to no other.
            is_changed |= both.iter().all(BTreeMap::is_empty);
            if is_changed {
                changes.push(Change {
                    scope: scope.clone(),
                    expect: Expect::Revision(known.revision),
                    both,
                    claimed: None,
                });
            }
        }
        self.used.retain(|scope, _| used.contains(scope));
        self.write(changes).await;
    }

    /// The claims of a record, without those of brokers that are gone; nothing when the record
    /// cannot be read.
    fn claims(&self, known: Option<&Known>) -> Option<Both> {
        let mut both = Both::default();
        let Some(known) = known else {
            return Some(both);
        };
        let all = known.claims.as_ref()?;
        let now = self.shared.clock.monotonic();
        let cluster = self.shared.ownership.cluster()?;
        let patience = cluster.members.lease_time() + ABSENT;
        for (broker, of_broker) in all {
            let since = self.absent.get(broker);
            if since.is_some_and(|since| now.saturating_sub(*since) >= patience) {
                continue;
            }
            for (claims, claim) in both.iter_mut().zip(of_broker) {
                claims.insert(*broker, *claim);
            }
        }
        Some(both)
    }

    /// Notes which brokers with claims are not announced.
    fn note_absent(&mut self) {
        let Some(Cluster { members, .. }) = self.shared.ownership.cluster() else {
            return;
        };
        let now = self.shared.clock.monotonic();
        let present: HashSet<BrokerId> = members.all().iter().map(|member| member.id).collect();
        let is_absent = |broker: &BrokerId| *broker != self.shared.id && !present.contains(broker);
        let mut absent = HashMap::new();
        let claims = self
            .records
            .values()
            .filter_map(|known| known.claims.as_ref());
        for (broker, _) in claims.flatten() {
            if is_absent(broker) {
                let since = self.absent.get(broker).copied().unwrap_or(now);
                absent.insert(*broker, since);
            }
        }
        self.absent = absent;
    }

    /// Writes records, several at once, and uses what this broker has with them.
    async fn write(&mut self, changes: Vec<Change>) {
        let shared = Arc::clone(&self.shared);
        let writing = futures::stream::iter(changes).map(|change| {
            let shared = &shared;
            async move { (written(shared, &change).await, change) }
        });
        let mut writing = writing.buffer_unordered(WRITES_AT_ONCE);
        while let Some((revision, change)) = writing.next().await {
            let (Some(revision), Some((rates, claimed))) = (revision, change.claimed) else {
                continue;
            };
            rates.claim(claimed, shared.clock.monotonic(), serving(&shared));
            if let Some(used) = self.used.get_mut(&change.scope) {
                used.written = revision;
            }
        }
    }
}

impl Known {
    fn read(stored: &Versioned) -> Known {
        let scope = match stored.key.parse() {
            Ok(Key::RateShares(scope)) => Some(scope),
            _ => None,
        };
        let claims = match record::decode::<RateSharesRecord>(stored) {
            Ok(record) => Some(record.claims.iter().filter_map(claim_of).collect()),
            Err(error) => {
                tracing::error!(key = stored.key, %error, "shares of a rate cannot be read");
                None
            }
        };
        Known {
            revision: stored.revision,
            scope,
            claims,
        }
    }
}

fn claim_of(claim: &RateClaim) -> Option<(BrokerId, [Claim; 2])> {
    let broker = BrokerId::try_from(claim.broker.as_ref()).ok()?;
    let shares = [
        (claim.publish_share, claim.publish_demand),
        (claim.dispatch_share, claim.dispatch_demand),
    ];
    Some((
        broker,
        shares.map(|(share, demand)| Claim { share, demand }),
    ))
}

/// Writes a record over the one that was read. Answers at which revision, if that is certain.
async fn written(shared: &Context, change: &Change) -> Option<Revision> {
    let Change {
        scope,
        expect,
        both,
        ..
    } = change;
    let (key, expect) = (keys::rate_shares(scope), *expect);
    let record = record_of(both);
    let operation = match record.claims.is_empty() {
        true => Operation::Delete {
            key: key.clone(),
            expect,
        },
        false => Operation::Put {
            key: key.clone(),
            value: record::encode(record),
            expect,
        },
    };
    let transaction = Transaction {
        partition: keys::partition_of_policies(scope),
        guards: Vec::new(),
        operations: vec![operation],
    };
    match shared.ownership.store().commit(transaction).await {
        Ok(revision) => Some(revision),
        // Another broker was first: its record is seen next.
        Err(MetadataError::Conflict { .. }) => None,
        Err(error) => {
            tracing::debug!(%key, %error, "a share of a rate is not claimed now");
            None
        }
    }
}

fn demand(passed: Cost, has_waited: bool, limit: Rate, time: Duration) -> u32 {
    let within = |limit: u64| {
        let millis = u128::from(limit) * time.as_millis() / 1_000;
        u64::try_from(millis).unwrap_or(u64::MAX)
    };
    let of = |used: u64, limit: Option<u64>| {
        limit.map_or(0, |limit| division::demand(used, within(limit), has_waited))
    };
    of(passed.messages, limit.messages).max(of(passed.bytes, limit.bytes))
}

fn record_of([publish, dispatch]: &Both) -> RateSharesRecord {
    let brokers: std::collections::BTreeSet<&BrokerId> =
        publish.keys().chain(dispatch.keys()).collect();
    let claims = brokers.into_iter().map(|broker| {
        let [publish, dispatch] =
            [publish, dispatch].map(|claims| claims.get(broker).copied().unwrap_or_default());
        RateClaim {
            broker: bytes::Bytes::copy_from_slice(&broker.0),
            publish_share: publish.share,
            publish_demand: publish.demand,
            dispatch_share: dispatch.share,
            dispatch_demand: dispatch.demand,
        }
    });
    RateSharesRecord {
        claims: claims.collect(),
    }
}
