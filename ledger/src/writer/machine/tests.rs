//! The writer's rules one by one; schedules of them are in `protocol_model`.

use proptest::prelude::*;

use super::*;

fn bookie(n: u8) -> BookieId {
    BookieId([n; 16])
}

const OPTIONS: WriterOptions = WriterOptions {
    overload_retries_max: 2,
    kept_bytes_max: 1_000,
    delay_changes: false,
};

fn writer(quorum: (u32, u32, u32), options: WriterOptions) -> Writer {
    let quorum = Quorum::new(quorum.0, quorum.1, quorum.2).unwrap();
    let members = (0_u8..).take(quorum.ensemble()).map(bookie).collect();
    Writer::new(quorum, members, options)
}

/// A writer with everything it asked for.
struct Run {
    writer: Writer,
    sent: Vec<(usize, BookieId, u64)>,
    acknowledged: Vec<u64>,
    changes: Vec<(u64, Vec<usize>)>,
    retries: usize,
    later: Vec<bool>,
    stopped: Option<StopReason>,
}

impl Run {
    fn new(quorum: (u32, u32, u32)) -> Run {
        Run::with(quorum, OPTIONS)
    }

    fn with(quorum: (u32, u32, u32), options: WriterOptions) -> Run {
        Run {
            writer: writer(quorum, options),
            sent: Vec::new(),
            acknowledged: Vec::new(),
            changes: Vec::new(),
            retries: 0,
            later: Vec::new(),
            stopped: None,
        }
    }

    fn take(&mut self, actions: Vec<WriterAction>) {
        for action in actions {
            match action {
                WriterAction::Send {
                    position,
                    bookie,
                    entry,
                } => self.sent.push((position, bookie, entry.0)),
                WriterAction::Acknowledge { entry } => self.acknowledged.push(entry.0),
                WriterAction::ScheduleRetry => self.retries += 1,
                WriterAction::ScheduleChange { again } => self.later.push(again),
                WriterAction::ChangeEnsemble {
                    first_entry,
                    failed,
                } => self.changes.push((first_entry.0, failed)),
                WriterAction::Stop { reason } => self.stopped = Some(reason),
            }
        }
    }

    fn add(&mut self) -> Option<PlannedAdd> {
        let mut actions = Vec::new();
        let planned = self.writer.add(10, &mut actions);
        self.take(actions);
        planned
    }

    fn on(&mut self, event: WriterEvent) {
        let mut actions = Vec::new();
        self.writer.on(event, &mut actions);
        self.take(actions);
    }

    fn reply(&mut self, position: u8, entry: u64, reply: AddReply) {
        self.on(WriterEvent::Reply {
            position: usize::from(position),
            bookie: bookie(position),
            entry: EntryId(entry),
            reply,
        });
    }
}

#[test]
fn acknowledges_in_order_at_the_quorum_and_piggybacks_the_lac() {
    let mut run = Run::new((3, 3, 2));
    for entry in 0..3 {
        assert_eq!(run.add().unwrap().last_add_confirmed, None, "{entry}");
    }
    assert_eq!(run.sent.len(), 9);
    run.reply(0, 1, AddReply::Stored);
    run.reply(0, 1, AddReply::Stored);
    run.reply(2, 1, AddReply::Stored);
    assert!(run.acknowledged.is_empty(), "entry 0 is before it");
    run.reply(1, 0, AddReply::Stored);
    run.reply(1, 0, AddReply::Stored);
    assert!(run.acknowledged.is_empty(), "one position counts once");
    run.reply(0, 0, AddReply::Stored);
    assert_eq!(run.acknowledged, [0, 1]);
    let planned = run.add().unwrap();
    assert_eq!(planned.last_add_confirmed, Some(EntryId(1)));
    assert_eq!((planned.entry, planned.ledger_length), (EntryId(3), 40));
    let end = run.writer.finish();
    assert_eq!((end.last_entry, end.length), (Some(EntryId(1)), 20));
    assert_eq!(run.add(), None);
}

#[test]
fn striped_entries_go_to_their_write_set() {
    let mut run = Run::new((3, 2, 2));
    run.add();
    run.add();
    run.add();
    let to: Vec<(usize, u64)> = run.sent.iter().map(|(p, _, e)| (*p, *e)).collect();
    assert_eq!(to, [(0, 0), (1, 0), (1, 1), (2, 1), (0, 2), (2, 2)]);
}

