//! Producer objects that use one name by turns, against a simple model: a producer that is told
//! that a message is stored finds that very message in the log, whatever the order of opens, cuts,
//! outcomes, snapshots and crashes (H20). Known defects that are put back must show.

use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;

/// A rule that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    /// The last opener of a name is not checked.
    EverybodyAdmitted,
    /// A topic that is loaded again takes the last opener from the snapshot only.
    ReplayForgets,
    /// The last opener is not in the snapshot.
    SnapshotForgets,
}

const OBJECTS: usize = 3;

#[derive(Debug, Clone, Copy)]
enum Step {
    Open { object: usize, take_over: bool },
    Cut { object: usize },
    Enqueue { object: usize },
    Send { object: usize },
    Persist,
    Fail,
    Snapshot,
    Crash { kept: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let object = 0..OBJECTS;
    prop_oneof![
        6 => (object.clone(), any::<bool>())
            .prop_map(|(object, take_over)| Step::Open { object, take_over }),
        3 => object.clone().prop_map(|object| Step::Cut { object }),
        6 => object.clone().prop_map(|object| Step::Enqueue { object }),
        8 => object.prop_map(|object| Step::Send { object }),
        8 => Just(Step::Persist),
        1 => Just(Step::Fail),
        1 => Just(Step::Snapshot),
        2 => (0usize..3).prop_map(|kept| Step::Crash { kept }),
    ]
}

/// A message: no two are the same, whatever their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sent {
    object: usize,
    id: u64,
    token: usize,
}

/// A producer object as the SDK has it.
#[derive(Debug, Clone, Default)]
struct Object {
    epoch: u64,
    is_known: bool,
    /// It was fenced.
    is_dead: bool,
    next_id: u64,
    /// Without outcome, in order.
    unanswered: VecDeque<Sent>,
    /// How many of them were sent ever.
    sent_ever: usize,
    /// How many of them were sent in this session.
    sent: usize,
}

struct World {
    defect: Option<Defect>,
    deduplicates: bool,
    table: DedupTable,
    log: Vec<Sent>,
    in_flight: VecDeque<Sent>,
    /// The producer whose session is open.
    open: Option<usize>,
    objects: Vec<Object>,
    tokens: usize,
    snapshot: (Vec<v1::ProducerState>, usize),
    stored: usize,
    fenced: usize,
}

fn instance(object: usize) -> ProducerInstance {
    ProducerInstance([u8::try_from(object).expect("few"); 16])
}

fn one(id: u64) -> SequenceRange {
    range(id, id)
}

impl World {
    fn new(deduplicates: bool, defect: Option<Defect>) -> World {
        World {
            defect,
            deduplicates,
            table: DedupTable::default(),
            log: Vec::new(),
            in_flight: VecDeque::new(),
            open: None,
            objects: vec![Object::default(); OBJECTS],
            tokens: 0,
            snapshot: (Vec::new(), 0),
            stored: 0,
            fenced: 0,
        }
    }

