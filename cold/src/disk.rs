//! Blocks of objects on a local disk: what readers have fetched lately, for more of it than memory
//! has room for.
//!
//! Blocks are appended to files, the segments. When there are as many as may be, the segment goes
//! whose blocks were not asked for for the longest time: that is one file to remove, however many
//! blocks it has. What is where is known in memory alone.
//!
//! Invariants:
//! - It is a cache: nothing is synced, and what an earlier process has left is removed at start.
//!   Where each block is would have to be read and checked first, and objects have all of it.
//! - The files together never have more bytes than they may, nor the index more blocks.
//! - A block is given out as it was read: the caller checks its checksum, and has what is damaged
//!   forgotten ([`DiskCache::forget`]).
//! - No reader waits for a write, and none for long for a read: a disk that is slow, full or broken
//!   is passed by. However long it does not answer, it holds few threads.
//! - Few files are open, however large the cache is.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aquifer_model::id::AttemptId;
use aquifer_runtime::budget::{ByteBudget, BytePermit};
use aquifer_runtime::clock::{self, SharedClock};
use aquifer_runtime::disk::{DiskFile, DiskLock, OpenOptions, SharedDisk};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// A cache has at least this many bytes.
pub const DISK_CACHE_BYTES_MIN: u64 = 64 << 20;
/// Segments of a small cache; those of a larger one have the largest size.
const SEGMENTS: u64 = 16;
/// Bytes of a segment, at most, unless there would be too many.
const SEGMENT_BYTES_MAX: u64 = 256 << 20;
/// Segments of a cache, at most: the file of each is open.
const SEGMENTS_MAX: u64 = 256;
/// Blocks of a cache, at most. Each takes some 120 bytes of memory.
const BLOCKS_MAX: usize = 400_000;
/// Bytes that wait to be written.
const QUEUE_BYTES: usize = 16 << 20;
/// How long a read may take; the object is asked then.
const READ_MAX: Duration = Duration::from_secs(1);
/// Reads at once. One that a disk does not answer keeps its thread, and others need threads too.
const READS_AT_ONCE: usize = 16;
/// For how long nothing is written after a write has failed, and the disk is not asked at all after
/// a read has taken too long.
const QUIET: Duration = Duration::from_secs(60);
/// What the names of segments begin with. No other file of a server has such a name: one of these
/// would be removed where a directory was given twice.
const PREFIX: &str = "object-blocks-";

/// An object's attempt, and the number of a block in it.
pub type BlockKey = (AttemptId, usize);

/// Figures of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskFigures {
    /// Blocks that were asked for and read.
    pub hits: u64,
    /// Blocks that were asked for and not read.
    pub misses: u64,
    /// Blocks that were read and damaged.
    pub damaged: u64,
    /// Blocks that were not written: the disk was behind, or broken.
    pub skipped: u64,
    /// Bytes of the blocks that are there.
    pub bytes: u64,
}

/// See the module.
pub struct DiskCache {
    disk: SharedDisk,
    directory: PathBuf,
    clock: SharedClock,
    segment_bytes: u64,
    segments_max: usize,
    state: Mutex<State>,
    waiting: ByteBudget,
    readers: Arc<Semaphore>,
    hits: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
    skipped: AtomicU64,
    _lock: DiskLock,
}

#[derive(Clone, Copy)]
struct Place {
    segment: u64,
    offset: u64,
    len: usize,
}

/// Where a block is, and the file.
type Found = (Arc<dyn DiskFile>, Place);

struct Segment {
    file: Arc<dyn DiskFile>,
    keys: Vec<BlockKey>,
    tick: u64,
}

#[derive(Default)]
struct State {
    places: HashMap<BlockKey, Place>,
    segments: BTreeMap<u64, Segment>,
    /// Segments by when they were used last.
    order: BTreeMap<u64, u64>,
    ticks: u64,
    /// The segment that is being filled, and how far it is.
    filling: Option<(u64, u64)>,
    next_segment: u64,
    queue: VecDeque<(BlockKey, Bytes, BytePermit)>,
    /// A thread writes what is queued.
    is_writing: bool,
    quiet_until: Duration,
    /// Nothing is read before: the disk does not answer.
    hangs_until: Duration,
    bytes: u64,
}

impl State {
    fn touch(&mut self, number: u64) {
        if let Some(segment) = self.segments.get_mut(&number) {
            self.order.remove(&segment.tick);
            self.ticks += 1;
            segment.tick = self.ticks;
            self.order.insert(self.ticks, number);
        }
    }

