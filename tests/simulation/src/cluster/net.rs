//! Network and bookies: one queue of events in virtual time.
//!
//! Requests of one process to one bookie arrive in order, and so do the answers; those of different
//! pairs overtake each other. A link that breaks answers everything on it as unreachable, and what
//! was in flight over it never arrives.

mod transport;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use aquifer_ledger::transport::BookieTransport;
use aquifer_model::id::{EntryId, LedgerId};
use aquifer_model::storage::{
    BookieError, BookieResult, OrderedReply, OrderedRequest, Presence, PresenceRange, ReadBatch,
    ReadRange, ReplyCallback,
};
use aquifer_runtime::clock::{SharedClock, sleep};
use aquifer_runtime::rng::SharedRng;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::bookie::{Answered, Crash};
use crate::cluster::node::Node;
use crate::defect::Defect;
use transport::Transport;

/// Process, bookie, epoch of the link, request.
pub(super) type Ticket = (u32, u8, u64, u64);
type Pair = (u32, u8);

enum Event {
    Deliver(Ticket, OrderedRequest),
    Answer(Ticket, BookieResult<OrderedReply>),
    Read(Pair, ReadRange, oneshot::Sender<BookieResult<ReadBatch>>),
    Has(Pair, PresenceRange, oneshot::Sender<BookieResult<Presence>>),
    ReadAnswer(
        Pair,
        BookieResult<ReadBatch>,
        oneshot::Sender<BookieResult<ReadBatch>>,
    ),
    Write(u8, u64),
    Sync(u8, u64),
    Flush(u8, u64),
    Start(u8),
}

#[derive(Default)]
struct Link {
    epoch: u64,
    requests_until: u64,
    answers_until: u64,
    /// Nothing goes there, or comes back, before.
    blocked_there: u64,
    blocked_back: u64,
    waiting: BTreeMap<u64, ReplyCallback>,
}

struct State {
    events: BTreeMap<(u64, u64), Event>,
    last_event: u64,
    nodes: Vec<Node>,
    links: BTreeMap<Pair, Link>,
    processes: u32,
    dead: BTreeSet<u32>,
    frozen: BTreeMap<u32, u64>,
    last_request: u64,
    trace: DefaultHasher,
    count: u64,
}

/// The network with the bookies behind it.
pub(super) struct Net {
    state: Mutex<State>,
    wake: Notify,
    rng: SharedRng,
    clock: SharedClock,
}

/// What is to be told once no lock is held.
type Told = Vec<(ReplyCallback, BookieResult<OrderedReply>)>;

