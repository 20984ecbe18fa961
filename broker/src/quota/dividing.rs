//! Divides the rates of tenants and namespaces between the brokers of a cluster: tells the others
//! through a record what this broker uses, and claims its share of the rate (`division.rs`).
//!
//! A record is written when a claim changes, at most once in [`PERIOD`] by each broker with topics
//! of the tenant or namespace. Nothing waits for it: while metadata is away, shares stay as they
//! are. A broker that has lost its lease keeps its share too, and the others divide it among
//! themselves once they have not seen the broker for a while; for as long as it goes on to serve
//! until it is fenced, more than the limit may pass.

use std::collections::{BTreeMap, HashMap};
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

/// The claims of a record: of publishing, and of dispatch.
type Both = [Claims; 2];

impl Dividing {
    fn new(shared: Arc<Context>) -> Dividing {
        let (store, rng) = (Arc::clone(shared.ownership.store()), shared.rng.clone());
        let prefix = keys::RATE_SHARES_PREFIX;
        Dividing {
            cache: PrefixCache::start(store, prefix, RATES_MAX, rng, &shared.tasks),
            shared,
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
            self.note_absent();
            for (scope, rates) in &limited {
                self.divide(scope, rates).await;
            }
            self.give_back(&limited).await;
            clock::sleep(LOOK_MIN).await;
            // What others change is looked at early, what is used when it is due.
            let pause = shared.rng.jitter(PERIOD - LOOK_MIN);
            let _ = clock::timeout(pause, changes.changed()).await;
        }
    }

    /// Claims what is fair of one rate.
    async fn divide(&mut self, scope: &PolicyScope, rates: &SharedRates) {
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
        // What is read is not older than what this broker has written itself. A record that is gone
        // since has no revision: it is the cache that must not be behind, and it is asked first.
        let seen = *self.cache.changes().borrow();
        if seen.is_none_or(|seen| seen < written) {
            return;
        }
        let stored = self.cache.get(&keys::rate_shares(scope));
        let Some(mut both) = self.claims(stored.as_ref()) else {
            return;
        };
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
            return;
        }
        if let Some(revision) = self.write(scope, stored.as_ref(), &both).await {
            rates.claim(claimed, self.shared.clock.monotonic(), brokers);
            if let Some(used) = self.used.get_mut(scope) {
                used.written = revision;
            }
        }
    }

    /// Gives up what this broker has of rates that it does not use any more.
    async fn give_back(&mut self, limited: &[(PolicyScope, Arc<SharedRates>)]) {
        let is_used = |scope: &PolicyScope| limited.iter().any(|(used, _)| used == scope);
        let unused: Vec<PolicyScope> = self
            .cache
            .items()
            .iter()
            .filter_map(|stored| match stored.key.parse() {
                Ok(Key::RateShares(scope)) if !is_used(&scope) => Some(scope),
                _ => None,
            })
            .collect();
        for scope in unused {
            let stored = self.cache.get(&keys::rate_shares(&scope));
            let Some(mut both) = self.claims(stored.as_ref()) else {
                continue;
            };
            let mut is_changed = false;
            for claims in &mut both {
                is_changed |= claims.remove(&self.shared.id).is_some();
            }
            // One of brokers that are gone is of use to no other.
            is_changed |= both.iter().all(BTreeMap::is_empty);
            if is_changed {
                self.write(&scope, stored.as_ref(), &both).await;
            }
        }
        self.used.retain(|scope, _| is_used(scope));
    }

    /// The claims of a record, without those of brokers that are gone; nothing when the record
    /// cannot be read.
    fn claims(&self, stored: Option<&Versioned>) -> Option<Both> {
        let mut both = Both::default();
        let Some(stored) = stored else {
            return Some(both);
        };
        let record: RateSharesRecord = match record::decode(stored) {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(key = stored.key, %error, "shares of a rate cannot be read");
                return None;
            }
        };
        let now = self.shared.clock.monotonic();
        let cluster = self.shared.ownership.cluster()?;
        let patience = cluster.members.lease_time() + ABSENT;
        for claim in record.claims {
            let Ok(broker) = BrokerId::try_from(claim.broker.as_ref()) else {
                continue;
            };
            let since = self.absent.get(&broker);
            if since.is_some_and(|since| now.saturating_sub(*since) >= patience) {
                continue;
            }
            let shares = [
                (claim.publish_share, claim.publish_demand),
                (claim.dispatch_share, claim.dispatch_demand),
            ];
            for (claims, (share, demand)) in both.iter_mut().zip(shares) {
                claims.insert(broker, Claim { share, demand });
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
        let present: Vec<BrokerId> = members.all().iter().map(|member| member.id).collect();
        let is_absent = |broker: &BrokerId| *broker != self.shared.id && !present.contains(broker);
        let mut absent = HashMap::new();
        for stored in self.cache.items() {
            let Ok(record) = record::decode::<RateSharesRecord>(&stored) else {
                continue;
            };
            for claim in record.claims {
                if let Ok(broker) = BrokerId::try_from(claim.broker.as_ref())
                    && is_absent(&broker)
                {
                    let since = self.absent.get(&broker).copied().unwrap_or(now);
                    absent.insert(broker, since);
                }
            }
        }
        self.absent = absent;
    }

    /// Writes a record over the one that was read. Answers at which revision, if that is certain.
    async fn write(
        &self,
        scope: &PolicyScope,
        stored: Option<&Versioned>,
        both: &Both,
    ) -> Option<Revision> {
        let store = self.shared.ownership.store();
        let (key, partition) = (keys::rate_shares(scope), keys::partition_of_policies(scope));
        let expect = stored.map_or(Expect::Absent, |stored| Expect::Revision(stored.revision));
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
            partition,
            guards: Vec::new(),
            operations: vec![operation],
        };
        match store.commit(transaction).await {
            Ok(revision) => Some(revision),
            // Another broker was first: its record is seen next.
            Err(MetadataError::Conflict { .. }) => None,
            Err(error) => {
                tracing::debug!(%key, %error, "a share of a rate is not claimed now");
                None
            }
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
