//! Byte budgets: what a component may hold in memory at once (I13). Budgets form a tree: a child
//! takes its bytes from its parent as well, so the root bounds the sum.
//!
//! What other children do not need is borrowed without a reservation, but no child can starve the
//! others, however long it keeps what it has: what it takes it takes only while it holds at most
//! [`SHARE`] times what it leaves free, and the last [`RESERVE`]th of the root is for children that
//! hold nothing, half of it for those that want little ([`SMALL`]). So any number of children that
//! keep what they have, one small request each beside, leave the others one such request at a time:
//! slow, but never stopped, until those requests alone fill the reserve.
//!
//! A *part* is a child of the root for one of those that share the process, a tenant, with
//! children of its own. All but the reserve is divided equally between the parts that hold
//! something, a part alone may have all of that, and what the others leave is lent. Of the reserve
//! a part may take as much as it leaves of it. So one that holds little gets bytes at once,
//! whatever the others hold and however many children they have. Children of a part share in the
//! same way what the part may have. When it has all of that, for instance because others came
//! later, its children that hold nothing have bytes beyond it, up to a [`BEYOND`]th of the reserve
//! at a time: children that keep what they have do not stop the others of their part.
//!
//! Acquiring waits in first-come order within a child, and in turns of equal bytes between parts,
//! and between children without a part (`turns.rs`). Children of a part take turns within it. A
//! large request that no moment has room for collects bytes as they come back, and leaves
//! `1 / COLLECT_FLOOR` of the capacity to small ones meanwhile: it is not starved, nor are they.

mod parts;
mod turns;

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, MutexGuard};

pub use parts::BudgetParts;
use turns::{Turns, Visit};

/// A child may hold this many times the bytes that its parent has free.
const SHARE: usize = 2;
/// A child of a part may hold this many times the bytes that it leaves to the others.
const SHARE_IN_PART: usize = 4;
/// This part of what a part may have is for its children that hold nothing.
const PART_RESERVE: usize = 8;
/// This part of the root is for small requests of children that hold nothing.
const RESERVE: usize = 4;
/// This part of the reserve may be taken beyond what a part may have, by its children that hold
/// nothing. Small requests may take it from the reserve, others from what is free above that.
const BEYOND: usize = 4;
/// A request is small up to this part of the root's capacity.
const SMALL: usize = 256;
/// A request that collects leaves this part of the root's capacity free.
const COLLECT_FLOOR: usize = 16;

/// A bounded number of bytes, shared by its clones.
#[derive(Debug, Clone)]
pub struct ByteBudget {
    node: Arc<Node>,
}

/// Bytes taken from a budget, given back on drop.
#[derive(Debug)]
#[must_use = "the bytes are given back when the permit is dropped"]
pub struct BytePermit {
    node: Arc<Node>,
    bytes: usize,
}

#[derive(Debug)]
struct Node {
    id: u64,
    capacity_bytes: usize,
    /// Changed only while the tree is locked.
    used_bytes: AtomicUsize,
    parent: Option<Arc<Node>>,
    is_part: bool,
    /// Of a root: parts that hold something. Changed only while the tree is locked.
    parts_in_use: AtomicUsize,
    /// Of a part: what its children took beyond what it may have, and did not give back. Of a
    /// child: its own. Changed only while the tree is locked.
    beyond_bytes: AtomicUsize,
    /// Of a part: how many quanta it gains in its turn.
    weight: AtomicUsize,
    tree: Arc<Mutex<Tree>>,
}

/// The requests that wait in a tree.
#[derive(Debug, Default)]
struct Tree {
    waiters: HashMap<u64, Waiter>,
    turns: Turns,
    /// The request that collects. There is one at a time: two could wait for each other.
    collector: Option<u64>,
    next_id: u64,
}

#[derive(Debug)]
struct Waiter {
    bytes: usize,
    /// What was collected so far; everything once the request is granted.
    have: usize,
    granted: bool,
    waker: Option<Waker>,
}

impl ByteBudget {
    /// A budget of `capacity_bytes`.
    #[must_use]
    pub fn new(capacity_bytes: usize) -> ByteBudget {
        ByteBudget {
            node: Arc::new(Node {
                id: 0,
                capacity_bytes,
                used_bytes: AtomicUsize::new(0),
                parent: None,
                is_part: false,
                parts_in_use: AtomicUsize::new(0),
                beyond_bytes: AtomicUsize::new(0),
                weight: AtomicUsize::new(1),
                tree: Arc::new(Mutex::new(Tree {
                    next_id: 1,
                    ..Tree::default()
                })),
            }),
        }
    }

    /// A part of this budget: holds at most `capacity_bytes`, and no more than its share.
    #[must_use]
    pub fn child(&self, capacity_bytes: usize) -> ByteBudget {
        self.below(capacity_bytes, false)
    }