impl Net {
    pub(super) fn new(
        bookies: u8,
        defect: Option<Defect>,
        rng: SharedRng,
        clock: SharedClock,
    ) -> Arc<Net> {
        Arc::new(Net {
            state: Mutex::new(State {
                events: BTreeMap::new(),
                last_event: 0,
                nodes: (0..bookies).map(|_| Node::new(defect)).collect(),
                links: BTreeMap::new(),
                processes: 0,
                dead: BTreeSet::new(),
                frozen: BTreeMap::new(),
                last_request: 0,
                trace: DefaultHasher::new(),
                count: 0,
            }),
            wake: Notify::new(),
            rng,
            clock,
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.monotonic().as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn new_process(&self) -> u32 {
        let mut state = self.state.lock();
        state.processes += 1;
        state.processes
    }

    pub(super) fn transport(self: &Arc<Net>, process: u32) -> Arc<dyn BookieTransport> {
        Arc::new(Transport {
            net: Arc::clone(self),
            process,
        })
    }

    /// How many events there were, and the hash over them.
    pub(super) fn trace(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.count, state.trace.finish())
    }

    /// Makes something that happened elsewhere part of the trace.
    pub(super) fn note(&self, what: impl Hash) {
        let now = self.now();
        let mut state = self.state.lock();
        (now, what).hash(&mut state.trace);
    }

    /// Whether a process is dead, and until when it is frozen.
    pub(super) fn fate(&self, process: u32) -> (bool, u64) {
        let state = self.state.lock();
        let frozen = state.frozen.get(&process).copied().unwrap_or(0);
        (state.dead.contains(&process), frozen)
    }

    /// Whether a bookie has an entry durably.
    pub(super) fn has(&self, number: u8, ledger: LedgerId, entry: EntryId) -> bool {
        let state = self.state.lock();
        let node = state.nodes.get(usize::from(number));
        node.is_some_and(|node| node.bookie.is_durable(ledger, entry))
    }

    /// How many bookies have an entry durably.
    pub(super) fn copies(&self, ledger: LedgerId, entry: EntryId) -> usize {
        let state = self.state.lock();
        let nodes = state.nodes.iter();
        nodes
            .filter(|node| node.bookie.is_durable(ledger, entry))
            .count()
    }

    /// Runs events when they are due, for ever.
    pub(super) async fn run(&self) {
        loop {
            let next = self.state.lock().events.keys().next().copied();
            let woken = self.wake.notified();
            match next {
                Some((at, _)) if at <= self.now() => self.happen(),
                Some((at, _)) => {
                    let pause = std::time::Duration::from_micros(at - self.now());
                    tokio::select! {
                        biased;
                        () = sleep(pause) => {}
                        () = woken => {}
                    }
                }
                None => woken.await,
            }
        }
    }

    fn happen(&self) {
        let told = {
            let mut state = self.state.lock();
            let Some(((at, number), event)) = state.events.pop_first() else {
                return;
            };
            state.count += 1;
            let mut told = Told::new();
            state.take(at, number, event, self, &mut told);
            told
        };
        for (reply, result) in told {
            reply(result);
        }
    }

    fn delay(&self, slow: bool) -> u64 {
        let usual = 200 + self.rng.below(2_000);
        match (slow, self.rng.below(50)) {
            (true, _) => usual + self.rng.below(300_000),
            (false, 0) => usual + self.rng.below(30_000),
            (false, _) => usual,
        }
    }

    fn submit(&self, pair: Pair, request: OrderedRequest, reply: ReplyCallback) {
        let now = self.now();
        let mut state = self.state.lock();
        if state.dead.contains(&pair.0) {
            return;
        }
        if usize::from(pair.1) >= state.nodes.len() {
            drop(state);
            return reply(Err(BookieError::Unreachable("no such bookie".to_owned())));
        }
        state.last_request += 1;
        let number = state.last_request;
        let slow = state.nodes[usize::from(pair.1)].slow_until > now;
        let link = state.links.entry(pair).or_default();
        link.waiting.insert(number, reply);
        let at = link.requests_until.max(now + self.delay(slow));
        link.requests_until = at;
        let ticket = (pair.0, pair.1, link.epoch, number);
        state.plan(at, Event::Deliver(ticket, request));
        drop(state);
        self.wake.notify_one();
    }

    // What follows is done to the cluster by faults.

    pub(super) fn crash(&self, node: u8, crash: Crash, down_for: u64) {
        let now = self.now();
        let told = {
            let mut state = self.state.lock();
            let hit = &mut state.nodes[usize::from(node)];
            if hit.bookie.is_gone() {
                return;
            }
            hit.stop();
            hit.bookie.crash(crash);
            let mut told = Told::new();
            state.break_links(|pair| pair.1 == node, &mut told);
            state.plan(now + down_for, Event::Start(node));
            told
        };
        self.wake.notify_one();
        for (reply, result) in told {
            reply(result);
        }
    }

    pub(super) fn break_link(&self, node: u8) {
        let told = {
            let mut state = self.state.lock();
            let mut told = Told::new();
            state.break_links(|pair| pair.1 == node, &mut told);
            told
        };
        for (reply, result) in told {
            reply(result);
        }
    }

    /// Lets nothing through between bookies and processes that are chosen, for a while.
    pub(super) fn partition(
        &self,
        node: u8,
        process: impl Fn(u32) -> bool,
        there: bool,
        back: bool,
        until: u64,
    ) {
        let mut state = self.state.lock();
        let processes = state.processes;
        for process in (1..=processes).filter(|p| process(*p)) {
            let link = state.links.entry((process, node)).or_default();
            if there {
                link.blocked_there = link.blocked_there.max(until);
            }
            if back {
                link.blocked_back = link.blocked_back.max(until);
            }
        }
    }

    pub(super) fn change_node(&self, node: u8, change: impl FnOnce(&mut Node)) {
        change(&mut self.state.lock().nodes[usize::from(node)]);
    }

    pub(super) fn micros(&self, from_now: std::time::Duration) -> u64 {
        self.now() + u64::try_from(from_now.as_micros()).unwrap_or(0)
    }

    pub(super) fn kill_process(&self, process: u32) {
        let mut state = self.state.lock();
        state.dead.insert(process);
        // Callbacks hold parts of the process: they go without a word.
        let links = state.links.iter_mut().filter(|((p, _), _)| *p == process);
        let forgotten: Vec<_> = links
            .map(|(_, link)| std::mem::take(&mut link.waiting))
            .collect();
        drop(state);
        drop(forgotten);
    }

    pub(super) fn freeze_process(&self, process: u32, until: u64) {
        self.state.lock().frozen.insert(process, until);
    }

    pub(super) fn last_process(&self) -> u32 {
        self.state.lock().processes
    }

    /// Everything works from now on, but what is gone stays gone.
    pub(super) fn heal(&self) {
        let mut state = self.state.lock();
        for link in state.links.values_mut() {
            link.blocked_there = 0;
            link.blocked_back = 0;
        }
        for node in &mut state.nodes {
            node.paused_until = 0;
            node.overloaded_until = 0;
            node.read_only_until = 0;
            node.slow_until = 0;
        }
    }
}

impl State {
    fn plan(&mut self, at: u64, event: Event) {
        self.last_event += 1;
        self.events.insert((at, self.last_event), event);
    }

    /// Later, in the same order among those that are put off.
    fn put_off(&mut self, until: u64, number: u64, event: Event) {
        self.events.insert((until, number), event);
    }

    fn break_links(&mut self, broken: impl Fn(&Pair) -> bool, told: &mut Told) {
        for (_, link) in self.links.iter_mut().filter(|(pair, _)| broken(pair)) {
            link.epoch += 1;
            for (_, reply) in std::mem::take(&mut link.waiting) {
                told.push((reply, Err(BookieError::Unreachable("cut off".to_owned()))));
            }
        }
    }

    /// When something between a process and a bookie may go on, if not now.
    fn blocked(&self, pair: Pair, there: bool) -> u64 {
        let frozen = self.frozen.get(&pair.0).copied().unwrap_or(0);
        let link = self.links.get(&pair);
        let blocked = link.map_or(0, |link| match there {
            true => link.blocked_there,
            false => link.blocked_back,
        });
        // A frozen process has sent what it has sent.
        if there { blocked } else { blocked.max(frozen) }
    }

    fn take(&mut self, at: u64, number: u64, event: Event, net: &Net, told: &mut Told) {
        let busy_until = match &event {
            Event::Deliver(ticket, _) => {
                let node = self.nodes[usize::from(ticket.1)].paused_until;
                self.blocked((ticket.0, ticket.1), true).max(node)
            }
            Event::Read(pair, ..) | Event::Has(pair, ..) => {
                let node = self.nodes[usize::from(pair.1)].paused_until;
                self.blocked(*pair, true).max(node)
            }
            Event::Answer(ticket, _) => self.blocked((ticket.0, ticket.1), false),
            Event::ReadAnswer(pair, ..) => self.blocked(*pair, false),
            Event::Write(node, _) | Event::Sync(node, _) | Event::Flush(node, _) => {
                self.nodes[usize::from(*node)].paused_until
            }
            Event::Start(_) => 0,
        };
        if busy_until > at {
            return self.put_off(busy_until, number, event);
        }
        match event {
            Event::Deliver(ticket, request) => self.deliver(at, ticket, request, net, told),
            Event::Answer(ticket, result) => {
                (at, ticket, &result).hash(&mut self.trace);
                let link = self.links.entry((ticket.0, ticket.1)).or_default();
                if link.epoch == ticket.2
                    && let Some(reply) = link.waiting.remove(&ticket.3)
                {
                    told.push((reply, result));
                }
            }
            Event::Read(pair, range, answer) => {
                let node = &self.nodes[usize::from(pair.1)];
                let result = match node.up && !node.bookie.is_gone() {
                    true => node.read(range),
                    false => Err(BookieError::Unreachable("down".to_owned())),
                };
                let back = at + net.delay(node.slow_until > at);
                self.plan(back, Event::ReadAnswer(pair, result, answer));
            }
            Event::Has(pair, range, answer) => {
                let node = &self.nodes[usize::from(pair.1)];
                let result = match node.up && !node.bookie.is_gone() {
                    true => node.has(range),
                    false => Err(BookieError::Unreachable("down".to_owned())),
                };
                (at, pair, &result).hash(&mut self.trace);
                // A caller that gave up does not need it.
                let _ = answer.send(result);
            }
            Event::ReadAnswer(pair, result, answer) => {
                let entries = result.as_ref().map_or(0, |batch| batch.entries.len());
                (at, pair, entries).hash(&mut self.trace);
                if !self.dead.contains(&pair.0) {
                    // A caller that gave up does not need it.
                    let _ = answer.send(result);
                }
            }
            Event::Write(node, life) => self.write(at, node, life, net),
            Event::Sync(node, life) => self.sync(at, node, life, net),
            Event::Flush(node, life) => {
                let flushed = &mut self.nodes[usize::from(node)];
                if flushed.life == life {
                    flushed.flush_planned = false;
                    flushed.bookie.flush();
                }
            }
            Event::Start(node) => {
                (at, node).hash(&mut self.trace);
                let started = &mut self.nodes[usize::from(node)];
                started.up = !started.bookie.is_gone();
            }
        }
    }

    fn deliver(
        &mut self,
        at: u64,
        ticket: Ticket,
        request: OrderedRequest,
        net: &Net,
        told: &mut Told,
    ) {
        let pair = (ticket.0, ticket.1);
        (at, ticket, &request).hash(&mut self.trace);
        if self
            .links
            .get(&pair)
            .is_none_or(|link| link.epoch != ticket.2)
        {
            return;
        }
        let node = &mut self.nodes[usize::from(ticket.1)];
        if !node.up {
            return self.break_links(|other| *other == pair, told);
        }
        let mut out: Vec<Answered<Ticket>> = Vec::new();
        if let Some(error) = node.refuses(&request, at) {
            out.push((ticket, Err(error)));
        } else {
            // Now and then a message comes twice.
            if net.rng.below(40) == 0 {
                node.bookie.submit(request.clone(), ticket, &mut out);
            }
            node.bookie.submit(request, ticket, &mut out);
        }
        self.answer(at, out, net);
        self.plan_commit(at, ticket.1, net);
    }

    fn plan_commit(&mut self, at: u64, number: u8, net: &Net) {
        let node = &mut self.nodes[usize::from(number)];
        if node.bookie.is_busy() && !node.commit_planned {
            node.commit_planned = true;
            let life = node.life;
            self.plan(at + net.rng.below(1_500), Event::Write(number, life));
        }
    }

    fn write(&mut self, at: u64, number: u8, life: u64, net: &Net) {
        let node = &mut self.nodes[usize::from(number)];
        if node.life != life {
            return;
        }
        node.bookie.write();
        let slow = node.slow_until > at;
        self.plan(at + net.delay(slow), Event::Sync(number, life));
    }

    fn sync(&mut self, at: u64, number: u8, life: u64, net: &Net) {
        let node = &mut self.nodes[usize::from(number)];
        if node.life != life {
            return;
        }
        let mut out = Vec::new();
        node.bookie.sync(&mut out);
        node.commit_planned = false;
        if node.bookie.is_dirty() && !node.flush_planned {
            node.flush_planned = true;
            self.plan(at + net.rng.below(400_000), Event::Flush(number, life));
        }
        self.answer(at, out, net);
        self.plan_commit(at, number, net);
    }

    fn answer(&mut self, at: u64, out: Vec<Answered<Ticket>>, net: &Net) {
        for (ticket, result) in out {
            let slow = self.nodes[usize::from(ticket.1)].slow_until > at;
            let link = self.links.entry((ticket.0, ticket.1)).or_default();
            let back = link.answers_until.max(at + net.delay(slow));
            link.answers_until = back;
            self.plan(back, Event::Answer(ticket, result));
        }
    }
}