    /// Where a block is, which counts as a use.
    fn find(&mut self, key: &BlockKey) -> Option<Found> {
        let place = *self.places.get(key)?;
        let file = Arc::clone(&self.segments.get(&place.segment)?.file);
        self.touch(place.segment);
        Some((file, place))
    }

    fn forget(&mut self, key: &BlockKey) {
        if let Some(place) = self.places.remove(key) {
            self.bytes -= place.len as u64;
        }
    }

    /// The segment that goes first.
    fn oldest(&self) -> Option<u64> {
        let filling = self.filling.map(|(number, _)| number);
        let mut order = self.order.values().copied();
        order.find(|number| Some(*number) != filling)
    }
}

impl DiskCache {
    /// Opens a cache of a number of bytes in a directory that it has for itself, and removes what
    /// an earlier process has left there. It blocks.
    ///
    /// # Errors
    /// `WouldBlock` when another process uses the directory; those of the disk.
    pub fn open(
        disk: SharedDisk,
        directory: &Path,
        bytes_max: u64,
        clock: SharedClock,
    ) -> io::Result<Arc<DiskCache>> {
        disk.create_dir_all(directory)?;
        let lock = disk.lock_exclusive(&directory.join("lock"))?;
        for path in disk.list(directory)? {
            if is_segment(&path) {
                disk.remove(&path)?;
            }
        }
        let bytes_max = bytes_max.max(DISK_CACHE_BYTES_MIN);
        let segment_bytes = (bytes_max / SEGMENTS).min(SEGMENT_BYTES_MAX);
        let segment_bytes = segment_bytes.max(bytes_max.div_ceil(SEGMENTS_MAX));
        let segments_max = usize::try_from(bytes_max / segment_bytes).unwrap_or(usize::MAX);
        Ok(Arc::new(DiskCache {
            disk,
            directory: directory.to_owned(),
            clock,
            segment_bytes,
            segments_max,
            state: Mutex::default(),
            waiting: ByteBudget::new(QUEUE_BYTES),
            readers: Arc::new(Semaphore::new(READS_AT_ONCE)),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            _lock: lock,
        }))
    }

    /// Its figures.
    #[must_use]
    pub fn figures(&self) -> DiskFigures {
        let [hits, misses, damaged, skipped] =
            [&self.hits, &self.misses, &self.damaged, &self.skipped]
                .map(|figure| figure.load(Ordering::Relaxed));
        DiskFigures {
            hits,
            misses,
            damaged,
            skipped,
            bytes: self.state.lock().bytes,
        }
    }

    /// Reads blocks, each as it is on the disk; `None` for one that is not there, or not in time.
    pub async fn read(self: &Arc<Self>, keys: &[BlockKey]) -> Vec<Option<Bytes>> {
        let now = self.clock.monotonic();
        let places: Vec<Option<Found>> = {
            let mut state = self.state.lock();
            let is_asked = now >= state.hangs_until;
            let find = |key| state.find(key).filter(|_| is_asked);
            keys.iter().map(find).collect()
        };
        let is_there: Vec<bool> = places.iter().map(Option::is_some).collect();
        let mut found = vec![None; keys.len()];
        if is_there.contains(&true) {
            match clock::timeout(READ_MAX, self.read_places(places)).await {
                Ok(Some(read)) => {
                    found = read;
                    let mut state = self.state.lock();
                    for ((key, is_there), found) in keys.iter().zip(is_there).zip(&found) {
                        // What cannot be read now may be written again.
                        if is_there && found.is_none() {
                            state.forget(key);
                        }
                    }
                }
                // The thread has panicked, or the process ends.
                Ok(None) => {}
                Err(_) => self.pass_by(),
            }
        }
        let hits = found.iter().flatten().count();
        self.hits.fetch_add(hits as u64, Ordering::Relaxed);
        let misses = found.len() - hits;
        self.misses.fetch_add(misses as u64, Ordering::Relaxed);
        found
    }

    /// Reads blocks on a thread beside the others, when it is their turn.
    async fn read_places(&self, places: Vec<Option<Found>>) -> Option<Vec<Option<Bytes>>> {
        // Never closed.
        let turn = Arc::clone(&self.readers).acquire_owned().await.ok();
        let read = move || {
            let _turn = turn;
            places.into_iter().map(read_one).collect()
        };
        tokio::task::spawn_blocking(read).await.ok()
    }

