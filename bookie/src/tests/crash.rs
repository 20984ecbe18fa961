//! Crashes: unsynced writes are dropped or torn, RocksDB forgets what it had not flushed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use aquifer_runtime::disk::{Disk, FaultKind, SimDisk};
use aquifer_runtime::rng::{Rng, SeededRng};

use super::*;

/// A machine whose journal is on a simulated disk, and whose RocksDB is on a real one.
pub(crate) struct Machine {
    pub(crate) disk: SimDisk,
    pub(crate) config: BookieConfig,
    directory: tempfile::TempDir,
    lives: u32,
}

impl Machine {
    pub(crate) fn new() -> Machine {
        let directory = tempfile::tempdir().unwrap();
        let config = BookieConfig {
            ledger_dir: directory.path().join("life-0"),
            journal_dir: PathBuf::from("/sim/journal"),
            data_dir: PathBuf::from("/sim"),
            ..config(directory.path())
        };
        Machine {
            disk: SimDisk::new(),
            config,
            directory,
            lives: 0,
        }
    }

    pub(crate) fn try_boot(&self) -> Result<Bookie, BookieOpenError> {
        Bookie::open(self.config.clone(), deps(self.disk.shared()))
    }

    pub(crate) fn boot(&self) -> Bookie {
        open_when_free(|| self.try_boot())
    }

    /// kill -9: the page cache survives, what is in memory does not.
    pub(crate) fn kill(&mut self, bookie: Bookie) {
        self.lives += 1;
        let next = self.directory.path().join(format!("life-{}", self.lives));
        let keep = rocks(&*bookie.core.shared.store).with(|db| db.keep_files());
        keep.unwrap();
        copy_directory(&self.config.ledger_dir, &next);
        let cookie = self.disk.read(&self.config.ledger_dir.join("COOKIE"));
        self.disk.create_dir_all(&next).unwrap();
        self.disk
            .write_atomic(&next.join("COOKIE"), &cookie.unwrap())
            .unwrap();
        drop(bookie);
        self.config.ledger_dir = next;
    }

    /// Power loss.
    pub(crate) fn crash(&mut self, bookie: Bookie, rng: &dyn Rng) {
        self.disk.crash(rng);
        self.kill(bookie);
    }
}

#[derive(Default)]
struct History {
    /// Acknowledged entries with the length of their data.
    acknowledged: BTreeMap<(u64, u64), usize>,
    next: BTreeMap<u64, u64>,
    fenced: Vec<u64>,
    deleted: Vec<u64>,
}

impl History {
    fn run(&mut self, bookie: &Bookie, rng: &dyn Rng, steps: u64) {
        let mut waiting = Vec::new();
        let mut controls = Vec::new();
        for _ in 0..steps {
            let ledger = rng.below(6);
            match rng.below(40) {
                0 => controls.push((
                    ledger,
                    true,
                    start(bookie, request(ledger + 100, OrderedOperation::Fence)),
                )),
                1 => controls.push((
                    ledger,
                    false,
                    start(bookie, request(ledger + 200, OrderedOperation::Delete)),
                )),
                2 => {
                    checkpoint(bookie);
                }
                _ => {
                    let entry = self.next.entry(ledger).or_default();
                    let len = usize::try_from(rng.below(20_000)).unwrap();
                    waiting.push((
                        ledger,
                        *entry,
                        len,
                        start(bookie, add_request(ledger, *entry, len)),
                    ));
                    *entry += 1;
                }
            }
        }
        // Some of the answers are taken before the crash that follows; all that came count.
        for (ledger, entry, len, reply) in waiting {
            if answer(&reply).is_ok() {
                self.acknowledged.insert((ledger, entry), len);
            }
        }
        for (ledger, fence, reply) in controls {
            match (answer(&reply).is_ok(), fence) {
                (true, true) => self.fenced.push(ledger + 100),
                (true, false) => self.deleted.push(ledger + 200),
                _ => {}
            }
        }
    }

    fn check(&self, bookie: &Bookie, seed: u64) {
        assert_eq!(
            bookie.status().limbo,
            None,
            "seed {seed}: torn is not limbo (H4)"
        );
        for ((ledger, entry), len) in &self.acknowledged {
            expect(bookie, *ledger, *entry, *len);
        }
        for ledger in &self.fenced {
            let refused = ask(bookie, add_request(*ledger, 0, 10));
            assert_eq!(refused, Err(BookieError::Fenced), "seed {seed}");
        }
        for ledger in &self.deleted {
            let refused = ask(bookie, add_request(*ledger, 0, 10));
            assert_eq!(refused, Err(BookieError::Deleted), "seed {seed}");
        }
    }
}

/// I1, I2, I4, H1, H2, H4, H5, H15: whatever was acknowledged survives every crash.
#[test]
fn acknowledged_adds_fences_and_deletions_survive_crashes() {
    for seed in 0..6 {
        let rng = SeededRng::new(seed);
        let mut machine = Machine::new();
        let mut history = History::default();
        let mut bookie = machine.boot();
        for _ in 0..6 {
            let steps = 20 + rng.below(100);
            history.run(&bookie, &rng, steps);
            // Requests whose answers are not waited for are in flight when the power goes.
            for entry in 0..rng.below(20) {
                drop(start(&bookie, add_request(50, 1_000 * seed + entry, 3_000)));
            }
            if rng.below(3) == 0 {
                machine.kill(bookie);
            } else {
                machine.crash(bookie, &rng);
            }
            bookie = machine.boot();
            history.check(&bookie, seed);
            // An entry whose outcome was unknown may be there; the writer goes on above it.
            for next in history.next.values_mut() {
                *next += 100;
            }
        }
    }
}