    /// The part of one of those that share a whole budget (see the module); of a budget that is
    /// itself a part of another, a child.
    #[must_use]
    pub fn part(&self) -> ByteBudget {
        self.below(self.node.capacity_bytes, self.node.parent.is_none())
    }

    fn below(&self, capacity_bytes: usize, is_part: bool) -> ByteBudget {
        let tree = Arc::clone(&self.node.tree);
        let id = tree.lock().draw_id();
        ByteBudget {
            node: Arc::new(Node {
                id,
                capacity_bytes: capacity_bytes.min(self.node.capacity_bytes),
                used_bytes: AtomicUsize::new(0),
                parent: Some(Arc::clone(&self.node)),
                is_part,
                parts_in_use: AtomicUsize::new(0),
                beyond_bytes: AtomicUsize::new(0),
                weight: AtomicUsize::new(1),
                tree,
            }),
        }
    }

    /// Waits until the bytes are free and takes them. A request above the capacity takes the
    /// whole capacity: it runs alone instead of never.
    pub fn acquire(&self, bytes: usize) -> Acquire {
        Acquire {
            node: Arc::clone(&self.node),
            bytes: bytes.min(self.node.capacity_bytes),
            ticket: None,
        }
    }

    /// Takes the bytes when they are free now and no request of this budget waits.
    #[must_use]
    pub fn try_acquire(&self, bytes: usize) -> Option<BytePermit> {
        let bytes = bytes.min(self.node.capacity_bytes);
        let tree = self.node.tree.lock();
        tree.try_take(&self.node, bytes)
            .then(|| self.node.permit(bytes))
    }

    /// Bytes that permits hold now, and requests that collect.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.node.used()
    }

    /// Bytes that the permits may hold together.
    #[must_use]
    pub fn capacity_bytes(&self) -> usize {
        self.node.capacity_bytes
    }

    /// Gives a part a weight: of bytes that come back while several parts wait, it gets that many
    /// times the share of one of weight 1.
    fn weigh(&self, weight: u32) {
        let weight = weight.max(1) as usize;
        self.node.weight.store(weight, Ordering::Relaxed);
    }

    /// Whether it has permits, children, or other handles than this one.
    fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.node) > 1
    }

    /// Bytes that this budget may take now.
    #[must_use]
    pub fn room_bytes(&self) -> usize {
        let _tree = self.node.tree.lock();
        self.node.room(0)
    }
}

