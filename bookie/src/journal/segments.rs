//! Which segment is written, which are live, which may be used again: the accounting of the
//! journal's space, and the preparation of segments in the background.
//!
//! Invariants: a segment is reused only when the store has flushed every commit in it (H1); the
//! last segment keeps a reserve that normal adds do not touch, so that fences work on a full
//! disk; segments are zeroed once and recycled from then on.
//!
//! A segment is zeroed little by little, so that the disk is free for commits meanwhile, but never
//! slower than the one before it fills up.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::disk::SharedDisk;
use parking_lot::{Condvar, Mutex};

use crate::journal::segment::SegmentFile;

/// Which segments are live and which may be used again, apart from files and threads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SegmentRotation {
    /// Segments with commits that the store may not have flushed, oldest first; the last is the one
    /// that is written. With each, the last commit in it.
    live: VecDeque<(u64, u64)>,
    /// Segments that wait for their next use.
    spare: VecDeque<u64>,
}

impl SegmentRotation {
    /// A segment may be used.
    pub fn add_spare(&mut self, segment: u64) {
        self.spare.push_back(segment);
    }

    /// A segment holds commits up to `last`.
    pub fn add_live(&mut self, segment: u64, last: u64) {
        self.live.push_back((segment, last));
    }

    /// Takes a spare segment into use; `last` is the last commit before it.
    pub fn roll(&mut self, last: u64) -> Option<u64> {
        let segment = self.spare.pop_front()?;
        self.live.push_back((segment, last));
        Some(segment)
    }

    /// A commit was written to the current segment.
    pub fn committed(&mut self, sequence: u64) {
        if let Some(current) = self.live.back_mut() {
            current.1 = sequence;
        }
    }

    /// The store has flushed everything up to `flushed`: returns how many segments became spare.
    /// The current one stays.
    pub fn trim(&mut self, flushed: u64) -> usize {
        let mut freed = 0;
        while self.live.len() > 1 && self.live.front().is_some_and(|(_, last)| *last <= flushed) {
            if let Some((segment, _)) = self.live.pop_front() {
                self.spare.push_back(segment);
                freed += 1;
            }
        }
        freed
    }

    /// Segments in all.
    #[must_use]
    pub fn total(&self) -> usize {
        self.live.len() + self.spare.len()
    }

    /// Whether the next roll would find nothing.
    #[must_use]
    pub fn needs_spare(&self) -> bool {
        self.spare.is_empty()
    }

    /// Segments that hold commits, the current one included.
    pub fn live(&self) -> impl Iterator<Item = u64> + '_ {
        self.live.iter().map(|(segment, _)| *segment)
    }
}

/// Segments without which a journal cannot go on: one is written while the other is flushed.
const SEGMENTS_MIN: usize = 2;

/// How long the disk is left to others after each piece of a segment that is zeroed.
const ZERO_PAUSE: Duration = Duration::from_millis(8);

/// The segments of a journal.
#[derive(Debug)]
pub struct Segments {
    disk: SharedDisk,
    directory: PathBuf,
    segment_bytes: usize,
    segments_max: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    rotation: SegmentRotation,
    files: Vec<Arc<SegmentFile>>,
    last_number: u64,
    /// The disk is full: no more segments than it takes to go on.
    frugal: bool,
    /// Why no segment could be prepared last time.
    blocked: Option<String>,
    /// Bytes of the current segment that are used, and all of them.
    used: (u64, u64),
    /// The bookie ends.
    hurried: bool,
}

impl Segments {
    /// An empty set over the journal's directory.
    #[must_use]
    pub fn new(
        disk: SharedDisk,
        directory: PathBuf,
        segment_bytes: usize,
        segments_max: usize,
        last_number: u64,
    ) -> Segments {
        Segments {
            disk,
            directory,
            segment_bytes,
            segments_max,
            state: Mutex::new(State {
                last_number,
                ..State::default()
            }),
            changed: Condvar::new(),
        }
    }

