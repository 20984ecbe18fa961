//! The bookie through its public interface. The journal is on a real disk in a temporary
//! directory, or on a simulated one that crashes; RocksDB is always real.

mod basic;
mod crash;
mod damage;
mod ends;
pub(crate) mod files;
mod full;
mod marks;
mod memory;
mod presence;
pub(crate) mod rot;
mod scrub;
mod space;
mod turns;

use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use aquifer_model::entry::EntryData;
use aquifer_model::id::{CreationToken, EntryId, LedgerId, TenantKey};
use aquifer_model::storage::{
    AddEntry, BookieError, BookieResult, OrderedOperation, OrderedReply, OrderedRequest, ReadBatch,
    ReadRange, StoredEntry,
};
use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::disk::{RealDisk, SharedDisk};
use aquifer_runtime::rng::SeededRng;
use aquifer_runtime::telemetry::Telemetry;
use bytes::Bytes;

use crate::checkpoints::Checkpointer;
use crate::store::EntryStore;
use crate::store::open::RocksStore;
use crate::{Bookie, BookieConfig, BookieDeps, BookieOpenError};

pub(crate) const MIB: usize = 1024 * 1024;
/// A condition that does not come true within this is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn config(directory: &Path) -> BookieConfig {
    BookieConfig {
        journal_segment_bytes: 8 * MIB,
        read_only_below_free_bytes: 0,
        writable_above_free_bytes: 1,
        reserve_bytes: 0,
        quiet_flush_ms: 600_000,
        ..BookieConfig::in_directory(directory)
    }
}

pub(crate) fn deps(disk: SharedDisk) -> BookieDeps {
    BookieDeps {
        disk,
        clock: SystemClock::shared(),
        rng: SeededRng::shared(7),
        meter: Telemetry::for_tests().meter("bookie"),
    }
}

pub(crate) fn try_open(config: &BookieConfig) -> Result<Bookie, BookieOpenError> {
    Bookie::open(config.clone(), deps(RealDisk::shared()))
}

pub(crate) fn open(config: &BookieConfig) -> Bookie {
    open_when_free(|| try_open(config))
}

/// A bookie that was dropped without a shutdown keeps its lock until its last job has ended.
pub(crate) fn open_when_free(open: impl Fn() -> Result<Bookie, BookieOpenError>) -> Bookie {
    let opened = std::cell::RefCell::new(None);
    eventually("the lock is free", || match open() {
        Err(BookieOpenError::Locked { .. }) => false,
        result => {
            *opened.borrow_mut() = Some(result.unwrap());
            true
        }
    });
    opened.into_inner().unwrap()
}

/// What the thread of checkpoints does when it is quiet.
pub(crate) fn checkpoint(bookie: &Bookie) {
    Checkpointer::new(&bookie.core.shared, &bookie.core.reclaimer).checkpoint();
}

/// Brings everything that is acknowledged into RocksDB's files.
pub(crate) fn flush_all(bookie: &Bookie) {
    eventually("applied", || {
        let status = bookie.status();
        status.applied_commit == status.synced_commit
    });
    checkpoint(bookie);
    let status = bookie.status();
    assert_eq!(status.flushed_commit, status.synced_commit);
}

/// The store of a bookie as what it is.
pub(crate) fn rocks(store: &dyn EntryStore) -> &RocksStore {
    let store = store.as_any().downcast_ref();
    store.expect("the store is RocksDB")
}

/// Puts a value into RocksDB that is not what was written, as a bad memory module would.
pub(crate) fn corrupt(bookie: &Bookie, ledger: u64, entry: u64) {
    let key = (LedgerId(ledger), EntryId(entry));
    let damaged = rocks(&*bookie.core.shared.store).with(|db| {
        let mut value = db.entry(key.0, key.1)?.expect("it is stored");
        *value.last_mut().unwrap() ^= 1;
        let mut batch = db.batch();
        batch.put_entry(key.0, key.1, &value)?;
        batch.write()
    });
    damaged.unwrap();
}

/// What a golden file has: a line of hexadecimal digits for each value.
pub(crate) fn golden(text: &str) -> Vec<Vec<u8>> {
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).unwrap();
        u8::from_str_radix(pair, 16).unwrap()
    };
    let lines = text.lines().map(str::as_bytes);
    lines
        .map(|line| line.chunks(2).map(byte).collect())
        .collect()
}

/// Bytes that count, so that each place of a golden value differs.
pub(crate) fn counting(from: u8) -> [u8; 16] {
    std::array::from_fn(|at| from + u8::try_from(at).unwrap())
}

pub(crate) fn token(ledger: u64) -> CreationToken {
    let mut token = [3; 16];
    token[..8].copy_from_slice(&ledger.to_le_bytes());
    CreationToken(token)
}

pub(crate) fn request(ledger: u64, operation: OrderedOperation) -> OrderedRequest {
    OrderedRequest {
        ledger: LedgerId(ledger),
        token: token(ledger),
        tenant: TenantKey::UNKNOWN,
        operation,
    }
}

