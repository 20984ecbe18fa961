//! The state of a model, and what each step makes of it. The machines decide; this carries.

mod faults;
mod merge;
mod properties;
mod recoverer;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use aquifer_ledger::recovery::machine::{FenceReply, Recovery, RecoveryEvent, RecoveryReadReply};
use aquifer_ledger::writer::machine::{AddReply, Writer, WriterAction, WriterEvent, WriterOptions};
use aquifer_model::entry::EntryData;
use aquifer_model::id::{BookieId, CreationToken, EntryId, LedgerId, TenantKey};
use aquifer_model::quorum::Quorum;
use aquifer_model::storage::{
    AddEntry, BookieError, BookieResult, OrderedOperation, OrderedReply, OrderedRequest,
};
use bytes::Bytes;

use crate::bookie::SimBookie;
use crate::defect::Defect;
use crate::model::part::Part;
use crate::model::settings::Setting;
use crate::model::steps::Step;

pub(super) const LEDGER: LedgerId = LedgerId(1);
const TOKEN: CreationToken = CreationToken([7; 16]);
pub(super) const WRITER: u8 = 0;

/// Whose request it is, and what it was about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tag {
    client: u8,
    /// Counts the runs of a recoverer: answers to an earlier one are not for it.
    run: u8,
    about: About,
    /// It arrives a second time: its loss goes unnoticed.
    again: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum About {
    Add(usize, EntryId),
    Fence(usize),
    Read(usize, EntryId),
    Write(usize, EntryId),
}

type Link = (u8, u8);
type Answer = (Tag, BookieResult<OrderedReply>);
/// Messages in flight between clients and bookies, in order; no link has an empty queue.
type Queues<T> = BTreeMap<Link, Part<VecDeque<T>>>;

/// The ledger's record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Record {
    version: u8,
    state: RecordState,
    fragments: BTreeMap<EntryId, Vec<BookieId>>,
    /// Bookies that the ledger's mark names (H16).
    doubted: BTreeSet<BookieId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum RecordState {
    Open,
    InRecovery,
    /// This many entries.
    Closed(u64),
}

/// A change of the ensemble that the writer has asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Change {
    first_entry: EntryId,
    failed: Vec<usize>,
    /// What metadata made of it.
    pub(super) made: Option<WriterEvent>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Recoverer {
    run: u8,
    version: u8,
    members: Vec<BookieId>,
    machine: Recovery,
}

/// What an answer means to its receiver.
enum Heard {
    Writer(WriterEvent),
    Recoverer(RecoveryEvent),
}

/// Everything there is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub(super) writer: Part<Writer>,
    pub(super) adds_left: u8,
    /// What the writer has sent, by entry.
    sent: Part<Vec<AddEntry>>,
    acked: u64,
    /// The version of the record that the writer knows.
    version: u8,
    pub(super) change: Option<Change>,
    pub(super) change_due: bool,
    pub(super) bookies: Vec<Part<SimBookie<Tag>>>,
    requests: Queues<(Tag, OrderedRequest)>,
    answers: Queues<Answer>,
    recoverers: Vec<Part<Option<Recoverer>>>,
    record: Part<Record>,
    pub(super) losses_left: u8,
    pub(super) duplicates_left: u8,
    pub(super) crashes_left: u8,
    pub(super) sheds_left: u8,
    pub(super) rots_left: u8,
    changes_left: u8,
    /// Replicas that are gone or known to be incomplete.
    lost: u8,
    aborts: u8,
}

fn id_of(bookie: u8) -> BookieId {
    BookieId([bookie + 1; 16])
}

fn number_of(id: BookieId) -> u8 {
    id.0[0] - 1
}