    /// Adds a segment that may be used.
    pub fn add_spare(&self, file: Arc<SegmentFile>) {
        let mut state = self.state.lock();
        state.rotation.add_spare(file.number);
        state.files.push(file);
        state.blocked = None;
        self.changed.notify_all();
    }

    /// Adds a segment of a process before this one that may be used, or removes it when it is
    /// shorter than the settings ask for: a crash cut its creation short, or it is of other
    /// settings. A commit might not fit, and it would count as one of those that there may be.
    pub fn add_found(&self, file: Arc<SegmentFile>, bytes_min: u64) -> io::Result<()> {
        if file.bytes >= bytes_min {
            self.add_spare(file);
            return Ok(());
        }
        self.disk.remove(&file.path)
    }

    /// Adds a segment with commits up to `last`.
    pub fn add_live(&self, file: Arc<SegmentFile>, last: u64) {
        let mut state = self.state.lock();
        state.rotation.add_live(file.number, last);
        state.files.push(file);
    }

    /// Creates a zeroed segment and adds it as spare, as fast as the disk allows.
    pub fn create(&self, bytes: usize) -> io::Result<()> {
        self.create_with(bytes, &|_| ())
    }

    fn create_with(&self, bytes: usize, pause: &dyn Fn(usize)) -> io::Result<()> {
        let number = {
            let mut state = self.state.lock();
            state.last_number += 1;
            state.last_number
        };
        match SegmentFile::create(&*self.disk, &self.directory, (number, bytes), pause) {
            Ok(file) => {
                self.add_spare(Arc::new(file));
                Ok(())
            }
            Err(error) => {
                self.state.lock().blocked = Some(error.to_string());
                self.changed.notify_all();
                Err(error)
            }
        }
    }

    /// Prepares the next segment when none is prepared and one more is allowed. On a full disk two
    /// must do: the room has better uses. `meanwhile` is called after each piece but the last.
    pub fn prepare(&self, disk_is_full: bool, meanwhile: &dyn Fn()) -> io::Result<bool> {
        {
            let mut state = self.state.lock();
            if !state.rotation.needs_spare() {
                return Ok(false);
            }
            state.frugal = disk_is_full;
            // A flush will free one: what waits for it goes on waiting.
            if state.rotation.total() >= self.most(&state) {
                return Ok(false);
            }
        }
        let bytes = self.segment_bytes;
        self.create_with(bytes, &|done| {
            self.pause(done, bytes);
            meanwhile();
        })?;
        Ok(true)
    }

    /// Leaves the disk to commits, unless the current segment fills up faster than the next one is
    /// zeroed.
    fn pause(&self, done: usize, bytes: usize) {
        let mut state = self.state.lock();
        if state.has_time(done as u64, bytes as u64) {
            self.changed.wait_for(&mut state, ZERO_PAUSE);
        }
    }

    /// Lets a segment that is being zeroed be done soon, and every later one.
    pub fn hurry(&self) {
        self.state.lock().hurried = true;
        self.changed.notify_all();
    }

    /// Takes a spare segment into use, waiting for up to `patience` while one is prepared.
    pub fn roll(&self, last: u64, patience: Duration) -> Option<Arc<SegmentFile>> {
        let mut state = self.state.lock();
        loop {
            if let Some(number) = state.rotation.roll(last) {
                let file = state.file(number);
                state.used = (0, file.as_ref().map_or(0, |file| file.bytes));
                return file;
            }
            // It is full: a segment that is being zeroed waits no longer.
            state.used = (1, 1);
            self.changed.notify_all();
            let blocked = state.blocked.is_some();
            if blocked || self.changed.wait_for(&mut state, patience).timed_out() {
                return None;
            }
        }
    }

    /// A commit was written to the current segment, and ends there.
    pub fn committed(&self, sequence: u64, end: u64) {
        let mut state = self.state.lock();
        state.rotation.committed(sequence);
        state.used.0 = end;
    }

    /// The store has flushed everything up to `flushed`.
    pub fn trim(&self, flushed: u64) {
        let mut state = self.state.lock();
        if state.rotation.trim(flushed) > 0 {
            state.blocked = None;
            self.changed.notify_all();
        }
    }