#[test]
fn a_fence_is_terminal_i4() {
    let mut run = Run::new((1, 1, 1));
    run.add();
    run.add();
    run.reply(0, 0, AddReply::Fenced);
    assert_eq!(run.stopped, Some(StopReason::Fenced));
    run.reply(0, 0, AddReply::Stored);
    run.reply(0, 1, AddReply::Stored);
    assert_eq!((run.acknowledged.len(), run.add()), (0, None));
}

#[test]
fn overload_holds_everything_back_and_resends_in_order() {
    let mut run = Run::new((1, 1, 1));
    for _ in 0..3 {
        run.add();
    }
    run.reply(0, 0, AddReply::Overloaded);
    run.reply(0, 1, AddReply::Stored);
    run.reply(0, 2, AddReply::Overloaded);
    run.sent.clear();
    run.add();
    assert_eq!((run.sent.len(), run.retries), (0, 1), "one retry for all");
    run.on(WriterEvent::RetryDue);
    let resent: Vec<u64> = run.sent.iter().map(|(_, _, e)| *e).collect();
    assert_eq!(resent, [0, 2, 3]);
    for entry in [0, 2, 3] {
        run.reply(0, entry, AddReply::Stored);
    }
    assert_eq!(run.acknowledged, [0, 1, 2, 3]);
}

#[test]
fn endless_overload_is_a_failure() {
    let mut run = Run::new((1, 1, 1));
    run.add();
    for _ in 0..3 {
        run.reply(0, 0, AddReply::Overloaded);
        assert_eq!(run.changes.len(), 0);
        run.on(WriterEvent::RetryDue);
    }
    assert_eq!(run.changes, [(0, vec![0])]);
    run.on(WriterEvent::EnsembleChangeFailed);
    assert_eq!(run.stopped, Some(StopReason::Failed { position: 0 }));
}

#[test]
fn an_ensemble_change_uncounts_the_replaced_and_resends() {
    let mut run = Run::new((3, 3, 2));
    for _ in 0..3 {
        run.add();
    }
    run.reply(0, 0, AddReply::Stored);
    run.reply(1, 0, AddReply::Stored);
    run.reply(2, 1, AddReply::Stored);
    run.reply(2, 2, AddReply::Failed);
    // Entry 0 is on a quorum of the others and not on the failed one: its replacement gets it.
    assert_eq!(run.changes, [(0, vec![2])]);
    run.reply(0, 1, AddReply::Stored);
    assert_eq!(
        run.acknowledged,
        [0],
        "the failed position no longer counts"
    );
    // An entry that unchanged positions complete needs no change (H8).
    run.reply(1, 1, AddReply::Stored);
    assert_eq!(run.acknowledged, [0, 1]);
    run.reply(0, 2, AddReply::Failed);
    assert_eq!(run.changes.len(), 1, "one change at a time");
    run.sent.clear();
    let members = vec![bookie(0), bookie(1), bookie(9)];
    run.on(WriterEvent::EnsembleChanged { members });
    assert_eq!(
        run.sent,
        [0, 1, 2].map(|entry| (2, bookie(9), entry)),
        "all of them lie in the new fragment"
    );
    assert_eq!(run.changes.last(), Some(&(2, vec![0])), "then the next");
    // The replaced bookie has no say any more.
    run.reply(2, 2, AddReply::Stored);
    assert_eq!(run.writer.pending(), 1);
    run.reply(1, 2, AddReply::Stored);
    assert_eq!(run.acknowledged, [0, 1]);
    let members = vec![bookie(8), bookie(1), bookie(9)];
    run.on(WriterEvent::EnsembleChanged { members });
    run.on(WriterEvent::Reply {
        position: 2,
        bookie: bookie(9),
        entry: EntryId(2),
        reply: AddReply::Stored,
    });
    assert_eq!(run.acknowledged, [0, 1, 2]);
    let firsts: Vec<u64> = run.writer.fragments().keys().map(|first| first.0).collect();
    assert_eq!(firsts, [0, 2]);
}