/// The data of an entry: a pattern that names it.
pub(crate) fn data(ledger: u64, entry: u64, len: usize) -> EntryData {
    let head = Bytes::from(format!("head of {ledger}:{entry} "));
    let body: Vec<u8> = (0..len)
        .map(|i| u8::try_from((u64::try_from(i).unwrap() * 31 + entry * 7 + ledger) % 251).unwrap())
        .collect();
    EntryData {
        head,
        body: Bytes::from(body),
    }
}

pub(crate) fn add(ledger: u64, entry: u64, len: usize) -> AddEntry {
    let lac = entry.checked_sub(1).map(EntryId);
    AddEntry::new(
        LedgerId(ledger),
        EntryId(entry),
        lac,
        (entry + 1) * 100,
        data(ledger, entry, len),
    )
}

pub(crate) fn add_request(ledger: u64, entry: u64, len: usize) -> OrderedRequest {
    request(ledger, OrderedOperation::Add(add(ledger, entry, len)))
}

pub(crate) fn recovery_add(ledger: u64, entry: u64, len: usize) -> OrderedRequest {
    let mut add = add(ledger, entry, len);
    add.recovery = true;
    request(ledger, OrderedOperation::Add(add))
}

/// Submits and returns where the answer will be.
pub(crate) fn start(
    bookie: &Bookie,
    request: OrderedRequest,
) -> Receiver<BookieResult<OrderedReply>> {
    let (sender, receiver) = sync_channel(1);
    bookie.submit(
        request,
        Box::new(move |reply| {
            let _ = sender.send(reply);
        }),
    );
    receiver
}

pub(crate) fn answer(
    receiver: &Receiver<BookieResult<OrderedReply>>,
) -> BookieResult<OrderedReply> {
    receiver
        .recv_timeout(PATIENCE)
        .expect("every request is answered")
}

pub(crate) fn ask(bookie: &Bookie, request: OrderedRequest) -> BookieResult<OrderedReply> {
    answer(&start(bookie, request))
}

pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

pub(crate) fn range(ledger: u64, first: u64, last: u64) -> ReadRange {
    ReadRange {
        ledger: LedgerId(ledger),
        token: None,
        first: EntryId(first),
        last: EntryId(last),
        bytes_max: 64 * MIB,
        entries_max: usize::MAX,
        prefix_bytes: None,
    }
}

pub(crate) fn read(bookie: &Bookie, range: ReadRange) -> BookieResult<ReadBatch> {
    block_on(bookie.read(range))
}

pub(crate) fn read_one(bookie: &Bookie, ledger: u64, entry: u64) -> BookieResult<StoredEntry> {
    let mut batch = read(bookie, range(ledger, entry, entry))?;
    assert_eq!(batch.entries.len(), 1);
    Ok(batch.entries.remove(0))
}

/// Asserts that an entry is there, byte for byte.
pub(crate) fn expect(bookie: &Bookie, ledger: u64, entry: u64, len: usize) {
    let stored = read_one(bookie, ledger, entry)
        .unwrap_or_else(|error| panic!("entry {ledger}:{entry}: {error}"));
    let data = data(ledger, entry, len);
    assert_eq!(stored.data, [&data.head[..], &data.body[..]].concat());
    assert_eq!(stored.entry, EntryId(entry));
    assert!(stored.is_intact(LedgerId(ledger)));
}

pub(crate) fn done(reply: BookieResult<OrderedReply>) -> Option<EntryId> {
    match reply {
        Ok(OrderedReply::Done { last_add_confirmed }) => last_add_confirmed,
        other => panic!("expected Done, got {other:?}"),
    }
}

pub(crate) fn shutdown(bookie: &Bookie) {
    block_on(bookie.shutdown());
}

/// Waits for a condition that a background thread makes true.
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    block_on(async {
        let waited = aquifer_runtime::clock::timeout(PATIENCE, async {
            while !condition() {
                aquifer_runtime::clock::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(waited.await.is_ok(), "never: {what}");
    });
}

/// Copies what RocksDB has on disk now, as a crash would leave it: an open database flushes when
/// it is dropped, so a crash is simulated by going on with the copy.
pub(crate) fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    // The manifest names files that exist already, so it is copied before they are even listed.
    copy_entries(from, to, |name| name.starts_with("MANIFEST"));
    copy_entries(from, to, |name| !name.starts_with("MANIFEST"));
}

fn copy_entries(from: &Path, to: &Path, which: impl Fn(&str) -> bool) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if !which(entry.file_name().to_str().unwrap()) {
            continue;
        }
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            match std::fs::copy(entry.path(), target) {
                // Files that come and go are not in the manifest that was copied.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                copied => assert!(copied.is_ok(), "{copied:?}"),
            }
        }
    }
}

pub(crate) fn is_limbo<T: std::fmt::Debug>(result: BookieResult<T>) -> bool {
    matches!(result, Err(BookieError::Limbo))
}
