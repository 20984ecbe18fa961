//! Objects through stores: uploads, reads by index, damage, and places.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aquifer_metadata::embedded::{EmbeddedOptions, EmbeddedStore};
use aquifer_metadata::store::MetadataStore;
use aquifer_model::id::EntryId;
use aquifer_model::storage::StoredEntry;
use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::disk::{Disk, SimDisk};
use aquifer_runtime::rng::{SeededRng, SharedRng};
use aquifer_runtime::task::TaskGroup;

use crate::cache::{CacheBytes, ObjectCache, ObjectRef, WantedEntries};
use crate::disk::{DISK_CACHE_BYTES_MIN, DiskCache};
use crate::error::{ColdError, ColdResult};
use crate::format::tests::{ATTEMPT, LEDGER, TOKEN, entries, spec};
use crate::format::{Compression, Expected};
use crate::location::{Locations, PlaceOfObjects};
use crate::object::{read_tail, verify};
use crate::store::ColdStore;
use crate::testing::{Fault, MemoryColdStore, Op};
use crate::upload::{ObjectUpload, part_bytes};

const NAME: &str = "c/data/x/one.aqo";

/// Entries of about a KiB that do not compress, so that objects have parts.
fn some(count: usize) -> Vec<StoredEntry> {
    let rng = SeededRng::shared(7);
    let body = || (0..63).flat_map(|_| rng.id16()).collect();
    entries((0..count).map(|_| (body(), 1)))
}

async fn upload(store: &MemoryColdStore, wanted: &[StoredEntry], part: usize) -> ObjectRef {
    let shared: Arc<dyn ColdStore> = Arc::new(store.clone());
    let spec = spec(Compression::Auto);
    let mut upload = ObjectUpload::new(shared, NAME.to_owned(), spec, part);
    for entry in wanted {
        upload.add(entry).unwrap();
        if upload.is_full() {
            if !upload.has_begun() {
                upload.begin().await.unwrap();
            }
            upload.send().await.unwrap();
        }
    }
    let (written, done) = upload.complete().await.unwrap();
    done.unwrap();
    ObjectRef {
        name: NAME.to_owned(),
        size_bytes: written.bytes,
        index_offset: written.index_offset,
        expected: Expected {
            attempt: ATTEMPT,
            ledger: LEDGER,
            token: TOKEN,
            last_entry: wanted.last().unwrap().entry,
            length: wanted.last().unwrap().ledger_length,
        },
    }
}

fn cache() -> ObjectCache {
    ObjectCache::new(CacheBytes::default(), SystemClock::shared())
}

fn from(first: u64, bytes_max: usize) -> WantedEntries {
    WantedEntries {
        first: EntryId(first),
        last: EntryId(u64::MAX - 1),
        bytes_max,
        entries_max: usize::MAX,
    }
}

#[tokio::test]
async fn objects_of_one_part_and_of_many_read_back_the_same() {
    let wanted = some(500);
    for (part, begun) in [(1 << 30, 0), (10_000, 1)] {
        let store = MemoryColdStore::default();
        let object = upload(&store, &wanted, part).await;
        assert_eq!(store.count(Op::Begin), begun);
        let size = object.size_bytes;
        let checked = verify(&store, NAME, size, Some(&object.expected), |_, _| {}).await;
        assert_eq!(checked.unwrap().section.last_entry_id, 499);
        let cache = cache();
        let mut read = Vec::new();
        while read.len() < wanted.len() {
            let next = from(read.len() as u64, 100_000);
            let found = cache.read(&store, &object, next).await.unwrap();
            assert!(!found.is_empty());
            read.extend(found);
        }
        assert_eq!(read, wanted);
    }
}

#[tokio::test]
async fn a_read_costs_an_index_and_a_block_and_then_nothing() {
    let store = MemoryColdStore::default();
    let wanted = some(500);
    let object = upload(&store, &wanted, 1 << 30).await;
    let cache = cache();
    let read = |first| cache.read(&store, &object, from(first, 0));
    let _ = store.count(Op::Get);
    assert_eq!(read(250).await.unwrap(), wanted[250..251]);
    assert_eq!(store.count(Op::Get), 2);
    assert_eq!(read(251).await.unwrap(), wanted[251..252]);
    assert_eq!(store.count(Op::Get), 0);
    // Blocks in one row are one request.
    let many = cache.read(&store, &object, from(0, 1 << 30)).await.unwrap();
    assert_eq!(
        (many.len(), store.count(Op::Get)),
        (500, 2),
        "around what was there"
    );
    cache.clear();
    assert_eq!(cache.block_bytes(), 0);
    // Without a place of the index: what the end has.
    let (tail, _) = read_tail(&store, NAME, object.size_bytes, None)
        .await
        .unwrap();
    assert_eq!(tail.ledger(), LEDGER);
}