impl World {
    /// Before anything has happened.
    #[must_use]
    pub fn start(setting: &Setting) -> World {
        let members: Vec<BookieId> = (0..).take(setting.quorum.ensemble()).map(id_of).collect();
        let options = WriterOptions {
            overload_retries_max: 3,
            kept_bytes_max: match setting.defect {
                Some(Defect::KeptBeyondBound) => u64::MAX,
                _ => setting.kept_bytes_max,
            },
            delay_changes: setting.delay_changes,
        };
        let acks = match setting.defect {
            Some(Defect::AckBeforeQuorum) => setting.quorum.ack() - 1,
            _ => setting.quorum.ack(),
        };
        let sizes = [setting.quorum.ensemble(), setting.quorum.write(), acks];
        let sizes = sizes.map(|size| u32::try_from(size).unwrap_or(u32::MAX));
        let quorum = Quorum::new(sizes[0], sizes[1], sizes[2]);
        let quorum = quorum.expect("a setting for this defect has an ack quorum above one");
        World {
            writer: Part::new(Writer::new(quorum, members.clone(), options)),
            adds_left: setting.adds,
            sent: Part::default(),
            acked: 0,
            version: 0,
            change: None,
            change_due: false,
            bookies: (0..setting.bookies)
                .map(|_| Part::new(SimBookie::new(setting.defect)))
                .collect(),
            requests: BTreeMap::new(),
            answers: BTreeMap::new(),
            recoverers: vec![Part::default(); usize::from(setting.recoverers)],
            record: Part::new(Record {
                version: 0,
                state: RecordState::Open,
                fragments: BTreeMap::from([(EntryId::FIRST, members)]),
                doubted: BTreeSet::new(),
            }),
            losses_left: setting.losses,
            duplicates_left: setting.duplicates,
            crashes_left: setting.crashes,
            sheds_left: setting.sheds,
            rots_left: setting.rots,
            changes_left: setting.changes,
            lost: 0,
            aborts: 0,
        }
    }

    /// How many entries the closed ledger has.
    #[must_use]
    pub fn closed_entries(&self) -> Option<u64> {
        match self.record.state {
            RecordState::Closed(entries) => Some(entries),
            RecordState::Open | RecordState::InRecovery => None,
        }
    }

