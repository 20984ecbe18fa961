//! What belongs to the cluster: brokers, bundles, bookies, ledgers.

use aquifer_model::id::{BookieId, LedgerId};
use aquifer_model::topic::{NamespaceName, TopicName};
use aquifer_proto::v1;

use crate::admin::{Admin, Operator, PAGE_ITEMS};
use crate::error::{ClientError, Result};

/// A broker of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerInfo {
    /// Its id, drawn at its start.
    pub broker: String,
    /// Where it is reached through the listener that the broker was asked through; empty when it
    /// has none of that name.
    pub url: String,
    /// All its addresses, by the name of the listener.
    pub listeners: Vec<(String, String)>,
    /// What it runs.
    pub version: String,
    /// Whether it is about to end.
    pub draining: bool,
}

/// A bundle: a range of a namespace's topics by hash, the unit that brokers own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleInfo {
    /// Its hashes, as other calls take them.
    pub bundle: String,
    /// Its owner; `None` when it was not used yet.
    pub broker: Option<String>,
    /// Where the owner is; `None` when it is gone.
    pub url: Option<String>,
    /// The owner's epoch.
    pub epoch: u64,
}

/// A bookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookieInfo {
    /// Its id.
    pub bookie: String,
    /// `writable`, `read-only`, `limbo`, `draining`, `decommissioned`, `away`, or `away, draining`.
    pub state: String,
    /// Where it is reached; `None` when it is away.
    pub address: Option<String>,
    /// Its zone; empty when it is away.
    pub zone: String,
    /// Bytes that it can still take.
    pub free_bytes: u64,
    /// Bytes of its storage.
    pub capacity_bytes: u64,
    /// An operator wants it empty.
    pub draining: bool,
    /// Since when it is gone for good, in milliseconds since 1970; 0: it is not.
    pub decommissioned_ms: u64,
    /// Since when it lost synced data and is not restored; 0: it is whole.
    pub limbo_since_ms: u64,
    /// Directories of its storage.
    pub directories: Vec<String>,
    /// How many ledgers it must hold something of; `None`: they were not counted.
    pub ledgers: Option<u64>,
}

/// The bookies of the entries of a ledger from one on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerFragment {
    /// Its first entry.
    pub first_entry: u64,
    /// Ids of its bookies.
    pub bookies: Vec<String>,
}

/// A ledger as its record shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerInfo {
    /// Its id.
    pub ledger: LedgerId,
    /// `open`, `in-recovery`, `closed`, `offloading`, `offloaded`, or `unreadable`.
    pub state: String,
    /// Ensemble, write quorum and acknowledgement quorum.
    pub quorum: (u32, u32, u32),
    /// The last entry of a closed ledger that has any.
    pub last_entry: Option<u64>,
    /// Bytes of a closed ledger.
    pub bytes: u64,
    /// The metadata partition of its topic.
    pub home: String,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: u64,
    /// How many recoveries have begun.
    pub recovery_epoch: u64,
    /// Where its entries are.
    pub fragments: Vec<LedgerFragment>,
    /// Why its record cannot be read; nothing else is known then.
    pub error: Option<String>,
}

impl From<v1::BookieInfo> for BookieInfo {
    fn from(found: v1::BookieInfo) -> BookieInfo {
        BookieInfo {
            bookie: found.bookie,
            state: found.state,
            address: Some(found.address).filter(|address| !address.is_empty()),
            zone: found.zone,
            free_bytes: found.free_bytes,
            capacity_bytes: found.capacity_bytes,
            draining: found.draining,
            decommissioned_ms: found.decommissioned_ms,
            limbo_since_ms: found.limbo_since_ms,
            directories: found.directories,
            ledgers: found.ledgers,
        }
    }
}