    /// The disk does not answer in time: it is not asked for a while.
    fn pass_by(&self) {
        let now = self.clock.monotonic();
        let until = now.saturating_add(QUIET);
        let mut state = self.state.lock();
        let was_asked = now >= state.hangs_until;
        state.hangs_until = until;
        state.quiet_until = state.quiet_until.max(until);
        drop(state);
        if was_asked {
            let directory = self.directory.display();
            tracing::warn!(%directory, "the disk cache of objects does not answer in time, and is not asked for a while");
        }
    }

    /// A block that was read is not what it should be: it is fetched, and written again.
    pub fn forget(&self, key: &BlockKey) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
        self.state.lock().forget(key);
    }

    /// Has a block written, in the background, if the disk is not behind.
    pub fn offer(self: &Arc<Self>, key: BlockKey, block: &Bytes) {
        let permit = self.waiting.try_acquire(block.len());
        let now = self.clock.monotonic();
        let is_first = {
            let mut state = self.state.lock();
            if state.places.contains_key(&key) {
                return;
            }
            let fits = block.len() as u64 <= self.segment_bytes && now >= state.quiet_until;
            let Some(permit) = permit.filter(|_| fits) else {
                self.skipped.fetch_add(1, Ordering::Relaxed);
                return;
            };
            // The bytes of what it was read with are not kept for it.
            let copy = Bytes::copy_from_slice(block);
            state.queue.push_back((key, copy, permit));
            !std::mem::replace(&mut state.is_writing, true)
        };
        if is_first {
            let cache = Arc::clone(self);
            drop(tokio::task::spawn_blocking(move || cache.write_queued()));
        }
    }

    fn write_queued(&self) {
        loop {
            let next = {
                let mut state = self.state.lock();
                let next = state.queue.pop_front();
                state.is_writing = next.is_some();
                next
            };
            let Some((key, block, _permit)) = next else {
                return;
            };
            if let Err(error) = self.write(key, &block) {
                let directory = self.directory.display();
                tracing::warn!(%directory, %error, "the disk cache of objects takes nothing for a while");
                let mut state = self.state.lock();
                state.quiet_until = self.clock.monotonic().saturating_add(QUIET);
                // What was being filled may have a gap.
                state.filling = None;
                let given_up = 1 + state.queue.len();
                state.queue.clear();
                self.skipped.fetch_add(given_up as u64, Ordering::Relaxed);
            }
        }
    }

    /// Only one thread writes.
    fn write(&self, key: BlockKey, block: &[u8]) -> io::Result<()> {
        let (segment, offset, file) = self.place_for(block.len() as u64)?;
        file.write_all_at(offset, block)?;
        let mut state = self.state.lock();
        state.forget(&key);
        let Some(filled) = state.segments.get_mut(&segment) else {
            return Ok(());
        };
        filled.keys.push(key);
        let len = block.len();
        let place = Place {
            segment,
            offset,
            len,
        };
        state.places.insert(key, place);
        state.bytes += len as u64;
        Ok(())
    }

    /// Room for a block at the end of the segment that is being filled, or in a new one.
    fn place_for(&self, len: u64) -> io::Result<(u64, u64, Arc<dyn DiskFile>)> {
        loop {
            let oldest = {
                let mut guard = self.state.lock();
                let state = &mut *guard;
                let fits = |(_, offset): &(u64, u64)| offset + len <= self.segment_bytes;
                let filling = state.filling.filter(fits);
                state.filling = filling;
                let segment = filling.and_then(|(number, offset)| {
                    let segment = state.segments.get(&number)?;
                    Some((number, offset, Arc::clone(&segment.file)))
                });
                let is_full = state.places.len() >= BLOCKS_MAX
                    || segment.is_none() && state.segments.len() >= self.segments_max;
                match (is_full, segment) {
                    (true, _) => state.oldest(),
                    (false, Some((number, offset, file))) => {
                        state.filling = Some((number, offset + len));
                        return Ok((number, offset, file));
                    }
                    (false, None) => None,
                }
            };
            match oldest {
                Some(oldest) => self.evict(oldest)?,
                None => self.add_segment()?,
            }
        }
    }

    fn path_of(&self, segment: u64) -> PathBuf {
        self.directory.join(format!("{PREFIX}{segment:012}"))
    }

    /// Begins to fill a new segment.
    fn add_segment(&self) -> io::Result<()> {
        let number = {
            let mut state = self.state.lock();
            state.next_segment += 1;
            state.next_segment
        };
        let options = OpenOptions {
            create: true,
            direct: false,
        };
        let file = self.disk.open(&self.path_of(number), options)?;
        let mut guard = self.state.lock();
        let state = &mut *guard;
        state.ticks += 1;
        let segment = Segment {
            file,
            keys: Vec::new(),
            tick: state.ticks,
        };
        state.order.insert(state.ticks, number);
        state.segments.insert(number, segment);
        state.filling = Some((number, 0));
        Ok(())
    }

    /// Forgets the blocks of a segment and removes its file. It counts until that is gone.
    fn evict(&self, number: u64) -> io::Result<()> {
        {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let segment = state.segments.get_mut(&number);
            let keys = segment.map_or_else(Vec::new, |s| std::mem::take(&mut s.keys));
            for key in keys {
                // It may have been written again, elsewhere.
                if state.places.get(&key).is_some_and(|p| p.segment == number) {
                    state.forget(&key);
                }
            }
        }
        match self.disk.remove(&self.path_of(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut state = self.state.lock();
        if let Some(segment) = state.segments.remove(&number) {
            state.order.remove(&segment.tick);
        }
        Ok(())
    }
}

/// Whether a file is a segment, by its name.
fn is_segment(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let number = name.and_then(|name| name.strip_prefix(PREFIX));
    number.is_some_and(|number| number.parse::<u64>().is_ok())
}

fn read_one(place: Option<Found>) -> Option<Bytes> {
    let (file, place) = place?;
    let mut bytes = vec![0; place.len];
    file.read_exact_at(place.offset, &mut bytes).ok()?;
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;

    use aquifer_runtime::clock::{ManualClock, SystemClock};
    use aquifer_runtime::disk::{Disk, FaultKind, SimDisk};
    use futures::FutureExt;
    use futures::future::join_all;

    use super::*;

    /// A file whose reads hang until the other end is gone.
    #[derive(Debug)]
    struct Hangs(Mutex<mpsc::Receiver<()>>);

    impl DiskFile for Hangs {
        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<usize> {
            let _ = self.0.lock().recv();
            Err(io::ErrorKind::TimedOut.into())
        }
        fn write_all_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
        fn sync_data(&self) -> io::Result<()> {
            Ok(())
        }
        fn set_len(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn len(&self) -> io::Result<u64> {
            Ok(0)
        }
        fn is_direct(&self) -> bool {
            false
        }
    }

    const ATTEMPT: AttemptId = AttemptId([7; 16]);
    /// Four of them fill a segment of the smallest cache.
    const BLOCK: usize = 1 << 20;

    fn directory() -> &'static Path {
        Path::new("/cache")
    }

    fn open(disk: &SimDisk) -> Arc<DiskCache> {
        let clock = SystemClock::shared();
        DiskCache::open(disk.shared(), directory(), DISK_CACHE_BYTES_MIN, clock).unwrap()
    }

    fn block(number: usize) -> Bytes {
        let byte = u8::try_from(number % 251).unwrap();
        vec![byte; BLOCK].into()
    }

    /// Waits until what was offered is written, or given up.
    async fn all_written(cache: &DiskCache) {
        while cache.state.lock().is_writing {
            tokio::task::yield_now().await;
        }
    }

    async fn fill(cache: &Arc<DiskCache>, numbers: std::ops::Range<usize>) {
        for number in numbers {
            cache.offer((ATTEMPT, number), &block(number));
            all_written(cache).await;
        }
    }

    async fn has(cache: &Arc<DiskCache>, number: usize) -> bool {
        let found = cache.read(&[(ATTEMPT, number)]).await.remove(0);
        assert!(found.iter().all(|found| *found == block(number)));
        found.is_some()
    }

    fn bytes_on(disk: &SimDisk) -> u64 {
        let files = disk.list(directory()).unwrap();
        let open = |path: &PathBuf| disk.open(path, OpenOptions::default()).unwrap();
        files.iter().map(|path| open(path).len().unwrap()).sum()
    }

    #[tokio::test]
    async fn it_stays_within_its_bytes_and_keeps_what_is_used() {
        let disk = SimDisk::new();
        let cache = open(&disk);
        for number in 0..100 {
            fill(&cache, number..number + 1).await;
            assert!(has(&cache, number).await);
            assert!(has(&cache, 0).await, "used all the time: after {number}");
            assert!(bytes_on(&disk) <= DISK_CACHE_BYTES_MIN);
        }
        assert!(!has(&cache, 10).await && has(&cache, 80).await);
        let figures = cache.figures();
        assert!(figures.bytes <= DISK_CACHE_BYTES_MIN && figures.bytes > 48 << 20);
        assert_eq!((figures.hits, figures.misses), (201, 1));
    }

    #[tokio::test]
    async fn what_an_earlier_process_has_left_is_removed_and_nothing_else() {
        let disk = SimDisk::new();
        let earlier = open(&disk);
        fill(&earlier, 0..3).await;
        while Arc::strong_count(&earlier) > 1 {
            tokio::task::yield_now().await;
        }
        drop(earlier);
        assert_eq!(disk.list(directory()).unwrap().len(), 2, "it and its lock");
        // The second is one of a bookie, whose directory was given by mistake.
        let others = ["notes", "segment-00000001.aqj"].map(|name| directory().join(name));
        for other in &others {
            disk.write_atomic(other, b"mine").unwrap();
        }
        let cache = open(&disk);
        assert!(!has(&cache, 0).await);
        assert_eq!(disk.list(directory()).unwrap().len(), 3);
        for other in &others {
            assert_eq!(disk.read(other).unwrap(), b"mine");
        }
        let second = DiskCache::open(
            disk.shared(),
            directory(),
            DISK_CACHE_BYTES_MIN,
            SystemClock::shared(),
        );
        let error = second.err().map(|error| error.kind());
        assert_eq!(error, Some(io::ErrorKind::WouldBlock));
    }

    #[tokio::test]
    async fn a_disk_that_fails_is_passed_by_for_a_while() {
        let disk = SimDisk::new();
        let clock = ManualClock::new(1);
        let shared = Arc::clone(&clock) as SharedClock;
        let cache = DiskCache::open(disk.shared(), directory(), DISK_CACHE_BYTES_MIN, shared);
        let cache = cache.unwrap();
        fill(&cache, 0..2).await;
        disk.fail_next(FaultKind::WriteError, 0);
        fill(&cache, 2..4).await;
        assert!(!has(&cache, 2).await && !has(&cache, 3).await && has(&cache, 1).await);
        assert_eq!(cache.figures().skipped, 2);
        clock.advance(QUIET);
        fill(&cache, 2..3).await;
        disk.fail_next(FaultKind::ReadError, 0);
        assert!(!has(&cache, 2).await);
        fill(&cache, 2..3).await;
        assert!(has(&cache, 2).await);
        cache.forget(&(ATTEMPT, 2));
        assert!(!has(&cache, 2).await);
        assert_eq!(cache.figures().damaged, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_does_not_answer_holds_few_threads_and_is_passed_by() {
        let disk = SimDisk::new();
        let clock = ManualClock::new(1);
        let shared = Arc::clone(&clock) as SharedClock;
        let cache = DiskCache::open(disk.shared(), directory(), DISK_CACHE_BYTES_MIN, shared);
        let cache = cache.unwrap();
        fill(&cache, 0..1).await;
        let swap = |file: Arc<dyn DiskFile>| {
            let mut state = cache.state.lock();
            let segment = state.segments.values_mut().next().unwrap();
            std::mem::replace(&mut segment.file, file)
        };
        let (answers, hung) = mpsc::sync_channel(0);
        let file = swap(Arc::new(Hangs(Mutex::new(hung))));
        let reads = join_all((0..3 * READS_AT_ONCE).map(|_| has(&cache, 0)));
        let mut reads = pin!(reads);
        let found = loop {
            if let Some(found) = reads.as_mut().now_or_never() {
                break found;
            }
            tokio::time::advance(READ_MAX).await;
        };
        assert!(found.iter().all(|found| !found));
        let asked = has(&cache, 0).now_or_never();
        assert_eq!(asked, Some(false), "the next waits for nothing");
        drop(answers);
        while cache.readers.available_permits() < READS_AT_ONCE {
            tokio::task::yield_now().await;
        }
        drop(swap(file));
        clock.advance(QUIET);
        assert!(has(&cache, 0).await);
    }

    #[test]
    fn a_large_cache_has_few_files() {
        let (disk, clock) = (SimDisk::new(), SystemClock::shared());
        let cache = DiskCache::open(disk.shared(), directory(), (64 << 40) + 7, clock);
        let cache = cache.unwrap();
        assert!(cache.segments_max as u64 <= SEGMENTS_MAX);
    }
}