    /// How many entries are acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acked
    }

    /// How many fragments the record has.
    #[must_use]
    pub fn fragments(&self) -> usize {
        self.record.fragments.len()
    }

    pub(super) fn links_with_requests(&self) -> Vec<Link> {
        self.requests.keys().copied().collect()
    }

    pub(super) fn links_with_answers(&self) -> Vec<Link> {
        self.answers.keys().copied().collect()
    }

    pub(super) fn links_in_use(&self) -> BTreeSet<Link> {
        let mut links: BTreeSet<Link> = self
            .requests
            .keys()
            .chain(self.answers.keys())
            .copied()
            .collect();
        for (number, bookie) in (0..).zip(&self.bookies) {
            links.extend(bookie.tickets().map(|tag| (tag.client, number)));
        }
        links
    }

    pub(super) fn may_recover(&self, client: u8) -> bool {
        let recoverer = &self.recoverers[usize::from(client - 1)];
        // One that gave up may begin again as often as others gave up before.
        recoverer
            .as_ref()
            .is_none_or(|r| r.machine.is_finished() && self.aborts <= 2 && r.run < 2)
    }

    /// The world after a step; `None` where it is not possible.
    #[must_use]
    pub fn after(&self, setting: &Setting, step: Step) -> Option<World> {
        let mut next = self.clone();
        match step {
            Step::Add => next.add()?,
            Step::Serve(client, bookie) => next.serve(setting, client, bookie, false)?,
            Step::ServeTwice(client, bookie) => {
                next.duplicates_left = next.duplicates_left.checked_sub(1)?;
                next.serve(setting, client, bookie, true)?;
            }
            Step::Hear(client, bookie) => next.hear(setting, client, bookie)?,
            Step::Break(client, bookie) => {
                next.losses_left = next.losses_left.checked_sub(1)?;
                next.lose_link(client, bookie);
            }
            Step::GiveUp(bookie) => next.give_up(bookie)?,
            Step::Shed => {
                next.sheds_left = next.sheds_left.checked_sub(1)?;
                next.tell_writer(WriterEvent::Shed);
            }
            Step::Write(bookie) => next.bookie(bookie).write(),
            Step::Sync(bookie) => next.sync(bookie),
            Step::Flush(bookie) => next.bookie(bookie).flush(),
            Step::Crash(bookie, crash) => next.crash(bookie, crash)?,
            Step::Rot(bookie) => {
                next.rots_left = next.rots_left.checked_sub(1)?;
                next.bookie(bookie).rot(LEDGER);
            }
            Step::Change => next.change_record(setting)?,
            Step::HearOfChange => {
                let made = next.change.take()?.made?;
                next.version = next.record.version;
                next.tell_writer(made);
            }
            Step::ChangeDue => {
                next.change_due = false;
                next.tell_writer(WriterEvent::ChangeDue);
            }
            Step::Close => {
                let unconfirmed = next.writer.unconfirmed();
                let end = next.writer.change().finish();
                if next.record.state == RecordState::Open && next.record.version == next.version {
                    let entries = end.last_entry.map_or(0, |last| last.0 + 1);
                    let record = next.record.change();
                    record.state = RecordState::Closed(entries);
                    record.version += 1;
                    if setting.defect != Some(Defect::IncompleteLedgerNotMarked) {
                        record.doubted = unconfirmed.bookies;
                    }
                }
            }
            Step::Recover(client) => next.begin_recovery(setting, client),
        }
        next.forget_what_changes_nothing(setting);
        next.requests.retain(|_, queue| !queue.is_empty());
        next.answers.retain(|_, queue| !queue.is_empty());
        Some(next)
    }

    fn add(&mut self) -> Option<()> {
        self.adds_left = self.adds_left.checked_sub(1)?;
        let mut actions = Vec::new();
        let planned = self.writer.change().add(1, &mut actions)?;
        let data = EntryData {
            head: Bytes::new(),
            body: Bytes::from_static(b"e"),
        };
        self.sent.change().push(AddEntry::new(
            LEDGER,
            planned.entry,
            planned.last_add_confirmed,
            planned.ledger_length,
            data,
        ));
        self.write(actions);
        Some(())
    }

    fn request(operation: OrderedOperation) -> OrderedRequest {
        OrderedRequest {
            ledger: LEDGER,
            token: TOKEN,
            tenant: TenantKey::UNKNOWN,
            operation,
        }
    }

    fn send(&mut self, bookie: BookieId, tag: Tag, operation: OrderedOperation) {
        let link = (tag.client, number_of(bookie));
        if self.bookies[usize::from(link.1)].is_gone() {
            let gone = Err(BookieError::Unreachable(String::new()));
            let answers = self.answers.entry(link).or_default();
            answers.change().push_back((tag, gone));
        } else {
            let request = (tag, World::request(operation));
            let requests = self.requests.entry(link).or_default();
            requests.change().push_back(request);
        }
    }

    fn tell_writer(&mut self, event: WriterEvent) {
        let mut actions = Vec::new();
        self.writer.change().on(event, &mut actions);
        self.write(actions);
    }

    fn write(&mut self, actions: Vec<WriterAction>) {
        for action in actions {
            match action {
                WriterAction::Send {
                    position,
                    bookie,
                    entry,
                } => {
                    let offset = usize::try_from(entry.0).unwrap_or(usize::MAX);
                    let add = self.sent[offset].clone();
                    let tag = Tag {
                        client: WRITER,
                        run: 0,
                        about: About::Add(position, entry),
                        again: false,
                    };
                    self.send(bookie, tag, OrderedOperation::Add(add));
                }
                WriterAction::Acknowledge { entry } => {
                    assert_eq!(entry.0, self.acked, "acknowledged in order (I1)");
                    self.acked += 1;
                }
                WriterAction::ChangeEnsemble {
                    first_entry,
                    failed,
                } => {
                    self.change = Some(Change {
                        first_entry,
                        failed,
                        made: None,
                    });
                }
                // Without a replacement there will be none: another attempt shows nothing new.
                WriterAction::ScheduleChange { again } => self.change_due |= !again,
                WriterAction::ScheduleRetry => {}
                WriterAction::Stop { .. } => {
                    self.change = None;
                    self.change_due = false;
                }
            }
        }
    }

    /// The lowest bookies that are no members take the failed positions.
    fn replacements(&mut self, members: &[BookieId], failed: &[usize]) -> Option<Vec<BookieId>> {
        self.changes_left = self.changes_left.checked_sub(1)?;
        let mut changed = members.to_vec();
        let mut spare = (0..)
            .zip(&self.bookies)
            .filter(|(number, bookie)| !bookie.is_gone() && !members.contains(&id_of(*number)))
            .map(|(number, _)| id_of(number));
        for &position in failed {
            changed[position] = spare.next()?;
        }
        Some(changed)
    }

    fn change_record(&mut self, setting: &Setting) -> Option<()> {
        let change = self.change.clone()?;
        let made = if self.record.state != RecordState::Open || self.record.version != self.version
        {
            WriterEvent::Superseded
        } else {
            let members = self.writer.members().to_vec();
            match self.replacements(&members, &change.failed) {
                Some(members) => {
                    let record = self.record.change();
                    record.version += 1;
                    let fragment = (change.first_entry, members.clone());
                    record.fragments.extend([fragment]);
                    WriterEvent::EnsembleChanged { members }
                }
                None => WriterEvent::EnsembleChangeFailed,
            }
        };
        debug_assert!(setting.changes >= self.changes_left);
        self.change = Some(Change {
            made: Some(made),
            ..change
        });
        Some(())
    }

    fn serve(&mut self, setting: &Setting, client: u8, bookie: u8, twice: bool) -> Option<()> {
        let queue = self.requests.get_mut(&(client, bookie))?;
        let (tag, request) = match twice {
            true => {
                let (tag, _) = queue.change().front_mut()?;
                let first = Tag {
                    again: std::mem::replace(&mut tag.again, true),
                    ..tag.clone()
                };
                (first, queue.front()?.1.clone())
            }
            false => queue.change().pop_front()?,
        };
        let mut out = Vec::new();
        self.bookie(bookie).submit(request, tag, &mut out);
        self.answer(bookie, out);
        if !setting.journal {
            self.bookie(bookie).write();
            self.sync(bookie);
            self.bookie(bookie).canonicalize();
        }
        Some(())
    }

    fn bookie(&mut self, bookie: u8) -> &mut SimBookie<Tag> {
        self.bookies[usize::from(bookie)].change()
    }

    fn sync(&mut self, bookie: u8) {
        let mut out = Vec::new();
        self.bookie(bookie).sync(&mut out);
        self.answer(bookie, out);
    }

    fn answer(&mut self, bookie: u8, out: Vec<Answer>) {
        for (tag, result) in out {
            if self.listens(&tag) {
                let queue = self.answers.entry((tag.client, bookie)).or_default();
                queue.change().push_back((tag, result));
            }
        }
    }

    /// Whether such an answer is still awaited.
    fn listens(&self, tag: &Tag) -> bool {
        match tag.client {
            WRITER => !self.writer.is_finished(),
            client => self.recoverers[usize::from(client - 1)]
                .as_ref()
                .is_some_and(|r| r.run == tag.run && !r.machine.is_finished()),
        }
    }

    fn hear(&mut self, setting: &Setting, client: u8, bookie: u8) -> Option<()> {
        let (tag, result) = self
            .answers
            .get_mut(&(client, bookie))?
            .change()
            .pop_front()?;
        if !self.listens(&tag) {
            return Some(());
        }
        match self.event_of(setting, bookie, &tag, &result) {
            Heard::Writer(event) => {
                self.tell_writer(event);
                self.forget_unheard(WRITER);
            }
            Heard::Recoverer(event) => self.tell_recoverer(setting, client, event),
        }
        Some(())
    }

    fn event_of(
        &self,
        setting: &Setting,
        bookie: u8,
        tag: &Tag,
        result: &BookieResult<OrderedReply>,
    ) -> Heard {
        let bookie = id_of(bookie);
        Heard::Recoverer(match tag.about {
            About::Add(position, entry) => {
                return Heard::Writer(WriterEvent::Reply {
                    position,
                    bookie,
                    entry,
                    reply: AddReply::of(result),
                });
            }
            About::Fence(position) => RecoveryEvent::Fence {
                position,
                reply: FenceReply::of(result),
            },
            About::Read(position, entry) => RecoveryEvent::Read {
                position,
                entry,
                reply: match RecoveryReadReply::of(LEDGER, entry, result) {
                    RecoveryReadReply::Damaged
                        if setting.defect == Some(Defect::DamagedTakenForAbsence) =>
                    {
                        RecoveryReadReply::Absent
                    }
                    RecoveryReadReply::Damaged
                        if setting.defect == Some(Defect::RecoveryStopsAtDamage) =>
                    {
                        RecoveryReadReply::Unknown
                    }
                    reply => reply,
                },
            },
            About::Write(position, entry) => RecoveryEvent::Write {
                position,
                bookie,
                entry,
                stored: result.is_ok(),
            },
        })
    }

    /// Answers that are not awaited any more are dropped.
    fn forget_unheard(&mut self, client: u8) {
        let mut links: Vec<Link> = self.answers.keys().copied().collect();
        links.retain(|(who, _)| *who == client);
        for link in links {
            let queue = self.answers.remove(&link).unwrap_or_default();
            let heard = queue.iter().filter(|(tag, _)| self.listens(tag));
            let heard: VecDeque<Answer> = heard.cloned().collect();
            self.answers.insert(link, Part::new(heard));
        }
    }
}