/// After a failed sync it is not known what is on the disk: nothing is acknowledged any more, and
/// the restart tells.
#[test]
fn a_failed_sync_ends_the_bookie() {
    for kind in [FaultKind::SyncError, FaultKind::WriteError] {
        let mut machine = Machine::new();
        let bookie = machine.boot();
        for entry in 0..5 {
            done(ask(&bookie, add_request(1, entry, 5_000)));
        }
        eventually("a spare segment is there", || {
            !bookie.core.shared.segments.needs_spare()
        });
        machine.disk.fail_next(kind, 0);
        let mut refused = 0;
        for entry in 5..8 {
            let answer = ask(&bookie, add_request(1, entry, 5_000));
            refused += u32::from(matches!(answer, Err(BookieError::Io(_))));
        }
        // The mark is synced in the background and may be what met the fault.
        assert!(refused >= 1, "{kind:?}");
        let why = block_on(bookie.failed());
        assert!(why.contains("journal"), "{why}");
        let after = ask(&bookie, request(1, OrderedOperation::Fence));
        assert!(matches!(after, Err(BookieError::Io(_))), "{after:?}");
        machine.crash(bookie, &SeededRng::new(1));
        let bookie = machine.boot();
        for entry in 0..5 {
            expect(&bookie, 1, entry, 5_000);
        }
    }
}

/// H2: what replay accepted is synced before it is served, so that a second crash keeps it.
#[test]
fn what_was_served_after_a_kill_survives_the_power_loss_that_follows() {
    for seed in 0..10 {
        let rng = SeededRng::new(seed);
        let mut machine = Machine::new();
        let bookie = machine.boot();
        for entry in 0..20 {
            drop(start(&bookie, add_request(1, entry, 2_000)));
        }
        machine.kill(bookie);
        let bookie = machine.boot();
        let seen: Vec<u64> = (0..20)
            .filter(|entry| read_one(&bookie, 1, *entry).is_ok())
            .collect();
        machine.crash(bookie, &rng);
        let bookie = machine.boot();
        for entry in seen {
            expect(&bookie, 1, entry, 2_000);
        }
    }
}

/// A crash at any moment of the very first start leaves a directory that starts.
#[test]
fn a_first_start_that_crashes_can_be_repeated() {
    for after in 0..12 {
        let machine = Machine::new();
        machine.disk.fail_next(FaultKind::SyncError, after);
        let failed = machine.try_boot().map(drop).is_err();
        machine.disk.crash(&SeededRng::new(after));
        let bookie = machine.boot();
        done(ask(&bookie, add_request(1, 0, 10)));
        assert!(failed || after > 3, "{after}");
    }
}

/// A crash while a segment is created leaves one that is too short for the largest commit: it is
/// no segment.
#[test]
fn a_segment_that_was_cut_short_is_not_used() {
    let mut machine = Machine::new();
    let bookie = machine.boot();
    done(ask(&bookie, add_request(1, 0, 10)));
    machine.kill(bookie);
    let short = machine.config.journal_dir.join("segment-00000077.aqj");
    machine.disk.write_atomic(&short, &[0; 8192]).unwrap();
    let bookie = machine.boot();
    assert!(!machine.disk.exists(&short).unwrap());
    expect(&bookie, 1, 0, 10);
    done(ask(&bookie, add_request(1, 1, 10)));
}

/// What may be written is found again: a commit is as large as the settings allow, whatever that
/// is.
#[test]
fn a_commit_above_64_mib_is_replayed() {
    let mut machine = Machine::new();
    machine.config.commit_bytes_max = 80 * MIB;
    // Only the journal has it.
    machine.config.memtable_bytes = 256 * MIB;
    machine.config.bytes_in_flight_max = 96 * MIB;
    machine.config.journal_first_segment_bytes = 88 * MIB;
    machine.config.journal_segment_bytes = 88 * MIB;
    machine.config.journal_segments_max = 2;
    let bookie = machine.boot();
    done(ask(&bookie, add_request(1, 0, 10)));
    // The journal's thread answers: until it goes on, everything waits for one commit.
    let (hold, held) = sync_channel::<()>(0);
    let (release, released) = sync_channel::<()>(0);
    let answer_slowly = move |_| {
        hold.send(()).unwrap();
        let _ = released.recv();
    };
    bookie.submit(request(2, OrderedOperation::Fence), Box::new(answer_slowly));
    held.recv().unwrap();
    let replies: Vec<_> = (1..=68)
        .map(|entry| start(&bookie, add_request(1, entry, MIB)))
        .collect();
    let before = bookie.status().synced_commit;
    release.send(()).unwrap();
    for reply in &replies {
        done(answer(reply));
    }
    assert_eq!(bookie.status().synced_commit, before + 1, "one commit");
    machine.kill(bookie);
    let bookie = machine.boot();
    assert_eq!(bookie.status().limbo, None);
    expect(&bookie, 1, 68, MIB);
    let config = BookieConfig {
        commit_bytes_max: 2048 * MIB,
        journal_first_segment_bytes: 4096 * MIB,
        journal_segment_bytes: 4096 * MIB,
        ..machine.config.clone()
    };
    let refused = Bookie::open(config, deps(machine.disk.shared()));
    let Err(BookieOpenError::Config(why)) = refused else {
        panic!("a commit of 2 GiB is more than the format holds");
    };
    assert!(why.contains("commit_bytes_max"), "{why}");
}
