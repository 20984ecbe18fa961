//! Repair after everything has healed: what was incomplete when a ledger was closed is whole again,
//! because the close has left a mark (I2, H16).

use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::error::LedgerError;
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::store::{Expect, MetadataStore, Versioned};
use aquifer_metadata::{keys, record, scan};
use aquifer_model::id::{BookieId, EntryId, LedgerId};
use aquifer_model::quorum::Quorum;
use aquifer_proto::v1;
use aquifer_repair::context::RepairContext;
use aquifer_repair::{RepairWorker, ReplicationConfig};
use aquifer_runtime::clock::{sleep, timeout};
use opentelemetry::metrics::MeterProvider;
use opentelemetry::metrics::noop::NoopMeterProvider;

use crate::cluster::context::Cluster;
use crate::cluster::ids::{id_of, number_of};
use crate::cluster::loss;

/// Virtual time in which a healed cluster must be whole again.
const REPAIRED_WITHIN: Duration = Duration::from_secs(600);
const LEDGERS_MAX: usize = 100_000;

/// Runs repair until no mark is left, then looks at every copy of every closed ledger.
pub(super) async fn run(cluster: &Arc<Cluster>) {
    // A bookie that has lost a disk is found by the auditor, whose grace is longer than a run.
    if cluster.history.has_lost_replicas() {
        return;
    }
    let done = match timeout(REPAIRED_WITHIN, repair(cluster)).await {
        Ok(Ok(())) => match check(cluster).await {
            Ok(()) => loss::run(cluster).await,
            checked => checked,
        },
        Ok(Err(error)) => Err(error),
        Err(_) => Err(LedgerError::BadRecord(0, "marks stay for ever".to_owned())),
    };
    if let Err(error) = done {
        let what = format!("H16: incomplete ledgers are not repaired: {error}");
        cluster.history.violation(what);
    }
}

/// A worker that repairs at once, and as fast as it can.
pub(super) async fn worker(cluster: &Arc<Cluster>) -> Result<RepairWorker, LedgerError> {
    let (_, context) = cluster.process();
    let session = context.ledgers.store.open_session(REPAIRED_WITHIN).await?;
    let config = ReplicationConfig {
        repair_bytes_per_second: u64::MAX,
        open_ledger_grace_ms: 0,
        ..ReplicationConfig::default()
    };
    let holder = format!("simulation {}", cluster.rng.next_u64());
    let meter = NoopMeterProvider::new().meter("simulation");
    let context = RepairContext::new(Arc::clone(&context.ledgers), &meter);
    Ok(RepairWorker::new(context, session.into(), &config, holder))
}

async fn repair(cluster: &Arc<Cluster>) -> Result<(), LedgerError> {
    let (_, context) = cluster.process();
    for number in 0..cluster.shape.bookies {
        register(&*context.ledgers.store, id_of(number)).await?;
    }
    let mut worker = worker(cluster).await?;
    loop {
        let round = worker.round().await?;
        cluster.history.repaired(round.repaired);
        if round.marked == 0 {
            return Ok(());
        }
        sleep(Duration::from_secs(1)).await;
    }
}

async fn register(store: &dyn MetadataStore, bookie: BookieId) -> Result<(), LedgerError> {
    let (key, value) = (
        keys::bookie(bookie),
        record::encode(v1::BookieRecord::default()),
    );
    while store.get(&key).await?.is_none() {
        let put = store.put(keys::CLUSTER_PARTITION, &key, value.clone(), Expect::Absent);
        match put.await {
            Ok(_) | Err(MetadataError::UnknownOutcome(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

async fn check(cluster: &Arc<Cluster>) -> Result<(), LedgerError> {
    let (_, context) = cluster.process();
    let (ledgers, _) =
        scan::all(&*context.ledgers.store, keys::LEDGERS_PREFIX, LEDGERS_MAX).await?;
    for stored in &ledgers {
        let Ok(keys::Key::Ledger(id)) = stored.key.parse() else {
            continue;
        };
        let Some(incomplete) = incomplete_entry(cluster, id, stored, None)? else {
            continue;
        };
        // What is being deleted has lost copies already; the record goes with the intent.
        if context
            .ledgers
            .store
            .get(&keys::deletion(id))
            .await?
            .is_none()
            && context.ledgers.store.get(&stored.key).await?.is_some()
        {
            let what =
                format!("H16: entry {id}:{incomplete} is closed, repaired and still incomplete");
            cluster.history.violation(what);
        }
    }
    Ok(())
}

/// The first entry of a closed ledger, but for one, that some bookie lacks which should have it.
pub(super) fn incomplete_entry(
    cluster: &Cluster,
    id: LedgerId,
    stored: &Versioned,
    but: Option<EntryId>,
) -> Result<Option<EntryId>, LedgerError> {
    let ledger: v1::LedgerRecord = record::decode(stored)?;
    let quorum = Quorum::new(ledger.ensemble, ledger.write_quorum, ledger.ack_quorum)
        .map_err(|error| LedgerError::BadRecord(id.0, error.to_string()))?;
    let Some(last) = ledger.last_entry_id else {
        return Ok(None);
    };
    let is_whole = |entry: u64| {
        let mut fragments = ledger.fragments.iter().rev();
        let fragment = fragments.find(|fragment| fragment.first_entry_id <= entry);
        let bookies = fragment.map(|fragment| fragment.bookies.as_slice());
        let bookies = bookies.unwrap_or_default();
        quorum.write_set(entry).all(|position| {
            let bookie = bookies.get(position);
            let bookie = bookie.and_then(|bytes| BookieId::try_from(&bytes[..]).ok());
            bookie.is_some_and(|bookie| cluster.net.has(number_of(bookie), id, EntryId(entry)))
        })
    };
    let mut entries = (0..=last).filter(|entry| Some(EntryId(*entry)) != but);
    let incomplete = entries.find(|entry| !is_whole(*entry));
    Ok(incomplete.map(EntryId))
}
