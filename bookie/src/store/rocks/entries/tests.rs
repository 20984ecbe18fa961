use aquifer_model::id::{EntryId, LedgerId};
use aquifer_model::storage::{AddEntry, OrderedOperation};
use rocksdb::perf::{PerfContext, PerfMetric, PerfStatsLevel, set_perf_stats};

use super::*;
use crate::Bookie;
use crate::tests::{
    MIB, ask, config, data, done, flush_all, open, range, request, rocks, shutdown,
};

const LEDGER: LedgerId = LedgerId(1);

/// A bookie that has entries of these sizes in its files.
fn stored(directory: &std::path::Path, sizes: &[usize]) -> Bookie {
    let bookie = open(&config(directory));
    let mut length = 0;
    for (entry, bytes) in (0..).zip(sizes) {
        let data = data(LEDGER.0, entry, *bytes);
        length += data.len() as u64;
        let lac = entry.checked_sub(1).map(EntryId);
        let add = AddEntry::new(LEDGER, EntryId(entry), lac, length, data);
        done(ask(&bookie, request(LEDGER.0, OrderedOperation::Add(add))));
    }
    flush_all(&bookie);
    bookie
}

/// How many entries a read returns, and the bytes of all values that it took from RocksDB.
fn read(bookie: &Bookie, first: u64, bytes_max: usize) -> (usize, usize) {
    let range = ReadRange {
        bytes_max,
        ..range(LEDGER.0, first, u64::MAX - 1)
    };
    set_perf_stats(PerfStatsLevel::EnableCount);
    let mut counted = PerfContext::default();
    counted.reset();
    let pending = BTreeMap::new();
    let store = rocks(&*bookie.core.shared.store);
    let found = store.with(|db| read_range(db, &range, &pending)).unwrap();
    let metrics = [
        PerfMetric::GetReadBytes,
        PerfMetric::MultigetReadBytes,
        PerfMetric::IterReadBytes,
    ];
    let bytes: u64 = metrics.iter().map(|metric| counted.metric(*metric)).sum();
    for (entry, at) in found.iter().zip(first..) {
        assert_eq!(entry.entry, EntryId(at));
        assert!(entry.is_intact(LEDGER));
    }
    (found.len(), usize::try_from(bytes).unwrap())
}

/// I13: how large entries are is known before many are read together, so that small ones before
/// large ones do not bring all of these into memory.
#[test]
fn what_is_read_beyond_an_answer_is_bounded() {
    const LARGE: usize = 2 * MIB;
    let directory = tempfile::tempdir().unwrap();
    let sizes = [&[6_000; 4][..], &[LARGE; 20]].concat();
    let bookie = stored(directory.path(), &sizes);
    let (found, bytes) = read(&bookie, 0, MIB);
    assert_eq!(found, 4);
    // The one that told how much lies before it, and the first that does not fit.
    assert!(bytes < 3 * LARGE, "{bytes} bytes are read");
    // All of them, some of which are looked at once more.
    let (found, bytes) = read(&bookie, 0, 64 * MIB);
    assert_eq!(found, sizes.len());
    assert!(bytes < 22 * LARGE + MIB, "{bytes} bytes are read");
    shutdown(&bookie);
}

/// Entries of one size are read together, and each only once.
#[test]
fn entries_of_one_size_are_read_once() {
    let directory = tempfile::tempdir().unwrap();
    let bookie = stored(directory.path(), &[6_000; 100]);
    for (first, count) in [(0, 100), (37, 63), (98, 2), (99, 1)] {
        let (found, bytes) = read(&bookie, first, MIB);
        assert_eq!(found, count);
        assert!(bytes < (count + 1) * 6_100, "{bytes} bytes are read");
    }
    let (found, bytes) = read(&bookie, 0, 50_000);
    assert_eq!(found, 8);
    assert!(bytes < 10 * 6_100, "{bytes} bytes are read");
    shutdown(&bookie);
}