impl From<v1::LedgerInfo> for LedgerInfo {
    fn from(found: v1::LedgerInfo) -> LedgerInfo {
        let fragments = found.fragments.into_iter().map(|fragment| LedgerFragment {
            first_entry: fragment.first_entry_id,
            bookies: fragment.bookies,
        });
        LedgerInfo {
            ledger: LedgerId(found.ledger_id),
            state: found.state,
            quorum: (found.ensemble, found.write_quorum, found.ack_quorum),
            last_entry: found.last_entry_id,
            bytes: found.bytes,
            home: found.home,
            created_ms: found.created_ms,
            recovery_epoch: found.recovery_epoch,
            fragments: fragments.collect(),
            error: Some(found.error).filter(|error| !error.is_empty()),
        }
    }
}

impl Admin {
    /// The brokers of the cluster; a standalone server is its only one.
    ///
    /// # Errors
    /// What every call may answer.
    pub async fn list_brokers(&self) -> Result<Vec<BrokerInfo>> {
        let answer = self
            .operate("listing brokers", true, |mut client: Operator| async move {
                client.list_brokers(v1::ListBrokersRequest {}).await
            })
            .await?;
        let brokers = answer.brokers.into_iter().map(|broker| BrokerInfo {
            broker: broker.broker,
            url: broker.url,
            listeners: broker
                .listeners
                .into_iter()
                .map(|listener| (listener.name, listener.url))
                .collect(),
            version: broker.version,
            draining: broker.draining,
        });
        Ok(brokers.collect())
    }

    /// The bundles of a namespace, in order, and their owners.
    ///
    /// # Errors
    /// `NotFound` for the namespace, `Invalid` for its name, and what every call may answer.
    pub async fn list_bundles(&self, namespace: &str) -> Result<Vec<BundleInfo>> {
        let request = v1::ListBundlesRequest {
            namespace: namespace.parse::<NamespaceName>()?.to_string(),
        };
        let answer = self
            .operate("listing bundles", true, move |mut client: Operator| {
                let request = request.clone();
                async move { client.list_bundles(request).await }
            })
            .await?;
        let bundles = answer.bundles.into_iter().map(|bundle| BundleInfo {
            bundle: bundle.bundle,
            broker: Some(bundle.broker).filter(|id| !id.is_empty()),
            url: Some(bundle.url).filter(|url| !url.is_empty()),
            epoch: bundle.epoch,
        });
        Ok(bundles.collect())
    }

    /// Moves a bundle to a broker, or to any other one; answers its id and URL.
    ///
    /// # Errors
    /// `NotFound` for the bundle or the broker, `Invalid` for a name, and what every call may
    /// answer.
    pub async fn transfer_bundle(
        &self,
        namespace: &str,
        bundle: &str,
        broker: Option<&str>,
    ) -> Result<(String, String)> {
        let request = v1::TransferBundleRequest {
            namespace: namespace.parse::<NamespaceName>()?.to_string(),
            bundle: bundle.to_owned(),
            broker: broker.unwrap_or_default().to_owned(),
        };
        let answer = self
            .operate("moving the bundle", false, move |mut client: Operator| {
                let request = request.clone();
                async move { client.transfer_bundle(request).await }
            })
            .await?;
        Ok((answer.broker, answer.url))
    }

    /// Splits a bundle in front of a hash, or where that halves its load as far as its owner knows,
    /// or in its middle; answers the parts, which stay where they are.
    ///
    /// # Errors
    /// `NotFound` for the bundle, `Invalid` where it cannot be split, and what every call may
    /// answer.
    pub async fn split_bundle(
        &self,
        namespace: &str,
        bundle: &str,
        at: Option<u32>,
    ) -> Result<Vec<String>> {
        let request = v1::SplitBundleRequest {
            namespace: namespace.parse::<NamespaceName>()?.to_string(),
            bundle: bundle.to_owned(),
            at,
        };
        let answer = self
            .operate(
                "splitting the bundle",
                false,
                move |mut client: Operator| {
                    let request = request.clone();
                    async move { client.split_bundle(request).await }
                },
            )
            .await?;
        Ok(answer.bundles)
    }