#[test]
fn entries_are_kept_until_the_slowest_has_them_and_beyond_a_bound_acknowledgements_wait_for_it() {
    let mut run = Run::new((3, 3, 2));
    for _ in 0..3 {
        run.add();
    }
    run.reply(2, 0, AddReply::Overloaded);
    for entry in 0..3 {
        run.reply(0, entry, AddReply::Stored);
        run.reply(1, entry, AddReply::Stored);
    }
    assert_eq!(run.acknowledged, [0, 1, 2]);
    assert_eq!(run.writer.first_kept(), EntryId(0));
    assert_eq!(run.writer.kept_bytes(), 30);
    run.sent.clear();
    run.on(WriterEvent::RetryDue);
    assert_eq!(run.sent, [(2, bookie(2), 0)], "although it is acknowledged");
    for entry in 0..2 {
        run.reply(2, entry, AddReply::Stored);
    }
    assert_eq!(run.writer.first_kept(), EntryId(2));
    assert_eq!(run.writer.laggards(), [(2, bookie(2))]);
    for entry in 3..104 {
        run.add();
        run.reply(0, entry, AddReply::Stored);
        run.reply(1, entry, AddReply::Stored);
    }
    // Entries 2 to 101 are 1,000 bytes.
    assert_eq!(run.acknowledged.len(), 102);
    assert_eq!(run.writer.kept_bytes(), 1_000);
    assert_eq!(run.writer.holding_back(), [(2, bookie(2))]);
    assert_eq!(
        run.changes,
        [],
        "it is slower, and may be as good as the others"
    );
    run.reply(2, 2, AddReply::Stored);
    assert_eq!(run.acknowledged.len(), 103, "one came, one may go");
    for entry in 3..104 {
        run.reply(2, entry, AddReply::Stored);
    }
    assert_eq!(run.acknowledged.len(), 104);
    assert_eq!((run.writer.kept(), run.writer.holding_back()), (0, vec![]));
}

#[test]
fn when_the_bookie_that_is_waited_for_fails_nothing_waits_any_more() {
    let mut run = Run::new((3, 3, 2));
    for entry in 0..150 {
        run.add();
        run.reply(0, entry, AddReply::Stored);
        run.reply(1, entry, AddReply::Stored);
    }
    assert_eq!(run.acknowledged.len(), 100);
    run.reply(2, 0, AddReply::Failed);
    assert_eq!(run.acknowledged.len(), 150);
    assert_eq!(
        run.changes,
        [(0, vec![2])],
        "its replacement gets all that is kept"
    );
    assert_eq!(run.writer.holding_back(), []);
}

#[test]
fn memory_that_is_short_gives_up_slower_bookies() {
    let mut run = Run::new((3, 3, 2));
    run.add();
    run.reply(0, 0, AddReply::Stored);
    run.reply(1, 0, AddReply::Stored);
    run.on(WriterEvent::Shed);
    assert_eq!(run.writer.kept_bytes(), 0);
    assert_eq!(run.changes, [(1, vec![2])]);
}

#[test]
fn without_a_replacement_it_goes_on_while_there_is_a_quorum_h8() {
    let mut run = Run::new((3, 3, 2));
    run.add();
    run.reply(2, 0, AddReply::Failed);
    run.on(WriterEvent::EnsembleChangeFailed);
    assert_eq!((run.stopped, &run.later), (None, &vec![true]));
    run.sent.clear();
    run.add();
    assert_eq!(run.sent, [(0, bookie(0), 1), (1, bookie(1), 1)]);
    for entry in 0..2 {
        run.reply(0, entry, AddReply::Stored);
        run.reply(1, entry, AddReply::Stored);
    }
    assert_eq!(run.acknowledged, [0, 1]);
    run.on(WriterEvent::ChangeDue);
    assert_eq!(run.changes, [(0, vec![2]), (2, vec![2])]);
    run.add();
    run.reply(1, 2, AddReply::Failed);
    run.on(WriterEvent::EnsembleChangeFailed);
    assert_eq!(run.stopped, Some(StopReason::Failed { position: 1 }));
}

#[test]
fn a_change_that_can_wait_is_put_off() {
    let options = WriterOptions {
        delay_changes: true,
        ..OPTIONS
    };
    let mut run = Run::with((3, 3, 2), options);
    run.add();
    run.reply(2, 0, AddReply::Failed);
    assert_eq!((run.changes.len(), &run.later), (0, &vec![false]));
    run.reply(0, 0, AddReply::Stored);
    run.reply(1, 0, AddReply::Stored);
    assert_eq!(run.acknowledged, [0]);
    run.on(WriterEvent::ChangeDue);
    assert_eq!(run.changes, [(1, vec![2])]);

    // Without a quorum, and after a refusal, it cannot wait.
    for second in [AddReply::Failed, AddReply::Refused] {
        let mut run = Run::with((3, 3, 2), options);
        run.add();
        if second == AddReply::Failed {
            run.reply(2, 0, AddReply::Failed);
        }
        run.reply(1, 0, second);
        assert_eq!(run.changes.len(), 1, "{second:?}");
    }
}

