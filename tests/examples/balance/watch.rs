//! Which broker owns which topics, look by look: the spread of load, and what has moved.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use aquifer_client::admin::Admin;
use aquifer_model::bundle::BundleRange;
use aquifer_model::hash::key_hash;
use aquifer_model::topic::TopicName;
use aquifer_runtime::clock::{Clock, SystemClock};

const NAMESPACE: &str = "public/default";
const FIVE_MINUTES: Duration = Duration::from_secs(300);

struct Topic {
    hash: u32,
    rate: f64,
    owner: Option<String>,
    /// When it moved, and whether that was because its broker left.
    moves: Vec<(Duration, bool)>,
}

/// What was seen.
pub struct Watch {
    admin: Admin,
    topics: Vec<Topic>,
    owners: BTreeMap<BundleRange, String>,
    moves: usize,
    leaving: Option<String>,
}

impl Watch {
    /// Of topics with these rates.
    pub fn new(admin: Admin, rates: Vec<(String, f64)>) -> Watch {
        let topic = |(name, rate): (String, f64)| {
            let name: TopicName = name.parse().ok()?;
            Some(Topic {
                hash: key_hash(name.name().as_bytes()),
                rate,
                owner: None,
                moves: Vec::new(),
            })
        };
        Watch {
            admin,
            topics: rates.into_iter().filter_map(topic).collect(),
            owners: BTreeMap::new(),
            moves: 0,
            leaving: None,
        }
    }

    /// From now on, what moves away from there moves because it leaves.
    pub fn leaving(&mut self, url: &str) {
        self.leaving = Some(url.to_owned());
    }

    /// Looks, and answers the highest load of a broker as a multiple of the mean.
    pub async fn look(&mut self) -> Result<f64> {
        let brokers = self.admin.list_brokers().await?;
        let bundles = self.admin.list_bundles(NAMESPACE).await?;
        let mut owners = BTreeMap::new();
        for bundle in bundles {
            if let Some(broker) = bundle.broker {
                let range: BundleRange = bundle.bundle.parse().context("a bundle")?;
                owners.insert(range, broker);
            }
        }
        // One without an address any more is the one that leaves.
        let left: BTreeSet<&str> = match &self.leaving {
            Some(url) => {
                let there = brokers.iter().filter(|broker| broker.url != *url);
                let there: BTreeSet<&str> = there.map(|broker| broker.broker.as_str()).collect();
                let owned = self.owners.values().map(String::as_str);
                owned.filter(|owner| !there.contains(owner)).collect()
            }
            None => BTreeSet::new(),
        };
        let moved = |(range, broker): &(&BundleRange, &String)| {
            self.owners
                .get(range)
                .is_some_and(|before| before != *broker)
        };
        self.moves += owners.iter().filter(moved).count();
        let now = SystemClock.monotonic();
        for topic in &mut self.topics {
            let found = owners
                .range(
                    ..=BundleRange {
                        first: topic.hash,
                        last: u32::MAX,
                    },
                )
                .next_back();
            let owner = found
                .filter(|(range, _)| range.last >= topic.hash)
                .map(|(_, broker)| broker.clone());
            if let (Some(before), Some(after)) = (&topic.owner, &owner)
                && before != after
            {
                topic.moves.push((now, left.contains(before.as_str())));
            }
            topic.owner = owner.or(topic.owner.take());
        }
        self.owners = owners;
        let serving = brokers.iter().filter(|broker| !broker.draining);
        let serving: BTreeSet<String> = serving.map(|broker| broker.broker.clone()).collect();
        Ok(self.spread(&serving))
    }

    #[allow(clippy::cast_precision_loss, reason = "there are few brokers")]
    fn spread(&self, brokers: &BTreeSet<String>) -> f64 {
        let mut loads: BTreeMap<&str, f64> = brokers.iter().map(|id| (id.as_str(), 0.0)).collect();
        for topic in &self.topics {
            if let Some(load) = topic
                .owner
                .as_ref()
                .and_then(|id| loads.get_mut(id.as_str()))
            {
                *load += topic.rate;
            }
        }
        let mean = loads.values().sum::<f64>() / loads.len().max(1) as f64;
        let highest = loads.into_values().fold(0.0, f64::max);
        if mean > 0.0 { highest / mean } else { 1.0 }
    }

    /// Bundles that had another owner than at the look before.
    pub fn moves(&self) -> usize {
        self.moves
    }

    /// Bundles that have an owner.
    pub fn bundles(&self) -> usize {
        self.owners.len()
    }

    /// Topics that moved twice within five minutes.
    pub fn moved_twice(&self) -> usize {
        self.twice(|_, _| true)
    }

    /// Those of them of which one move was away from a broker that left.
    pub fn moved_twice_with_a_leave(&self) -> usize {
        self.twice(|first, second| first || second)
    }

    fn twice(&self, counts: impl Fn(bool, bool) -> bool) -> usize {
        let moved = |topic: &&Topic| {
            topic
                .moves
                .windows(2)
                .any(|pair| pair[1].0 - pair[0].0 < FIVE_MINUTES && counts(pair[0].1, pair[1].1))
        };
        self.topics.iter().filter(moved).count()
    }
}
