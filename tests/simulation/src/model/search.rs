//! A search of every state, with fingerprints in place of states.
//!
//! A reduced search does not visit what was visited with at least as many faults left.
//!
//! It goes deep first, so that only the states on the way are in memory. Two threads share what
//! was visited and what is to be visited.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::model::part::Fingerprint;
use crate::model::settings::Setting;
use crate::model::steps::Step;
use crate::model::world::World;
use crate::model::{Condition, Outcome, Visited, describe};

const THREADS: usize = 2;
/// Parts of the set of what was visited, so that threads seldom wait for each other.
const SHARDS: usize = 256;
/// States that a thread keeps to itself when another has none.
const KEPT_MIN: usize = 8;
/// States between two reports of progress.
const PROGRESS_EVERY: usize = 1_000_000;

/// Fingerprints are hashes already.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 ^= u64::from_le_bytes(word);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// By state: with how many faults left it need not be visited any more, as bits.
type Shard = Mutex<HashMap<Fingerprint, u64, BuildHasherDefault<AsItIs>>>;

/// Faults of one kind that may be left, and one more: three kinds fit into 64 bits.
const FAULTS_MAX: u8 = 4;

/// The bit of a state with this many faults left, and those of all that have no more.
fn bits_of([losses, duplicates, crashes]: [u8; 3]) -> (u64, u64) {
    assert!(
        losses.max(duplicates).max(crashes) < FAULTS_MAX,
        "a setting has few faults of each kind"
    );
    let bit = |l: u8, d: u8, c: u8| 1 << (l + FAULTS_MAX * (d + FAULTS_MAX * c));
    let mut covered = 0;
    for c in 0..=crashes {
        for d in 0..=duplicates {
            for l in 0..=losses {
                covered |= bit(l, d, c);
            }
        }
    }
    (bit(losses, duplicates, crashes), covered)
}

/// The way to a state, shared with those that begin the same.
struct Way {
    steps: Vec<Step>,
    before: Option<Arc<Way>>,
}

impl Drop for Way {
    // Without it a long way would end in as deep a recursion.
    fn drop(&mut self) {
        let mut before = self.before.take();
        while let Some(mut way) = before.and_then(Arc::into_inner) {
            before = way.before.take();
        }
    }
}

struct Open {
    world: World,
    way: Option<Arc<Way>>,
    depth: usize,
}

struct Search<'a> {
    setting: &'a Setting,
    progress: &'a (dyn Fn(usize) + Sync),
    schedules: Schedules,
    visited: Vec<Shard>,
    outcomes: Mutex<BTreeSet<Outcome>>,
    /// What threads that have much leave to those that have nothing.
    shared: Mutex<Shared>,
    changed: Condvar,
    hungry: AtomicBool,
    states: AtomicUsize,
    depth: AtomicUsize,
    reached: Vec<(&'static str, Condition, AtomicBool)>,
}

#[derive(Default)]
struct Shared {
    open: Vec<Open>,
    idle: usize,
    violation: Option<String>,
}

/// Which schedules a search takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedules {
    /// All of them.
    Every,
    /// One of those that end in the same state, where that can be told (`model/moves.rs`).
    Reduced,
}

impl Setting {
    /// Visits every state that the schedules reach.
    ///
    /// # Errors
    /// The first violation, with the steps that lead to it.
    pub fn search(&self, schedules: Schedules) -> Result<Visited, String> {
        self.search_and_tell(schedules, &|_| ())
    }