#[test]
fn a_recovery_seen_in_metadata_stops_the_writer() {
    let mut run = Run::new((3, 3, 2));
    run.add();
    run.reply(0, 0, AddReply::Failed);
    run.on(WriterEvent::Superseded);
    assert_eq!(run.stopped, Some(StopReason::Fenced));
}

/// H16: a bookie that may lack something acknowledged is named, until it has said that it has it.
#[test]
fn it_knows_who_may_lack_what_is_acknowledged_h16() {
    let mut run = Run::new((3, 3, 2));
    let named = |run: &Run| run.writer.unconfirmed();
    let count = |run: &Run| named(run).bookies.len() + named(run).positions.len();
    run.add();
    run.reply(0, 0, AddReply::Stored);
    run.reply(1, 0, AddReply::Stored);
    assert_eq!(named(&run).bookies, [bookie(2)].into());
    assert_eq!(named(&run).positions, [2]);
    run.reply(2, 0, AddReply::Stored);
    assert_eq!(count(&run), 0);
    // It fails, and another takes its place from the next entry on.
    run.add();
    run.reply(2, 1, AddReply::Failed);
    run.reply(0, 1, AddReply::Stored);
    run.reply(1, 1, AddReply::Stored);
    let members = vec![bookie(0), bookie(1), bookie(9)];
    run.on(WriterEvent::EnsembleChanged { members });
    assert_eq!(run.changes, [(1, vec![2])]);
    assert_eq!(
        named(&run).bookies,
        [bookie(9)].into(),
        "2 has all it should"
    );
    // What it lacks begins where nothing is let go of yet.
    assert_eq!(named(&run).recent, [bookie(9)].into());
    assert_eq!(named(&run).first, EntryId(1));
    run.on(WriterEvent::Reply {
        position: 2,
        bookie: bookie(9),
        entry: EntryId(1),
        reply: AddReply::Stored,
    });
    assert_eq!(count(&run), 0);
    // What is let go of stays incomplete, whatever comes later.
    run.add();
    run.reply(0, 2, AddReply::Stored);
    run.reply(1, 2, AddReply::Stored);
    run.on(WriterEvent::Shed);
    assert_eq!(named(&run).bookies, [bookie(9)].into());
    assert_eq!(named(&run).recent, [].into(), "it lacks what is let go of");
    let members = vec![bookie(0), bookie(1), bookie(8)];
    run.on(WriterEvent::EnsembleChanged { members });
    assert_eq!(named(&run).bookies, [bookie(9)].into());
}

proptest! {
    /// Whatever bookies answer: what is acknowledged is a prefix, each entry once, and has Qa
    /// stored answers from bookies that are in its ensemble when it is acknowledged.
    #[test]
    fn acknowledgements_are_a_prefix_with_a_quorum(
        answers in proptest::collection::vec((0_u8..4, 0_usize..3, any::<u16>()), 1..200),
    ) {
        let mut run = Run::new((3, 3, 2));
        let mut stored = std::collections::BTreeSet::new();
        let mut spare = 10_u8;
        for (kind, position, pick) in answers {
            match kind {
                0 => drop(run.add()),
                1 | 2 if !run.sent.is_empty() => {
                    let at = usize::from(pick) % run.sent.len();
                    let (position, bookie, entry) = run.sent[at];
                    stored.insert((entry, bookie));
                    run.on(WriterEvent::Reply {
                        position,
                        bookie,
                        entry: EntryId(entry),
                        reply: AddReply::Stored,
                    });
                }
                3 if pick % 8 == 0 => {
                    let now = run.writer.members()[position];
                    run.on(WriterEvent::Reply {
                        position,
                        bookie: now,
                        entry: EntryId(0),
                        reply: AddReply::Failed,
                    });
                }
                _ => {
                    if let Some((_, failed)) = run.changes.pop() {
                        let mut members = run.writer.members().to_vec();
                        for position in failed {
                            members[position] = bookie(spare);
                            spare = spare.wrapping_add(1).max(10);
                        }
                        run.on(WriterEvent::EnsembleChanged { members });
                    }
                }
            }
            let count = run.acknowledged.len() as u64;
            prop_assert_eq!(&run.acknowledged, &(0..count).collect::<Vec<u64>>());
            for entry in &run.acknowledged {
                let holders = stored.iter().filter(|(e, _)| e == entry).count();
                prop_assert!(holders >= 2, "entry {} has {}", entry, holders);
            }
        }
    }
}