#[tokio::test]
async fn reads_that_go_on_take_whole_blocks_and_leave_little_behind() {
    let store = MemoryColdStore::default();
    let wanted = some(4_000);
    let object = upload(&store, &wanted, 1 << 30).await;
    let cache = cache();
    let within = |first| cache.entries_within(ATTEMPT, EntryId(first), 2 << 20);
    assert_eq!(within(0), None, "its index is not in memory");
    cache.tail(&store, &object).await.unwrap();
    let _ = store.count(Op::Get);
    let (mut next, mut reads) = (0, 0);
    while next < wanted.len() as u64 {
        let entries = within(next).unwrap();
        let until = WantedEntries {
            last: EntryId(next + entries - 1),
            ..from(next, 9 << 20)
        };
        let found = cache.read(&store, &object, until).await.unwrap();
        let at = usize::try_from(next).unwrap();
        assert_eq!(found, wanted[at..at + found.len()]);
        assert_eq!(found.len() as u64, entries);
        next += entries;
        reads += 1;
    }
    // No block was read twice, and of each read the first and the last one stay.
    assert_eq!(store.count(Op::Get), reads);
    assert!(cache.block_bytes() <= reads * 2 * (270 << 10), "{reads}");
    assert_eq!(cache.lookups().0, 0);
}

#[tokio::test]
async fn damage_is_an_error_and_a_bad_answer_is_asked_for_again() {
    let store = MemoryColdStore::default();
    let wanted = some(200);
    let object = upload(&store, &wanted, 1 << 30).await;
    store.change(NAME, |bytes| bytes[200] ^= 1);
    let cache = cache();
    let read = cache.read(&store, &object, from(0, 0)).await;
    assert!(matches!(read, Err(ColdError::Damaged { .. })), "{read:?}");
    let size = object.size_bytes;
    let checked = verify(&store, NAME, size, None, |_, _| {}).await;
    assert!(
        matches!(checked, Err(ColdError::Damaged { .. })),
        "{checked:?}"
    );
    store.change(NAME, |bytes| bytes[200] ^= 1);
    assert_eq!(
        cache.read(&store, &object, from(0, 0)).await.unwrap(),
        wanted[..1]
    );
    store.lose(NAME);
    let lost = cache.read(&store, &object, from(150, 0)).await;
    assert!(matches!(lost, Err(ColdError::NotFound(_))), "{lost:?}");
}

#[tokio::test]
async fn an_object_of_another_ledger_is_not_read() {
    let store = MemoryColdStore::default();
    let mut object = upload(&store, &some(3), 1 << 30).await;
    object.expected.token.0[0] ^= 1;
    let read = cache().read(&store, &object, from(0, 0)).await;
    assert!(matches!(read, Err(ColdError::Damaged { .. })), "{read:?}");
}

#[tokio::test]
async fn a_lost_answer_of_the_end_is_told_beside_what_was_written() {
    for (part, op) in [(1 << 30, Op::Put), (10_000, Op::Complete)] {
        let store = MemoryColdStore::default();
        store.judge(move |of, _| (of == op).then_some(Fault::AnswerLost));
        let shared: Arc<dyn ColdStore> = Arc::new(store.clone());
        let spec = spec(Compression::None);
        let mut upload = ObjectUpload::new(shared, NAME.to_owned(), spec, part);
        for entry in some(300) {
            upload.add(&entry).unwrap();
            if upload.is_full() {
                if !upload.has_begun() {
                    upload.begin().await.unwrap();
                }
                upload.send().await.unwrap();
            }
        }
        let (written, done) = upload.complete().await.unwrap();
        assert!(matches!(done, Err(ColdError::Unavailable(_))), "{done:?}");
        store.heal();
        let checked = verify(&store, NAME, written.bytes, None, |_, _| {}).await;
        assert!(checked.is_ok(), "{op:?}: {checked:?}");
    }
}

#[test]
fn parts_are_few_enough_for_stores() {
    assert_eq!(part_bytes(0), 8 << 20);
    assert_eq!(part_bytes(1 << 30), 8 << 20);
    let tebibyte = 1_u64 << 40;
    assert!((tebibyte + tebibyte / 2) / part_bytes(tebibyte) as u64 <= 9_000);
}

/// A metadata store, and places in stores by their URLs.
struct Places {
    _directory: tempfile::TempDir,
    metadata: Arc<dyn MetadataStore>,
    stores: [MemoryColdStore; 2],
    rng: SharedRng,
}