    /// Whether a segment should be prepared.
    #[must_use]
    pub fn needs_spare(&self) -> bool {
        self.state.lock().rotation.needs_spare()
    }

    /// Whether only a flush makes room: no segment waits, and none can be made.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        let state = self.state.lock();
        let full = state.rotation.total() >= self.most(&state) || state.blocked.is_some();
        full && state.rotation.needs_spare()
    }

    fn most(&self, state: &State) -> usize {
        if state.frugal {
            self.segments_max.min(SEGMENTS_MIN)
        } else {
            self.segments_max
        }
    }

    /// The live segments, oldest first.
    #[must_use]
    pub fn live(&self) -> Vec<Arc<SegmentFile>> {
        let state = self.state.lock();
        let numbers: Vec<u64> = state.rotation.live().collect();
        numbers
            .into_iter()
            .filter_map(|number| state.file(number))
            .collect()
    }

    /// Bytes of live segments, and of all.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let live = self.live().iter().map(|file| file.bytes).sum();
        let all = self.state.lock().files.iter().map(|file| file.bytes).sum();
        (live, all)
    }
}

impl State {
    /// Whether the next segment, of which so much is zeroed, is ready before the current one is
    /// full, if both go on as until now.
    fn has_time(&self, done: u64, bytes: u64) -> bool {
        let share = |part: u64, whole: u64| part.saturating_mul(1024) / whole.max(1);
        let (used, all) = self.used;
        !self.hurried && share(used, all) <= share(done, bytes)
    }

    fn file(&self, number: u64) -> Option<Arc<SegmentFile>> {
        self.files
            .iter()
            .find(|file| file.number == number)
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use aquifer_runtime::disk::{Disk, SimDisk};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_disk_is_left_to_commits_while_the_current_segment_lasts() {
        let disk = Arc::new(SimDisk::new());
        disk.create_dir_all(Path::new("/journal")).unwrap();
        let segments = Segments::new(disk, PathBuf::from("/journal"), 1 << 20, 2, 0);
        let has_time = |done| segments.state.lock().has_time(done, 1 << 20);
        assert!(has_time(1), "nothing is written yet");
        segments.create(64 << 10).unwrap();
        segments.roll(0, Duration::ZERO).unwrap();
        assert!(has_time(1 << 10));
        segments.committed(1, 16 << 10);
        assert!(!has_time(128 << 10), "an eighth is ready, a fourth used");
        assert!(has_time(256 << 10));
        assert!(segments.roll(1, Duration::ZERO).is_none());
        assert!(!has_time(1 << 19), "it is waited for");
        assert!(segments.prepare(false, &|| ()).unwrap());
        segments.roll(1, Duration::ZERO).unwrap();
        assert!(has_time(1));
        segments.hurry();
        assert!(!has_time(1));
    }

    proptest! {
        /// H1: whatever the order of commits, rolls and flushes, a segment with an unflushed
        /// commit is never handed out again.
        #[test]
        fn a_segment_is_reused_only_after_its_last_commit_is_flushed(
            steps in prop::collection::vec((0u8..3, 0u64..8), 1..200),
        ) {
            let mut rotation = SegmentRotation::default();
            (0..4).for_each(|segment| rotation.add_spare(segment));
            let mut last_in = std::collections::BTreeMap::new();
            let (mut sequence, mut flushed) = (0, 0);
            let mut current = rotation.roll(0).unwrap();
            for (step, size) in steps {
                match step {
                    0 => {
                        sequence += 1;
                        rotation.committed(sequence);
                        last_in.insert(current, sequence);
                    }
                    1 => if let Some(segment) = rotation.roll(sequence) {
                        let last = last_in.get(&segment).copied().unwrap_or(0);
                        prop_assert!(last <= flushed, "segment {segment} holds {last}");
                        current = segment;
                    },
                    _ => {
                        flushed = (flushed + size).min(sequence);
                        rotation.trim(flushed);
                    }
                }
                prop_assert_eq!(rotation.total(), 4);
                prop_assert_eq!(rotation.live().last(), Some(current));
            }
        }
    }
}