    /// The bookies that are announced, and those that have a record. To count the ledgers of each,
    /// the broker reads the records of all ledgers; then those are there too that only ledgers
    /// name.
    ///
    /// # Errors
    /// What every call may answer.
    pub async fn list_bookies(&self, count_ledgers: bool) -> Result<Vec<BookieInfo>> {
        let call = move |mut client: Operator| async move {
            let request = v1::ListBookiesRequest { count_ledgers };
            client.list_bookies(request).await
        };
        let answer = self.operate("listing bookies", true, call).await?;
        Ok(answer.bookies.into_iter().map(BookieInfo::from).collect())
    }

    /// One bookie.
    ///
    /// # Errors
    /// `NotFound`, and what every call may answer.
    pub async fn get_bookie(&self, bookie: BookieId, count_ledgers: bool) -> Result<BookieInfo> {
        let bookie = bookie.to_string();
        let call = move |mut client: Operator| {
            let request = v1::GetBookieRequest {
                bookie: bookie.clone(),
                count_ledgers,
            };
            async move { client.get_bookie(request).await }
        };
        let answer = self.operate("reading the bookie", true, call).await?;
        let found = answer.bookie.map(BookieInfo::from);
        found.ok_or_else(|| ClientError::Protocol("an answer without a bookie".to_owned()))
    }

    /// A page of all ledgers in the order of their ids, and, unless it is the last, where the next
    /// begins.
    ///
    /// # Errors
    /// What every call may answer.
    pub async fn list_ledgers(
        &self,
        after: Option<LedgerId>,
    ) -> Result<(Vec<LedgerInfo>, Option<LedgerId>)> {
        let after = after.map_or_else(String::new, |after| after.0.to_string());
        let call = move |mut client: Operator| {
            let request = v1::ListLedgersRequest {
                after: after.clone(),
                limit: PAGE_ITEMS,
            };
            async move { client.list_ledgers(request).await }
        };
        let page = self.operate("listing ledgers", true, call).await?;
        let ledgers = page.ledgers.into_iter().map(LedgerInfo::from).collect();
        Ok((ledgers, next(&page.next)?))
    }

    /// The ledgers of a topic or a partition, those of its subscriptions too, in the order of their
    /// ids.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for its name and for a partitioned topic, and what every call may
    /// answer.
    pub async fn list_topic_ledgers(&self, topic: &str) -> Result<Vec<LedgerInfo>> {
        let topic = topic.parse::<TopicName>()?.to_string();
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let request = v1::ListTopicLedgersRequest {
                topic: topic.clone(),
                after,
                limit: PAGE_ITEMS,
            };
            let call = move |mut client: Operator| {
                let request = request.clone();
                async move { client.list_topic_ledgers(request).await }
            };
            let page = self.operate("listing ledgers", true, call).await?;
            all.extend(page.ledgers.into_iter().map(LedgerInfo::from));
            if page.next.is_empty() {
                return Ok(all);
            }
            after = page.next;
        }
    }

    /// One ledger.
    ///
    /// # Errors
    /// `NotFound`, and what every call may answer.
    pub async fn get_ledger(&self, ledger: LedgerId) -> Result<LedgerInfo> {
        let call = move |mut client: Operator| async move {
            let ledger = ledger.0.to_string();
            client.get_ledger(v1::GetLedgerRequest { ledger }).await
        };
        let answer = self.operate("reading the ledger", true, call).await?;
        let found = answer.ledger.map(LedgerInfo::from);
        found.ok_or_else(|| ClientError::Protocol("an answer without a ledger".to_owned()))
    }
}

/// Where the next page begins.
fn next(text: &str) -> Result<Option<LedgerId>> {
    if text.is_empty() {
        return Ok(None);
    }
    let id = text.parse().map(LedgerId);
    let wrong = |_| ClientError::Protocol(format!("{text:?} is no ledger"));
    id.map(Some).map_err(wrong)
}
