//! The recoverer's rules one by one; schedules of them are in `protocol_model`.

use super::*;

struct Run {
    recovery: Recovery,
    reads: Vec<(usize, u64)>,
    writes: Vec<(usize, u64)>,
    closed: Option<(Option<u64>, Option<u64>)>,
    fragments: Vec<(u64, Vec<BookieId>)>,
    replaces: Vec<Vec<usize>>,
    damaged: u64,
    aborted: bool,
}

fn bookie(n: u8) -> BookieId {
    BookieId([n; 16])
}

const FOUND: RecoveryReadReply = RecoveryReadReply::Found { ledger_length: 7 };

impl Run {
    fn new(quorum: (u32, u32, u32), floor: u64, window: u32) -> Run {
        let quorum = Quorum::new(quorum.0, quorum.1, quorum.2).unwrap();
        let members = (0_u8..).take(quorum.ensemble()).map(|n| BookieId([n; 16]));
        let (recovery, fences) = Recovery::start(quorum, members.collect(), EntryId(floor), window);
        assert_eq!(fences.len(), quorum.ensemble());
        Run {
            recovery,
            reads: Vec::new(),
            writes: Vec::new(),
            closed: None,
            fragments: Vec::new(),
            replaces: Vec::new(),
            damaged: 0,
            aborted: false,
        }
    }

    fn on(&mut self, event: RecoveryEvent) {
        let mut actions = Vec::new();
        self.recovery.on(event, &mut actions);
        for action in actions {
            match action {
                RecoveryAction::Fence { .. } => {}
                RecoveryAction::Read {
                    position, entry, ..
                } => self.reads.push((position, entry.0)),
                RecoveryAction::Write {
                    position, entry, ..
                } => self.writes.push((position, entry.0)),
                RecoveryAction::Replace { failed } => self.replaces.push(failed),
                RecoveryAction::Close {
                    fragments,
                    last_entry,
                    length,
                    damaged,
                } => {
                    self.damaged = damaged;
                    self.closed = Some((last_entry.map(|entry| entry.0), length));
                    let fragments = fragments.into_iter().map(|(first, m)| (first.0, m));
                    self.fragments = fragments.collect();
                }
                RecoveryAction::Abort => self.aborted = true,
            }
        }
    }

    fn fence(&mut self, position: usize, lac: Option<u64>) {
        let reply = FenceReply::Fenced(lac.map(EntryId));
        self.on(RecoveryEvent::Fence { position, reply });
    }

    fn read(&mut self, position: usize, entry: u64, reply: RecoveryReadReply) {
        self.on(RecoveryEvent::Read {
            position,
            entry: EntryId(entry),
            reply,
        });
    }

    fn written(&mut self, position: u8, entry: u64, stored: bool) {
        self.written_by(position, bookie(position), entry, stored);
    }

    fn written_by(&mut self, position: u8, bookie: BookieId, entry: u64, stored: bool) {
        self.on(RecoveryEvent::Write {
            position: usize::from(position),
            bookie,
            entry: EntryId(entry),
            stored,
        });
    }
}

#[test]
fn reads_begin_after_the_highest_lac_once_the_fence_is_covered() {
    let mut run = Run::new((3, 3, 2), 0, 1);
    run.fence(0, Some(4));
    assert_eq!(run.reads, [], "two bookies could still acknowledge");
    run.fence(2, Some(6));
    assert_eq!(run.reads, [(1, 7), (2, 7), (0, 7)]);
}

#[test]
fn the_fence_of_a_striped_ledger_must_cover_every_write_set() {
    let mut run = Run::new((4, 2, 2), 0, 1);
    run.fence(0, None);
    run.fence(1, None);
    assert_eq!(run.reads, [], "positions 2 and 3 are a write set");
    run.fence(3, None);
    assert_eq!(run.reads.len(), 2);
}

#[test]
fn reads_never_begin_before_the_last_fragment() {
    let mut run = Run::new((1, 1, 1), 10, 1);
    run.fence(0, Some(3));
    assert_eq!(run.reads, [(0, 10)]);
    run.read(0, 10, RecoveryReadReply::Absent);
    assert_eq!(run.closed, Some((Some(9), None)));
}