impl Node {
    fn used(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// How much more the node may take beside what it holds. `collected` of that belongs to a
    /// request that has not been granted, and does not count against its share.
    fn room(&self, collected: usize) -> usize {
        let used = self.used();
        let own = self.capacity_bytes.saturating_sub(used);
        let Some(parent) = &self.parent else {
            return own;
        };
        let held = used.saturating_sub(collected);
        let free = parent.room_for_children(collected);
        let share = match (self.is_part, parent.is_part) {
            (true, _) => {
                let equal = self.equal_part().saturating_sub(held).min(free);
                let lent = of_share(free, SHARE, held);
                equal.max(lent).max(parent.promised(held))
            }
            (false, true) => of_share(free, SHARE_IN_PART, held),
            (false, false) => of_share(free, SHARE, held),
        };
        own.min(share)
    }

    fn room_for_children(&self, collected: usize) -> usize {
        let room = self.room(collected);
        match (&self.parent, self.is_part) {
            (None, _) => room.saturating_sub(self.reserve()),
            (Some(_), true) => room.saturating_sub((room + self.used()) / PART_RESERVE),
            (Some(_), false) => room,
        }
    }

    /// How much of the reserve of this root a part that holds `held` may still take: as long as it
    /// holds no more than it leaves of that.
    fn promised(&self, held: usize) -> usize {
        of_share(self.reserve().min(self.free()), 1, held)
    }

    /// What each part has of the root when it is divided equally, this one included.
    fn equal_part(&self) -> usize {
        let root = self.root();
        let others = usize::from(self.used() == 0);
        let parts = root.parts_in_use.load(Ordering::Relaxed) + others;
        (root.capacity_bytes - root.reserve()) / parts.max(1)
    }

    fn free(&self) -> usize {
        self.capacity_bytes.saturating_sub(self.used())
    }

    /// How much a request of `bytes` that has `collected` a part of itself may take now: one of a
    /// node that holds nothing else may have whatever is free.
    fn limit(&self, bytes: usize, collected: usize) -> usize {
        let Some(_) = &self.parent else {
            return self.room(collected);
        };
        if self.used() > collected {
            return self.room(collected);
        }
        let root = self.root();
        let own = self.path().map(Node::free).min().unwrap_or(0);
        let mut parts = self.path().filter(|node| node.is_part);
        let busy = parts.find(|part| part.used() > collected);
        let kept = match (bytes, busy) {
            (bytes, _) if bytes > root.capacity_bytes - root.reserve() => 0,
            // What a part may have is for its children, and one of them may keep it for long.
            (_, Some(part)) if part.is_large(bytes) => root.reserve(),
            (_, Some(part)) => return own.min(part.room(collected).max(part.room_beyond(bytes))),
            (bytes, None) if bytes <= root.capacity_bytes / SMALL => 0,
            (_, None) => root.reserve() / 2,
        };
        let of_part = busy.map_or(0, |part| part.room(collected));
        own.min(root.free().saturating_sub(kept).max(of_part))
    }

    /// Whether a request of a child of this part is more than is kept for one that holds nothing.
    fn is_large(&self, bytes: usize) -> bool {
        bytes > self.equal_part() / PART_RESERVE
    }

    /// How much a child of this part that holds nothing may take for a request of `bytes` beyond
    /// what the part may have.
    fn room_beyond(&self, bytes: usize) -> usize {
        let root = self.root();
        let most = root.reserve() / BEYOND;
        let kept = match bytes <= root.capacity_bytes / SMALL {
            true => root.reserve() - most,
            false => root.reserve(),
        };
        let left = most.saturating_sub(self.beyond_bytes.load(Ordering::Relaxed));
        root.free().saturating_sub(kept).min(left)
    }

    /// Of the root.
    fn reserve(&self) -> usize {
        match self.capacity_bytes / SMALL {
            0 => 0,
            _ => self.capacity_bytes / RESERVE,
        }
    }

    fn path(&self) -> impl Iterator<Item = &Node> {
        std::iter::successors(Some(self), |node| node.parent.as_deref())
    }

    fn root(&self) -> &Node {
        self.path().last().unwrap_or(self)
    }

    /// Takes `bytes` of a request of `wanted`, which has `collected` a part of itself and is within
    /// its limit. The tree is locked.
    fn take_for(&self, wanted: usize, collected: usize, bytes: usize) {
        if let Some(part) = self.path().find(|node| node.is_part) {
            let is_busy = part.used() > collected && !part.is_large(wanted);
            if is_busy && bytes > part.room(collected) {
                for node in [self, part] {
                    node.beyond_bytes.fetch_add(bytes, Ordering::Relaxed);
                }
            }
        }
        self.take(bytes);
    }

    /// The tree is locked.
    fn take(&self, bytes: usize) {
        for node in self.path() {
            let before = node.used_bytes.fetch_add(bytes, Ordering::Relaxed);
            if node.is_part && before == 0 && bytes > 0 {
                self.root().parts_in_use.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The tree is locked.
    fn give(&self, bytes: usize) {
        // What was taken beyond the part's share comes back first.
        let beyond = bytes.min(self.beyond_bytes.load(Ordering::Relaxed));
        if beyond > 0 && !self.is_part {
            let counts = |node: &&Node| node.id == self.id || node.is_part;
            for node in self.path().filter(counts) {
                node.beyond_bytes.fetch_sub(beyond, Ordering::Relaxed);
            }
        }
        for node in self.path() {
            let before = node.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
            if node.is_part && before == bytes && bytes > 0 {
                self.root().parts_in_use.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// With which nodes it takes its turns: those of its part.
    fn group(&self) -> u64 {
        self.path()
            .find(|node| node.is_part)
            .map_or(self.id, |part| part.id)
    }

    /// The weight of that group.
    fn weight(&self) -> usize {
        let part = self.path().find(|node| node.is_part);
        part.map_or(1, |part| part.weight.load(Ordering::Relaxed))
    }

    fn permit(self: &Arc<Self>, bytes: usize) -> BytePermit {
        BytePermit {
            node: Arc::clone(self),
            bytes,
        }
    }

    /// Gives bytes back and lets those who wait for them go on.
    fn release(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let tree = self.tree.lock();
        self.give(bytes);
        wake(tree);
    }
}

impl Tree {
    fn draw_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn try_take(&self, node: &Node, bytes: usize) -> bool {
        let free = !self.turns.has(node.id) && bytes <= node.limit(bytes, 0);
        if free {
            node.take_for(bytes, 0, bytes);
        }
        free
    }

    fn enqueue(&mut self, node: &Arc<Node>, bytes: usize, waker: Waker) -> u64 {
        let ticket = self.draw_id();
        let waiter = Waiter {
            bytes,
            have: 0,
            granted: false,
            waker: Some(waker),
        };
        self.waiters.insert(ticket, waiter);
        self.turns.push(node, ticket);
        ticket
    }

    /// Removes a request; says what it held.
    fn forget(&mut self, node: &Node, ticket: u64) -> usize {
        self.turns.forget(node, ticket);
        if self.collector == Some(ticket) {
            self.collector = None;
        }
        self.waiters.remove(&ticket).map_or(0, |waiter| waiter.have)
    }

    /// Grants what there is room for, in turns, until nothing fits.
    fn grant(&mut self, wakers: &mut Vec<Waker>) {
        let mut turns = std::mem::take(&mut self.turns);
        turns.serve(|node, ticket, paid| self.visit(node, ticket, paid, wakers));
        self.turns = turns;
    }

    /// Grants the oldest request of a node if it fits and up to `paid` bytes pay for it. If it does
    /// not fit, it may collect, unless another does. It becomes the one that collects only with
    /// something to take: one that waits for others of its part would keep all others from it.
    fn visit(
        &mut self,
        node: &Arc<Node>,
        ticket: u64,
        paid: usize,
        wakers: &mut Vec<Waker>,
    ) -> Visit {
        let Some(waiter) = self.waiters.get_mut(&ticket) else {
            return Visit::Granted(0);
        };
        let missing = waiter.bytes - waiter.have;
        let limit = node.limit(waiter.bytes, waiter.have);
        if missing > limit {
            let nothing_else = node.used() == waiter.have;
            let floor = node.root().capacity_bytes / COLLECT_FLOOR;
            let part = limit.saturating_sub(floor).min(missing);
            let may_collect = self.collector.is_none_or(|other| other == ticket);
            if nothing_else && may_collect && part > 0 {
                self.collector = Some(ticket);
                waiter.have += part;
                node.take(part);
            }
            return Visit::TooLarge;
        }
        if missing > paid {
            return Visit::Unpaid;
        }
        node.take_for(waiter.bytes, waiter.have, missing);
        waiter.have = waiter.bytes;
        waiter.granted = true;
        if self.collector == Some(ticket) {
            self.collector = None;
        }
        wakers.extend(waiter.waker.take());
        Visit::Granted(missing)
    }
}

/// What something that holds `held` may take of what is free, if it may hold `times` what it
/// leaves.
fn of_share(free: usize, times: usize, held: usize) -> usize {
    free.saturating_mul(times).saturating_sub(held) / (1 + times)
}

/// Lets those go on who can, once the tree is not locked any more.
fn wake(mut tree: MutexGuard<'_, Tree>) {
    let mut wakers = Vec::new();
    if !tree.turns.is_empty() {
        tree.grant(&mut wakers);
    }
    drop(tree);
    for waker in wakers {
        waker.wake();
    }
}

/// Waits for bytes of a budget. Dropped, it waits no longer and holds nothing.
#[derive(Debug)]
#[must_use = "nothing is acquired until it is awaited"]
pub struct Acquire {
    node: Arc<Node>,
    bytes: usize,
    ticket: Option<u64>,
}

impl Future for Acquire {
    type Output = BytePermit;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<BytePermit> {
        let node = Arc::clone(&self.node);
        let mut tree = node.tree.lock();
        let Some(ticket) = self.ticket else {
            if tree.try_take(&node, self.bytes) {
                return Poll::Ready(node.permit(self.bytes));
            }
            self.ticket = Some(tree.enqueue(&node, self.bytes, context.waker().clone()));
            // What it cannot have at once it may begin to collect.
            wake(tree);
            return Poll::Pending;
        };
        let Some(waiter) = tree.waiters.get_mut(&ticket) else {
            return Poll::Pending;
        };
        if waiter.granted {
            tree.waiters.remove(&ticket);
            self.ticket = None;
            return Poll::Ready(node.permit(self.bytes));
        }
        waiter.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let mut tree = self.node.tree.lock();
            let held = tree.forget(&self.node, ticket);
            self.node.give(held);
            // Also without bytes: it may have stood in front of others.
            wake(tree);
        }
    }
}

impl BytePermit {
    /// How many bytes this permit holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes up to `bytes` out of this permit into one of its own.
    pub fn split(&mut self, bytes: usize) -> BytePermit {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.node.permit(bytes)
    }

    /// Gives back what exceeds `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        drop(self.split(self.bytes.saturating_sub(bytes)));
    }

    /// Moves the bytes to another budget of the same tree, which keeps its bounds by refusing the
    /// next request instead of this one. The sum does not change.
    pub fn move_to(&mut self, budget: &ByteBudget) {
        assert!(
            Arc::ptr_eq(&self.node.tree, &budget.node.tree),
            "bytes move within a tree"
        );
        let tree = Arc::clone(&self.node.tree);
        let tree = tree.lock();
        budget.node.take(self.bytes);
        self.node.give(self.bytes);
        self.node = Arc::clone(&budget.node);
        wake(tree);
    }
}

impl Drop for BytePermit {
    fn drop(&mut self) {
        self.node.release(self.bytes);
    }
}

#[cfg(test)]
mod tests;