impl Places {
    async fn new() -> Places {
        let directory = tempfile::tempdir().unwrap();
        let tasks = TaskGroup::new("test");
        let opened = EmbeddedStore::open(
            directory.path().join("metadata"),
            EmbeddedOptions::default(),
            aquifer_runtime::disk::RealDisk::shared(),
            SystemClock::shared(),
            &tasks,
        );
        Places {
            metadata: Arc::new(opened.await.unwrap()),
            _directory: directory,
            stores: Default::default(),
            rng: SeededRng::shared(1),
        }
    }

    /// What a process has that is told this URL.
    fn at(&self, url: &str) -> Locations {
        self.of("c", url)
    }

    fn of(&self, cluster: &str, url: &str) -> Locations {
        let stores = self.stores.clone();
        let opener = move |url: &str| -> ColdResult<Arc<dyn ColdStore>> {
            let which = usize::from(url.ends_with('2'));
            Ok(Arc::new(stores[which].clone()))
        };
        let seams = (SystemClock::shared(), Arc::clone(&self.rng));
        let metadata = Arc::clone(&self.metadata);
        Locations::new(metadata, seams, cluster, url, Box::new(opener))
    }

    /// Moves what the first cluster has in a store into the other one.
    async fn move_marker(&self, from: usize, to: usize) {
        let (name, store) = ("c/location", &self.stores[from]);
        let size = store.size(name).await.unwrap();
        let marker = store.get(name, 0..size).await.unwrap();
        self.stores[to].put_new(name, marker).await.unwrap();
        store.lose(name);
    }
}

#[tokio::test]
async fn places_have_numbers_and_markers() {
    let places = Places::new().await;
    let first = places.at("mem://1").primary().await.unwrap();
    let again = places.at("mem://1").primary().await.unwrap();
    assert_eq!((first.number, first.id), (again.number, again.id));
    let second = places.at("mem://2").primary().await.unwrap();
    assert_ne!(second.number, first.number);
    // Objects of the former place stay readable.
    let found = places.at("mem://2").get(first.number).await.unwrap();
    assert_eq!((found.id, found.url.as_str()), (first.id, "mem://1"));
    // The place under another URL is the same place.
    let moved = places.at("mem://moved/1").primary().await.unwrap();
    assert_eq!(moved.number, first.number);
    let nowhere = places.at("").primary().await;
    assert!(matches!(nowhere, Err(ColdError::Config(_))));
}

#[tokio::test]
async fn a_place_that_lost_its_marker_or_has_another_is_not_used() {
    let places = Places::new().await;
    let first = places.at("mem://1").primary().await.unwrap();
    places.stores[0].lose("c/location");
    let is_wrong = |error| matches!(error, Err(ColdError::WrongPlace { .. }));
    assert!(is_wrong(first.check().await));
    assert!(is_wrong(places.at("mem://1").primary().await.map(drop)));
    assert!(is_wrong(
        places.at("mem://1").get(first.number).await.map(drop)
    ));
    // A cluster of the same name with other metadata.
    let second = places.at("mem://2").primary().await.unwrap();
    let others = Places {
        stores: places.stores.clone(),
        rng: SeededRng::shared(2),
        ..Places::new().await
    };
    assert!(is_wrong(others.at("mem://2").primary().await.map(drop)));
    second.check().await.unwrap();
}

#[tokio::test]
async fn a_place_that_was_noted_and_not_marked_is_marked_later() {
    let places = Places::new().await;
    places.stores[0].judge(|op, _| (op == Op::Put).then_some(Fault::Fails));
    let failed = places.at("mem://1").primary().await.map(drop);
    assert!(matches!(failed, Err(ColdError::Unavailable(_))));
    places.stores[0].heal();
    assert_eq!(places.at("mem://1").primary().await.unwrap().number, 1);
}

#[tokio::test]
async fn the_recorded_url_is_asked_first_and_the_configured_place_last() {
    let places = Places::new().await;
    let first = places.at("mem://1").primary().await.unwrap();
    places.at("mem://2").primary().await.unwrap();
    // While the configured place is away, others are read, and it is not even asked.
    let _ = places.stores[1].count(Op::Size);
    places.stores[1].judge(|_, _| Some(Fault::Fails));
    let found = places.at("mem://2").get(first.number).await.unwrap();
    assert_eq!((found.id, found.url.as_str()), (first.id, "mem://1"));
    assert_eq!(places.stores[1].count(Op::Size), 0);
}

#[tokio::test]
async fn a_place_that_is_not_where_its_record_says_may_be_the_configured_one() {
    let places = Places::new().await;
    let first = places.at("mem://1").primary().await.unwrap();
    places.move_marker(0, 1).await;
    let now = places.at("mem://2");
    let found = now.get(first.number).await.unwrap();
    assert_eq!((found.id, found.url.as_str()), (first.id, "mem://2"));
    // With neither, the error is that of the recorded one.
    places.stores[1].lose("c/location");
    let lost = places.at("mem://1").get(first.number).await.map(drop);
    let is_of_recorded =
        |error: &ColdError| matches!(error, ColdError::WrongPlace { url, .. } if url == "mem://2");
    assert!(lost.as_ref().is_err_and(is_of_recorded), "{lost:?}");
}