#[test]
fn one_good_copy_is_recovered_and_written_to_a_quorum_first() {
    let mut run = Run::new((3, 3, 2), 0, 1);
    run.fence(0, None);
    run.fence(1, None);
    run.read(0, 0, RecoveryReadReply::Absent);
    run.read(2, 0, FOUND);
    assert_eq!(run.writes, [(0, 0), (1, 0)]);
    for position in [0, 1] {
        run.read(position, 1, RecoveryReadReply::Absent);
    }
    assert_eq!(run.closed, None, "entry 0 is on one bookie only");
    run.written(1, 0, true);
    assert_eq!(run.closed, Some((Some(0), Some(7))));
}

#[test]
fn unknown_is_never_absent() {
    let mut run = Run::new((3, 3, 2), 0, 1);
    run.fence(0, None);
    run.fence(1, None);
    run.read(0, 0, RecoveryReadReply::Absent);
    run.read(1, 0, RecoveryReadReply::Unknown);
    assert!(!run.aborted, "the third may still say");
    run.read(2, 0, RecoveryReadReply::Unknown);
    assert!(run.aborted && run.closed.is_none());

    let mut limbo = Run::new((1, 1, 1), 0, 4);
    let reply = FenceReply::Unknown;
    limbo.on(RecoveryEvent::Fence { position: 0, reply });
    assert!(limbo.aborted);
}

#[test]
fn a_window_reads_ahead_but_stops_at_the_first_absent() {
    let mut run = Run::new((1, 1, 1), 0, 3);
    run.fence(0, None);
    assert_eq!(run.reads, [(0, 0), (0, 1), (0, 2)]);
    run.read(0, 2, FOUND);
    run.read(0, 1, RecoveryReadReply::Absent);
    assert_eq!(run.closed, None);
    run.read(0, 0, FOUND);
    assert_eq!(run.closed, Some((Some(0), Some(7))), "no gaps");
    assert!(run.recovery.is_finished());
}

#[test]
fn a_failed_write_back_is_replaced_in_memory_only() {
    let mut run = Run::new((3, 3, 2), 0, 1);
    run.fence(0, None);
    run.fence(1, None);
    run.read(0, 0, FOUND);
    run.written(1, 0, false);
    assert_eq!(run.replaces, Vec::<Vec<usize>>::new(), "two are enough");
    run.written(2, 0, false);
    assert_eq!(run.replaces, [vec![1, 2]]);
    run.writes.clear();
    let members = vec![bookie(0), bookie(8), bookie(9)];
    run.on(RecoveryEvent::Replaced { members });
    assert_eq!(run.writes, [(1, 0), (2, 0)]);
    // Reads still go to the old members; a replaced bookie has no say about writes.
    run.reads.clear();
    run.written(1, 0, true);
    for position in [0, 1] {
        run.read(position, 1, RecoveryReadReply::Absent);
    }
    assert_eq!(run.closed, None, "entry 0 is on one bookie only");
    run.written_by(1, bookie(8), 0, true);
    assert_eq!(run.closed, Some((Some(0), Some(7))));
    assert_eq!(run.fragments, [(0, vec![bookie(0), bookie(8), bookie(9)])]);
}

#[test]
fn a_replacement_begins_a_fragment_behind_what_is_finished() {
    let mut run = Run::new((2, 2, 2), 4, 1);
    run.fence(0, None);
    run.read(0, 4, FOUND);
    run.written(1, 4, true);
    run.read(0, 5, FOUND);
    run.written(1, 5, false);
    assert_eq!(run.replaces, [vec![1]]);
    let members = vec![bookie(0), bookie(7)];
    run.on(RecoveryEvent::Replaced { members });
    run.written_by(1, bookie(7), 5, true);
    // What the old member at a replaced position has does not count where no reader will look.
    run.writes.clear();
    run.read(1, 6, FOUND);
    assert_eq!(run.writes, [(0, 6), (1, 6)]);
    run.written(0, 6, true);
    run.read(0, 7, RecoveryReadReply::Absent);
    assert_eq!(run.closed, None);
    run.written_by(1, bookie(7), 6, true);
    assert_eq!(run.closed, Some((Some(6), Some(7))));
    assert_eq!(run.fragments, [(5, vec![bookie(0), bookie(7)])]);
}

