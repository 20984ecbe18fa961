//! The real state machines of writer and recoverer against a model of bookies, links and metadata:
//! every schedule of small configurations, and random ones of larger ones. Checks I1 to I4.

use std::collections::{BTreeMap, VecDeque};

use aquifer_model::id::{BookieId, EntryId};
use aquifer_model::quorum::Quorum;
use proptest::prelude::*;
use stateright::{Checker, Model, Property};

use crate::recovery::{FenceReply, Recovery, RecoveryAction, RecoveryEvent, RecoveryReadReply};
use crate::writer::{AddReply, Writer, WriterAction, WriterEvent};

/// A ledger with one fragment, its writer, and rivals that recover it.
#[derive(Debug, Clone)]
struct Protocol {
    quorum: Quorum,
    adds: u8,
    recoverers: u8,
    /// Links that may break, with everything on them lost.
    losses: u8,
    window: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    writer: Writer,
    adds_left: u8,
    /// Acknowledged entries: always a prefix.
    acked: u64,
    bookies: Vec<Bookie>,
    /// Requests and answers by client and position, each in order. Client 0 is the writer.
    requests: BTreeMap<(u8, usize), VecDeque<Request>>,
    answers: BTreeMap<(u8, usize), VecDeque<Answer>>,
    recoverers: Vec<Option<Recoverer>>,
    /// The record: the newest recoverer's epoch, and the end once it is closed.
    epoch: u64,
    closed: Option<Option<EntryId>>,
    losses_left: u8,
    aborts: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Recoverer {
    epoch: u64,
    machine: Recovery,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Bookie {
    fenced: bool,
    last_add_confirmed: Option<EntryId>,
    entries: BTreeMap<EntryId, Option<EntryId>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Request {
    Add(EntryId, Option<EntryId>),
    Fence,
    Read(EntryId),
    WriteBack(EntryId),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Answer {
    Added(EntryId, AddReply),
    Fenced(FenceReply),
    Read(EntryId, RecoveryReadReply),
    Written(EntryId, bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Add,
    Serve(u8, usize),
    Answer(u8, usize),
    Break(u8, usize),
    Recover(u8),
}

impl World {
    fn send(&mut self, client: u8, position: usize, request: Request) {
        let queue = self.requests.entry((client, position)).or_default();
        queue.push_back(request);
    }

    fn answer(&mut self, client: u8, position: usize, answer: Answer) {
        let queue = self.answers.entry((client, position)).or_default();
        queue.push_back(answer);
    }

    fn write(&mut self, actions: Vec<WriterAction>, lac: Option<EntryId>) {
        for action in actions {
            match action {
                WriterAction::Send {
                    position, entry, ..
                } => self.send(0, position, Request::Add(entry, lac)),
                WriterAction::Acknowledge { entry } => {
                    assert_eq!(entry.0, self.acked, "acknowledged in order (I1)");
                    self.acked += 1;
                }
                WriterAction::ChangeEnsemble { .. } => {
                    let mut more = Vec::new();
                    self.writer.on(WriterEvent::EnsembleChangeFailed, &mut more);
                    self.write(more, lac);
                }
                WriterAction::ScheduleRetry | WriterAction::Stop { .. } => {}
            }
        }
    }

    fn recover(&mut self, client: u8, actions: Vec<RecoveryAction>) {
        let slot = usize::from(client - 1);
        for action in actions {
            match action {
                RecoveryAction::Fence { position, .. } => {
                    self.send(client, position, Request::Fence);
                }
                RecoveryAction::Read {
                    position, entry, ..
                } => self.send(client, position, Request::Read(entry)),
                RecoveryAction::Write {
                    position, entry, ..
                } => self.send(client, position, Request::WriteBack(entry)),
                RecoveryAction::Close { last_entry, .. } => {
                    let newest = self.recoverers[slot].as_ref().map(|r| r.epoch);
                    if self.closed.is_none() && newest == Some(self.epoch) {
                        self.closed = Some(last_entry);
                    }
                    self.forget(client);
                }
                RecoveryAction::Abort => {
                    self.aborts += 1;
                    self.forget(client);
                }
            }
        }
    }

    /// Nobody listens to this client's answers any more; its requests are still under way.
    fn forget(&mut self, client: u8) {
        self.answers.retain(|(who, _), _| *who != client);
    }

    fn serve(&mut self, client: u8, position: usize) -> Option<()> {
        let request = self.requests.get_mut(&(client, position))?.pop_front()?;
        let bookie = &mut self.bookies[position];
        let answer = match request {
            Request::Add(entry, _) if bookie.fenced => Answer::Added(entry, AddReply::Fenced),
            Request::Add(entry, lac) => {
                bookie.entries.insert(entry, lac);
                bookie.last_add_confirmed = bookie.last_add_confirmed.max(lac);
                Answer::Added(entry, AddReply::Stored)
            }
            Request::Fence => {
                bookie.fenced = true;
                Answer::Fenced(FenceReply::Fenced(bookie.last_add_confirmed))
            }
            Request::Read(entry) => {
                bookie.fenced = true;
                let reply = match bookie.entries.contains_key(&entry) {
                    true => RecoveryReadReply::Found {
                        ledger_length: entry.0 + 1,
                    },
                    false => RecoveryReadReply::Absent,
                };
                Answer::Read(entry, reply)
            }
            Request::WriteBack(entry) => {
                bookie.entries.entry(entry).or_insert(None);
                Answer::Written(entry, true)
            }
        };
        let running = client == 0
            || self.recoverers[usize::from(client - 1)]
                .as_ref()
                .is_some_and(|r| !r.machine.is_finished());
        if running {
            self.answer(client, position, answer);
        }
        Some(())
    }

    fn take(&mut self, client: u8, position: usize) -> Option<()> {
        let answer = self.answers.get_mut(&(client, position))?.pop_front()?;
        let event = match answer {
            Answer::Added(entry, reply) => {
                let bookie = members(self.bookies.len())[position];
                let event = WriterEvent::Reply {
                    position,
                    bookie,
                    entry,
                    reply,
                };
                let mut actions = Vec::new();
                self.writer.on(event, &mut actions);
                self.write(actions, None);
                return Some(());
            }
            Answer::Fenced(reply) => RecoveryEvent::Fence { position, reply },
            Answer::Read(entry, reply) => RecoveryEvent::Read {
                position,
                entry,
                reply,
            },
            Answer::Written(entry, stored) => RecoveryEvent::Write {
                position,
                entry,
                stored,
            },
        };
        let mut actions = Vec::new();
        let recoverer = self.recoverers[usize::from(client - 1)].as_mut()?;
        recoverer.machine.on(event, &mut actions);
        self.recover(client, actions);
        Some(())
    }

    /// What is under way on a link is lost; its sender learns that it does not know.
    fn lose(&mut self, client: u8, position: usize) -> Option<()> {
        self.losses_left = self.losses_left.checked_sub(1)?;
        let answers = self.answers.remove(&(client, position)).unwrap_or_default();
        let requests = self
            .requests
            .remove(&(client, position))
            .unwrap_or_default();
        if answers.is_empty() && requests.is_empty() {
            return None;
        }
        let lost = answers.into_iter().map(|answer| match answer {
            Answer::Added(entry, _) => Answer::Added(entry, AddReply::Failed),
            Answer::Fenced(_) => Answer::Fenced(FenceReply::Unknown),
            Answer::Read(entry, _) => Answer::Read(entry, RecoveryReadReply::Unknown),
            Answer::Written(entry, _) => Answer::Written(entry, false),
        });
        let unsent = requests.into_iter().map(|request| match request {
            Request::Add(entry, _) => Answer::Added(entry, AddReply::Failed),
            Request::Fence => Answer::Fenced(FenceReply::Unknown),
            Request::Read(entry) => Answer::Read(entry, RecoveryReadReply::Unknown),
            Request::WriteBack(entry) => Answer::Written(entry, false),
        });
        let all: VecDeque<Answer> = lost.chain(unsent).collect();
        self.answers.insert((client, position), all);
        Some(())
    }

    fn copies(&self, entry: EntryId) -> usize {
        let has = |bookie: &&Bookie| bookie.entries.contains_key(&entry);
        self.bookies.iter().filter(has).count()
    }
}

fn members(count: usize) -> Vec<BookieId> {
    (1_u8..).take(count).map(|n| BookieId([n; 16])).collect()
}

impl Protocol {
    fn start(&self) -> World {
        World {
            writer: Writer::new(self.quorum, members(self.quorum.ensemble()), 3),
            adds_left: self.adds,
            acked: 0,
            bookies: vec![Bookie::default(); self.quorum.ensemble()],
            requests: BTreeMap::new(),
            answers: BTreeMap::new(),
            recoverers: vec![None; usize::from(self.recoverers)],
            epoch: 0,
            closed: None,
            losses_left: self.losses,
            aborts: 0,
        }
    }

    fn step(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        match step {
            Step::Add => {
                next.adds_left = next.adds_left.checked_sub(1)?;
                let mut actions = Vec::new();
                let planned = next.writer.add(1, &mut actions)?;
                next.write(actions, planned.last_add_confirmed);
            }
            Step::Serve(client, position) => next.serve(client, position)?,
            Step::Answer(client, position) => next.take(client, position)?,
            Step::Break(client, position) => next.lose(client, position)?,
            Step::Recover(client) => {
                let slot = usize::from(client - 1);
                // One that gave up may begin again while links may still break.
                let again = next.recoverers[slot].as_ref().is_none_or(|r| {
                    r.machine.is_finished() && next.aborts > 0 && next.aborts <= self.losses
                });
                if !again || next.closed.is_some() {
                    return None;
                }
                next.epoch += 1;
                let (machine, actions) = Recovery::start(
                    self.quorum,
                    members(self.quorum.ensemble()),
                    EntryId::FIRST,
                    self.window,
                );
                next.recoverers[slot] = Some(Recoverer {
                    epoch: next.epoch,
                    machine,
                });
                next.requests.retain(|(who, _), _| *who != client);
                next.recover(client, actions);
            }
        }
        next.requests.retain(|_, queue| !queue.is_empty());
        next.answers.retain(|_, queue| !queue.is_empty());
        Some(next)
    }

    fn steps(&self, world: &World) -> Vec<Step> {
        let mut steps = Vec::new();
        if world.adds_left > 0 {
            steps.push(Step::Add);
        }
        steps.extend((1..=self.recoverers).map(Step::Recover));
        steps.extend(world.requests.keys().map(|(c, p)| Step::Serve(*c, *p)));
        steps.extend(world.answers.keys().map(|(c, p)| Step::Answer(*c, *p)));
        if world.losses_left > 0 {
            let busy = world.requests.keys().chain(world.answers.keys());
            steps.extend(busy.map(|(c, p)| Step::Break(*c, *p)));
        }
        steps
    }

    /// I1: acknowledged means durable on Qa bookies.
    fn acknowledged_is_durable(&self, world: &World) -> bool {
        (0..world.acked).all(|entry| world.copies(EntryId(entry)) >= self.quorum.ack())
    }

    /// I2, I3, I4: a closed ledger has all that was or ever will be acknowledged, on Qa bookies.
    fn closed_has_everything(&self, world: &World) -> bool {
        let Some(last) = world.closed else {
            return true;
        };
        let count = last.map_or(0, |last| last.0 + 1);
        world.acked <= count
            && (0..count).all(|entry| world.copies(EntryId(entry)) >= self.quorum.ack())
    }

    /// Recovery gives up only when something was lost.
    fn recovery_decides(&self, world: &World) -> bool {
        world.aborts == 0 || world.losses_left < self.losses
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![self.start()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Step>) {
        actions.extend(self.steps(world));
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        self.step(world, step)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I1", Protocol::acknowledged_is_durable),
            Property::always("I2-I4", Protocol::closed_has_everything),
            Property::always("decides", Protocol::recovery_decides),
            Property::sometimes("closed with all", |model: &Protocol, world: &World| {
                world.closed == Some(u64::from(model.adds).checked_sub(1).map(EntryId))
            }),
            Property::sometimes("closed empty", |_, world: &World| {
                world.closed == Some(None)
            }),
            Property::sometimes("closed above what was acknowledged", |_, world: &World| {
                world
                    .closed
                    .flatten()
                    .is_some_and(|last| last.0 + 1 > world.acked)
            }),
        ]
    }
}

/// Visits every state; returns how many there are.
fn check(protocol: Protocol) -> usize {
    let checker = protocol.checker().threads(2).spawn_bfs().join();
    checker.assert_properties();
    assert!(checker.is_done(), "every state was visited");
    checker.unique_state_count()
}

fn quorum(ensemble: u32, write: u32, ack: u32) -> Quorum {
    Quorum::new(ensemble, write, ack).unwrap()
}

fn protocol(quorum: Quorum, adds: u8, recoverers: u8, losses: u8, window: u32) -> Protocol {
    Protocol {
        quorum,
        adds,
        recoverers,
        losses,
        window,
    }
}

#[test]
fn every_schedule_of_a_single_bookie() {
    assert!(check(protocol(Quorum::SINGLE, 2, 2, 0, 1)) > 2_000);
    assert!(check(protocol(Quorum::SINGLE, 3, 1, 2, 2)) > 10_000);
}

#[test]
fn every_schedule_of_three_bookies() {
    assert!(check(protocol(quorum(3, 3, 2), 1, 1, 0, 1)) > 80_000);
}

#[test]
#[ignore = "two minutes: two million states"]
fn every_schedule_of_larger_configurations() {
    check(protocol(Quorum::SINGLE, 2, 2, 1, 1));
    check(protocol(quorum(3, 3, 2), 1, 1, 1, 1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Random schedules of configurations too large to visit completely, striped ones included.
    #[test]
    fn random_schedules_keep_the_invariants(
        shape in prop_oneof![
            Just((3, 3, 2)), Just((3, 2, 2)), Just((4, 3, 2)), Just((5, 3, 2)), Just((3, 3, 3)),
            Just((3, 3, 1)), Just((2, 2, 1)),
        ],
        losses in 0_u8..4,
        window in 1_u32..5,
        choices in proptest::collection::vec(any::<u16>(), 50..400),
    ) {
        let (ensemble, write, ack) = shape;
        let protocol = protocol(quorum(ensemble, write, ack), 8, 2, losses, window);
        let mut world = protocol.start();
        for choice in choices {
            let steps = protocol.steps(&world);
            let Some(step) = steps.get(usize::from(choice) % steps.len().max(1)) else { break };
            let Some(next) = protocol.step(&world, *step) else { continue };
            world = next;
            prop_assert!(protocol.acknowledged_is_durable(&world), "{:?}", world);
            prop_assert!(protocol.closed_has_everything(&world), "{:?}", world);
            prop_assert!(protocol.recovery_decides(&world), "{:?}", world);
        }
    }
}