    /// The same, and says how many states were visited, after each million.
    ///
    /// # Errors
    /// The same.
    pub fn search_and_tell(
        &self,
        schedules: Schedules,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Visited, String> {
        let reached = match self.defect {
            None => self.must_be_reached(),
            Some(_) => Vec::new(),
        };
        let search = Search {
            setting: self,
            progress,
            schedules,
            visited: (0..SHARDS).map(|_| Shard::default()).collect(),
            outcomes: Mutex::default(),
            shared: Mutex::default(),
            changed: Condvar::new(),
            hungry: AtomicBool::new(false),
            states: AtomicUsize::new(0),
            depth: AtomicUsize::new(0),
            reached: reached
                .into_iter()
                .map(|(name, reached)| (name, reached, AtomicBool::new(false)))
                .collect(),
        };
        search.run()
    }
}

impl Search<'_> {
    fn run(self) -> Result<Visited, String> {
        let mut start = Vec::new();
        self.found(World::start(self.setting), None, 0, &mut start);
        self.shared.lock().open = start;
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..THREADS).map(|_| scope.spawn(|| self.work())).collect();
            self.work();
            for other in others {
                if let Err(panic) = other.join() {
                    std::panic::resume_unwind(panic);
                }
            }
        });
        if let Some(violation) = self.shared.into_inner().violation {
            return Err(violation);
        }
        for (name, _, reached) in &self.reached {
            if !reached.load(Ordering::Relaxed) {
                return Err(format!("no schedule reaches: {name}"));
            }
        }
        Ok(Visited {
            states: self.states.into_inner(),
            depth: self.depth.into_inner(),
            outcomes: self.outcomes.into_inner(),
        })
    }

    fn work(&self) {
        let _end = WakesAtEnd(self);
        let mut open = Vec::new();
        while self.refill(&mut open) {
            while let Some(Open { world, way, depth }) = open.pop() {
                let moves = match self.schedules {
                    // What a journal does between two steps is not reduced.
                    Schedules::Reduced if !self.setting.journal => world.moves(self.setting),
                    Schedules::Every | Schedules::Reduced => world.single_steps(self.setting),
                };
                for (steps, next) in moves {
                    let depth = depth + steps.len();
                    let way = Arc::new(Way {
                        steps,
                        before: way.clone(),
                    });
                    if let Some(violation) = self.found(next, Some(way), depth, &mut open) {
                        self.shared.lock().violation.get_or_insert(violation);
                    }
                }
                if self.hungry.load(Ordering::Relaxed) && !self.share(&mut open) {
                    return;
                }
            }
        }
    }

    /// A state that a move led to; what is wrong with it, if anything is.
    fn found(
        &self,
        world: World,
        way: Option<Arc<Way>>,
        depth: usize,
        open: &mut Vec<Open>,
    ) -> Option<String> {
        let (print, (bit, covered)) = match self.schedules {
            Schedules::Every => (Fingerprint::of(&world), (1, 1)),
            Schedules::Reduced => (world.core(), bits_of(world.faults_left())),
        };
        let shard = usize::from(print.0.to_be_bytes()[0]) % SHARDS;
        {
            let mut shard = self.visited[shard].lock();
            let visited = shard.entry(print).or_default();
            if *visited & bit != 0 {
                return None;
            }
            *visited |= covered;
        }
        let states = self.states.fetch_add(1, Ordering::Relaxed) + 1;
        if states.is_multiple_of(PROGRESS_EVERY) {
            (self.progress)(states);
        }
        self.depth.fetch_max(depth, Ordering::Relaxed);
        for (_, reached, seen) in &self.reached {
            if !seen.load(Ordering::Relaxed) && reached(self.setting, &world) {
                seen.store(true, Ordering::Relaxed);
            }
        }
        if let Some(outcome) = world.outcome() {
            self.outcomes.lock().insert(outcome);
        }
        if let Some(name) = world.violated(self.setting) {
            self.hungry.store(true, Ordering::Relaxed);
            return Some(describe(name, &steps_of(way.as_deref())));
        }
        open.push(Open { world, way, depth });
        None
    }

    /// Takes something to visit from the others; `false` at the end of the search.
    fn refill(&self, open: &mut Vec<Open>) -> bool {
        let mut shared = self.shared.lock();
        shared.idle += 1;
        loop {
            if shared.violation.is_some() || (shared.open.is_empty() && shared.idle == THREADS) {
                self.changed.notify_all();
                return false;
            }
            if !shared.open.is_empty() {
                std::mem::swap(&mut shared.open, open);
                shared.idle -= 1;
                self.hungry.store(shared.idle > 0, Ordering::Relaxed);
                return true;
            }
            self.hungry.store(true, Ordering::Relaxed);
            self.changed.wait(&mut shared);
        }
    }

    /// Leaves half of what is open to others, the oldest, behind which most lies. `false` when
    /// the search is over.
    fn share(&self, open: &mut Vec<Open>) -> bool {
        let mut shared = self.shared.lock();
        if shared.violation.is_some() {
            return false;
        }
        if open.len() >= KEPT_MIN && shared.open.is_empty() {
            shared.open.extend(open.drain(..open.len() / 2));
            self.hungry.store(false, Ordering::Relaxed);
            self.changed.notify_one();
        }
        true
    }
}

/// A thread that leaves, with a violation or in a panic, lets no other wait for what it would have
/// shared.
struct WakesAtEnd<'s, 'a>(&'s Search<'a>);

impl Drop for WakesAtEnd<'_, '_> {
    fn drop(&mut self) {
        let mut shared = self.0.shared.lock();
        if std::thread::panicking() {
            shared
                .violation
                .get_or_insert_with(|| "a thread of the search panicked".to_owned());
            self.0.hungry.store(true, Ordering::Relaxed);
        }
        self.0.changed.notify_all();
    }
}

fn steps_of(mut way: Option<&Way>) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some(Way {
        steps: last,
        before,
    }) = way
    {
        steps.extend(last.iter().rev());
        way = before.as_deref();
    }
    steps.reverse();
    steps
}