#[test]
fn without_a_replacement_it_gives_up() {
    let mut run = Run::new((3, 3, 2), 0, 1);
    run.fence(0, None);
    run.fence(1, None);
    run.read(0, 0, FOUND);
    run.written(1, 0, false);
    run.written(2, 0, false);
    run.on(RecoveryEvent::ReplaceFailed);
    assert!(run.aborted && run.closed.is_none());
}

#[test]
fn an_entry_that_is_damaged_wherever_it_is_stays_part_of_the_ledger() {
    let mut run = Run::new((1, 1, 1), 0, 2);
    run.fence(0, None);
    run.read(0, 0, FOUND);
    run.read(0, 1, RecoveryReadReply::Damaged);
    assert!(!run.aborted && run.closed.is_none());
    run.read(0, 2, FOUND);
    run.read(0, 3, RecoveryReadReply::Damaged);
    run.read(0, 4, RecoveryReadReply::Absent);
    assert_eq!(run.writes, [], "there is nothing to write of them");
    assert_eq!(run.closed, Some((Some(3), Some(7))));
    assert_eq!(run.damaged, 2);
}

#[test]
fn damage_is_never_absence_nor_does_it_outvote_a_good_copy() {
    let mut run = Run::new((3, 3, 2), 0, 1);
    run.fence(0, None);
    run.fence(1, None);
    run.read(0, 0, RecoveryReadReply::Damaged);
    run.read(1, 0, RecoveryReadReply::Absent);
    assert!(run.closed.is_none(), "the third may have it");
    run.read(2, 0, FOUND);
    assert_eq!(run.writes, [(0, 0), (1, 0)], "a damaged copy is replaced");

    // Whether it was stored there is not known.
    let mut unknown = Run::new((3, 3, 2), 0, 1);
    unknown.fence(0, None);
    unknown.fence(1, None);
    unknown.read(0, 0, RecoveryReadReply::Damaged);
    unknown.read(1, 0, RecoveryReadReply::Absent);
    unknown.read(2, 0, RecoveryReadReply::Unknown);
    assert!(unknown.aborted && unknown.closed.is_none());

    // Enough have never had it: it was not acknowledged.
    let mut absent = Run::new((3, 3, 2), 0, 1);
    absent.fence(0, None);
    absent.fence(1, None);
    absent.read(0, 0, RecoveryReadReply::Damaged);
    absent.read(1, 0, RecoveryReadReply::Absent);
    absent.read(2, 0, RecoveryReadReply::Absent);
    assert_eq!(absent.closed, Some((None, None)));
}

#[test]
fn a_hidden_end_is_behind_all_that_damage_can_hide() {
    let mut run = Run::new((1, 1, 1), 0, 4);
    run.fence(0, None);
    run.read(0, 0, FOUND);
    // What is found behind some shows that they were there.
    (1..600).for_each(|entry| run.read(0, entry, RecoveryReadReply::EndHidden));
    run.read(0, 600, FOUND);
    let last = 600 + HIDDEN_ENTRIES_MAX;
    for entry in 601..last {
        run.read(0, entry, RecoveryReadReply::EndHidden);
        assert!(run.closed.is_none() && !run.aborted, "{entry}");
    }
    run.read(0, last, RecoveryReadReply::EndHidden);
    assert_eq!(run.closed, Some((Some(last), Some(7))));
    assert_eq!(run.damaged, 599 + HIDDEN_ENTRIES_MAX);
}

#[test]
fn a_replacement_gets_nothing_of_what_is_lost() {
    let mut run = Run::new((2, 2, 2), 0, 2);
    run.fence(0, None);
    run.read(0, 0, FOUND);
    (0..2).for_each(|position| run.read(position, 1, RecoveryReadReply::Damaged));
    run.written(1, 0, false);
    assert_eq!(run.replaces, [vec![1]]);
    run.writes.clear();
    let members = vec![bookie(0), bookie(7)];
    run.on(RecoveryEvent::Replaced { members });
    assert_eq!(run.writes, [(1, 0)]);
    run.written_by(1, bookie(7), 0, true);
    run.read(0, 2, RecoveryReadReply::Absent);
    assert_eq!(run.closed, Some((Some(1), Some(7))));
    assert_eq!(run.fragments, [(0, vec![bookie(0), bookie(7)])]);
}