#[tokio::test]
async fn a_place_of_another_cluster_is_followed_where_it_moves() {
    let places = Places::new().await;
    let id = places.at("mem://1").primary().await.unwrap().id;
    let other = Places {
        stores: places.stores.clone(),
        ..Places::new().await
    };
    let place = |url: &str| PlaceOfObjects {
        id,
        url: url.to_owned(),
        owner: "c".to_owned(),
    };
    let (reader, restorer) = (other.of("other", ""), other.of("other", ""));
    let (number, is_foreign) = restorer.number_of(&place("mem://1")).await.unwrap();
    assert!(is_foreign);
    assert_eq!(reader.get(number).await.unwrap().url, "mem://1");
    // A place that is not there, or is another, is not where it went.
    restorer.number_of(&place("mem://2")).await.unwrap();
    assert_eq!(restorer.get(number).await.unwrap().url, "mem://1");
    places.move_marker(0, 1).await;
    let found = restorer.number_of(&place("mem://2")).await.unwrap();
    assert_eq!(found, (number, true));
    assert_eq!(restorer.get(number).await.unwrap().url, "mem://2");
    assert!(restorer.get(number).await.unwrap().is_foreign);
    // A copy, with the marker, does not take over from the place that is there.
    let size = places.stores[1].size("c/location").await.unwrap();
    let marker = places.stores[1].get("c/location", 0..size).await.unwrap();
    let copied = places.stores[0].put_new("c/location", marker).await;
    copied.unwrap();
    restorer.number_of(&place("mem://1")).await.unwrap();
    assert_eq!(restorer.get(number).await.unwrap().url, "mem://2");
    places.stores[0].lose("c/location");
    // Another process learns it when it finds nothing there.
    assert!(reader.get(number).await.unwrap().check().await.is_err());
    reader.look_again(number).await.unwrap();
    reader.get(number).await.unwrap().check().await.unwrap();
    // What an older backup says of it does not lead back, as long as it is there.
    restorer.number_of(&place("mem://moved/2")).await.unwrap();
    assert_eq!(restorer.get(number).await.unwrap().url, "mem://2");
    // The place of its own cluster is not led away by a backup.
    let own = places.at("mem://1");
    let (number, is_foreign) = own.number_of(&place("mem://2")).await.unwrap();
    assert!(!is_foreign);
    assert_eq!(own.describe(number).await.unwrap().url, "mem://1");
}

/// Blocks come from the local disk when memory has none, and from the object when the disk has them
/// damaged.
#[tokio::test]
async fn blocks_are_read_from_the_local_disk_and_never_damaged() {
    let disk = SimDisk::new();
    let directory = Path::new("/cache");
    let clock = SystemClock::shared();
    let opened = DiskCache::open(disk.shared(), directory, DISK_CACHE_BYTES_MIN, clock);
    let opened = opened.unwrap();
    let bytes = CacheBytes {
        blocks: 0,
        ..CacheBytes::default()
    };
    let cache = ObjectCache::new(bytes, SystemClock::shared()).with_disk(Arc::clone(&opened));
    let store = MemoryColdStore::default();
    let wanted = some(500);
    let object = upload(&store, &wanted, 1 << 30).await;
    let read = || cache.read(&store, &object, from(0, 1 << 30));
    assert_eq!(read().await.unwrap(), wanted);
    let blocks = cache.tail(&store, &object).await.unwrap().blocks.len() as u64;
    assert!(blocks > 2);
    // Written in the background.
    let stored = object.index_offset - 64;
    while cache.disk_figures().bytes < stored {
        tokio::task::yield_now().await;
    }
    let _ = store.count(Op::Get);
    assert_eq!(read().await.unwrap(), wanted);
    assert_eq!(
        (store.count(Op::Get), cache.disk_figures().hits),
        (0, blocks)
    );

    let files = disk.list(directory).unwrap();
    let is_segment = |path: &&PathBuf| path.to_string_lossy().contains("object-blocks");
    let segment = files.iter().find(is_segment).unwrap();
    disk.flip_bit(segment, 100, 3).unwrap();
    assert_eq!(read().await.unwrap(), wanted);
    let figures = cache.disk_figures();
    assert_eq!((store.count(Op::Get), figures.damaged), (1, 1));
    while cache.disk_figures().bytes < stored {
        tokio::task::yield_now().await;
    }
    assert_eq!(read().await.unwrap(), wanted);
    assert_eq!(store.count(Op::Get), 0, "it was written again");
}