    fn run(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Open { object, take_over } => return self.open(object, take_over),
            Step::Cut { object } if self.open == Some(object) => self.cut(),
            Step::Enqueue { object } => self.enqueue(object),
            Step::Send { object } if self.open == Some(object) => return self.send(object),
            Step::Persist => return self.persist(),
            Step::Fail => self.fail(),
            Step::Snapshot => self.snapshot = (self.table.snapshot(), self.log.len()),
            Step::Crash { kept } => self.crash(kept),
            Step::Cut { .. } | Step::Send { .. } => {}
        }
        Ok(())
    }

    /// As the topic's owner does it: busy while another is there, not before what is in flight is
    /// decided, and not for one that was superseded.
    fn open(&mut self, number: usize, take_over: bool) -> Result<(), String> {
        let object = &mut self.objects[number];
        object.epoch += 1;
        let take_over = take_over && !object.is_known;
        let busy = self.open.is_some_and(|open| open != number) && !take_over;
        if object.is_dead || busy || self.table.has_in_flight(&name(0)) {
            return Ok(());
        }
        let opener = Opener {
            instance: instance(number),
            epoch: object.epoch,
        };
        let admitted = self.table.admits(&name(0), opener, object.is_known);
        if !admitted && self.defect != Some(Defect::EverybodyAdmitted) {
            object.is_dead = true;
            object.unanswered.clear();
            self.fenced += 1;
            return Ok(());
        }
        self.cut();
        self.table.connect(&name(0), opener).expect("there is room");
        self.open = Some(number);
        let last = self.table.last_sequence_id(&name(0));
        let object = &mut self.objects[number];
        if !std::mem::replace(&mut object.is_known, true) {
            object.next_id = last.map_or(0, |id| id + 1);
        }
        while !self.deduplicates && self.is_answered_by(number, last) {
            self.answer(number)?;
        }
        Ok(())
    }

    /// Without deduplication the SDK takes what was sent and is not above the answer for stored.
    fn is_answered_by(&self, number: usize, last: Option<u64>) -> bool {
        let object = &self.objects[number];
        let oldest = object.unanswered.front();
        object.sent_ever > 0 && oldest.is_some_and(|sent| Some(sent.id) <= last)
    }

    fn cut(&mut self) {
        if let Some(open) = self.open.take() {
            self.table.disconnect(&name(0));
            self.objects[open].sent = 0;
        }
    }

    fn enqueue(&mut self, number: usize) {
        let object = &mut self.objects[number];
        if object.is_known && !object.is_dead {
            self.tokens += 1;
            object.unanswered.push_back(Sent {
                object: number,
                id: object.next_id,
                token: self.tokens,
            });
            object.next_id += 1;
        }
    }

    fn send(&mut self, number: usize) -> Result<(), String> {
        let object = &mut self.objects[number];
        let Some(&sent) = object.unanswered.get(object.sent) else {
            return Ok(());
        };
        let verdict = match self.deduplicates {
            true => self.table.check(&name(0), one(sent.id)),
            false => Verdict::New,
        };
        match verdict {
            Verdict::New => {
                object.sent += 1;
                object.sent_ever = object.sent_ever.max(object.sent);
                self.table.pushed(&name(0), one(sent.id));
                self.in_flight.push_back(sent);
            }
            Verdict::Duplicate(_) if object.sent == 0 => self.answer(number)?,
            // Waits for what is before it.
            Verdict::Duplicate(_) | Verdict::InFlightDuplicate => {}
            Verdict::PartialOverlap | Verdict::OutOfOrder => {
                return Err(format!("{sent:?} is refused: {verdict:?}"));
            }
        }
        Ok(())
    }

    fn persist(&mut self) -> Result<(), String> {
        let Some(sent) = self.in_flight.pop_front() else {
            return Ok(());
        };
        let at = at(self.log.len() as u64);
        self.log.push(sent);
        self.table.persisted(&name(0), one(sent.id), at, 0);
        let twice = self.log.iter().filter(|one| one.token == sent.token);
        if self.deduplicates && twice.count() > 1 {
            return Err(format!("{sent:?} is stored twice"));
        }
        match self.open == Some(sent.object) && self.objects[sent.object].sent > 0 {
            true => self.answer(sent.object),
            false => Ok(()),
        }
    }

    /// The oldest message of an object is stored, it is told.
    fn answer(&mut self, number: usize) -> Result<(), String> {
        let object = &mut self.objects[number];
        let sent = object.unanswered.pop_front().ok_or("nothing to answer")?;
        object.sent = object.sent.saturating_sub(1);
        object.sent_ever = object.sent_ever.saturating_sub(1);
        self.stored += 1;
        match self.log.contains(&sent) {
            true => Ok(()),
            false => Err(format!(
                "I8: {sent:?} is not stored, and its producer is told it is"
            )),
        }
    }

    /// Everything in flight fails, and all sessions with it (H7).
    fn fail(&mut self) {
        self.in_flight.clear();
        self.table.reset_pushed();
        self.cut();
    }

    /// The owner dies; of what was in flight the log keeps some, oldest first.
    fn crash(&mut self, kept: usize) {
        self.cut();
        let kept = kept.min(self.in_flight.len());
        self.log.extend(self.in_flight.drain(..kept));
        self.in_flight.clear();
        let (mut states, from) = self.snapshot.clone();
        if self.defect == Some(Defect::SnapshotForgets) {
            states.iter_mut().for_each(|state| state.instance.clear());
        }
        self.table = DedupTable::restore(&states).expect("a snapshot is valid");
        for (entry, sent) in self.log.iter().enumerate().skip(from) {
            let at = at(entry as u64);
            if self.defect == Some(Defect::ReplayForgets) {
                self.table.persisted(&name(0), one(sent.id), at, 0);
            } else {
                let instance = Some(instance(sent.object));
                self.table.replayed(&name(0), instance, one(sent.id), at, 0);
            }
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn who_is_told_that_a_message_is_stored_finds_it_h20(
        steps in steps(),
        deduplicates in any::<bool>(),
    ) {
        let mut world = World::new(deduplicates, None);
        for step in &steps {
            prop_assert_eq!(world.run(*step), Ok(()), "{:?}", steps);
        }
    }
}

#[test]
fn a_rule_that_is_left_out_is_noticed_h20() {
    for defect in [
        Defect::EverybodyAdmitted,
        Defect::ReplayForgets,
        Defect::SnapshotForgets,
    ] {
        for deduplicates in [true, false] {
            let mut runner = TestRunner::deterministic();
            let found = (0..20_000).find(|_| {
                let tree = steps().new_tree(&mut runner).expect("steps can be drawn");
                let mut world = World::new(deduplicates, Some(defect));
                tree.current()
                    .into_iter()
                    .any(|step| world.run(step).is_err())
            });
            println!("{defect:?}, deduplication {deduplicates}: case {found:?}");
            assert!(found.is_some(), "{defect:?} is not noticed");
        }
    }
}

/// Otherwise the property has shown nothing.
#[test]
fn what_the_steps_do_is_worth_checking() {
    let mut runner = TestRunner::deterministic();
    let (mut stored, mut fenced) = (0, 0);
    for _ in 0..1_000 {
        let tree = steps().new_tree(&mut runner).expect("steps can be drawn");
        let mut world = World::new(true, None);
        for step in tree.current() {
            world.run(step).expect("sound");
        }
        stored += world.stored;
        fenced += world.fenced;
    }
    assert!(
        stored > 100 && fenced > 100,
        "{stored} stored, {fenced} fenced"
    );
}
