use std::collections::VecDeque;
use std::pin::pin;

use futures::FutureExt;
use futures::task::noop_waker;
use proptest::prelude::*;

use super::*;

type Waiting = Pin<Box<Acquire>>;

/// Polls a request once.
fn poll(waiting: &mut Waiting) -> Option<BytePermit> {
    let waker = noop_waker();
    match waiting.as_mut().poll(&mut Context::from_waker(&waker)) {
        Poll::Ready(permit) => Some(permit),
        Poll::Pending => None,
    }
}

#[test]
fn a_permit_gives_back_what_it_does_not_need() {
    for capacity in [1_000, 1 << 40] {
        let budget = ByteBudget::new(capacity);
        let mut permit = budget.try_acquire(capacity).unwrap();
        assert!(budget.try_acquire(1).is_none());
        permit.shrink_to(capacity / 4);
        assert_eq!(budget.used_bytes(), capacity / 4);
        permit.shrink_to(capacity);
        assert_eq!(permit.bytes(), capacity / 4);
        let rest = budget.try_acquire(capacity / 2).unwrap();
        drop((permit, rest));
        assert_eq!(budget.used_bytes(), 0);
        assert!(budget.try_acquire(capacity).is_some());
    }
}

#[tokio::test]
async fn permits_bound_the_bytes_in_use() {
    let budget = ByteBudget::new(100);
    let first = budget.acquire(60).await;
    assert!(budget.try_acquire(41).is_none());
    let second = budget.try_acquire(40).expect("40 bytes are free");
    assert_eq!(budget.used_bytes(), 100);
    drop(first);
    assert_eq!(budget.used_bytes(), 40);
    assert_eq!(second.bytes(), 40);
}

#[tokio::test]
async fn a_request_above_the_capacity_runs_alone() {
    let budget = ByteBudget::new(10);
    let all = budget.acquire(1_000).await;
    assert_eq!(all.bytes(), 10);
    assert!(budget.try_acquire(1).is_none());
    drop(all);
    assert_eq!(budget.used_bytes(), 0);
}

#[tokio::test]
async fn waiting_is_first_come_first_served() {
    let budget = ByteBudget::new(10);
    let held = budget.acquire(6).await;
    let waker = noop_waker();
    let mut context = Context::from_waker(&waker);
    let mut large = pin!(budget.acquire(8));
    assert!(large.as_mut().poll(&mut context).is_pending());
    let mut small = pin!(budget.acquire(1));
    assert!(
        small.as_mut().poll(&mut context).is_pending(),
        "a small request must not overtake a large one"
    );
    drop(held);
    assert!(matches!(large.as_mut().poll(&mut context), Poll::Ready(_)));
    assert!(small.now_or_never().is_some());
}

#[tokio::test]
async fn budgets_above_four_gibibytes_work() {
    let capacity = 64_usize << 30;
    let budget = ByteBudget::new(capacity);
    let half = budget.acquire(capacity / 2).await;
    assert!(budget.try_acquire(capacity / 2 + (1 << 20)).is_none());
    let rest = budget.try_acquire(capacity / 2 - (1 << 20));
    assert!(rest.is_some());
    drop(half);
}

#[test]
fn a_permit_is_split_shrunk_and_moved_without_a_byte_lost() {
    let root = ByteBudget::new(100);
    let (reads, queue) = (root.child(100), root.child(100));
    let mut permit = reads.try_acquire(50).unwrap();
    let mut part = permit.split(20);
    assert_eq!((permit.bytes(), part.bytes()), (30, 20));
    part.move_to(&queue);
    permit.shrink_to(10);
    assert_eq!((reads.used_bytes(), queue.used_bytes()), (10, 20));
    assert_eq!(root.used_bytes(), 30);
    drop((permit, part));
    assert_eq!(root.used_bytes(), 0);
    assert_eq!((reads.used_bytes(), queue.used_bytes()), (0, 0));
}

/// A child that gives nothing back leaves room for the others, however many they are and however
/// much they ask for at once.
#[test]
fn children_that_keep_what_they_have_leave_a_share_to_the_rest() {
    const UNITS: usize = 10_240;
    const SMALL_ONE: usize = UNITS / SMALL;
    for step in [1, SMALL_ONE, 333, UNITS] {
        for stalled in [1, 2, 7, 30] {
            let root = ByteBudget::new(UNITS);
            let topic = root.child(UNITS);
            let children: Vec<_> = (0..stalled).map(|_| topic.child(UNITS)).collect();
            let mut held = Vec::new();
            for child in children.iter().cycle().take(stalled * UNITS / step) {
                held.extend(child.try_acquire(step));
                held.extend(child.try_acquire(child.room_bytes().min(step)));
            }
            let fresh = topic.child(UNITS);
            // It goes on for ever as long as it gives back what it takes.
            for _ in 0..100 {
                let small = fresh.try_acquire(SMALL_ONE);
                assert!(small.is_some() || step == UNITS, "{stalled} of {step}");
            }
        }
    }
}

/// What is taken little by little by many leaves more: each holds at most its share.
#[test]
fn children_that_take_in_turns_hold_at_most_their_share_of_what_they_leave() {
    const UNITS: usize = 10_240;
    for stalled in [1, 2, 7, 30] {
        let root = ByteBudget::new(UNITS);
        let children: Vec<_> = (0..stalled).map(|_| root.child(UNITS)).collect();
        let mut held = Vec::new();
        for child in children.iter().cycle().take(stalled * UNITS) {
            held.extend(child.try_acquire(1));
        }
        let left = UNITS - root.used_bytes() - UNITS / RESERVE;
        let share = (UNITS - UNITS / RESERVE) / (1 + SHARE * stalled);
        assert!(left + 2 >= share, "{stalled} children leave {left}");
        let fresh = root.child(UNITS);
        assert!(fresh.try_acquire(left).is_some(), "all of it to a new one");
    }
}

/// A request that needs most of a budget is not starved by a stream of small ones, which are
/// not stopped by it either.
#[test]
fn a_large_request_collects_while_small_ones_go_on() {
    let root = ByteBudget::new(1_600);
    let busy = [root.child(1_600), root.child(1_600)];
    let mut held: VecDeque<BytePermit> = VecDeque::new();
    while let Some(permit) = busy[held.len() % 2].try_acquire(20) {
        held.push_back(permit);
    }
    let (large, small) = (root.child(1_600), root.child(1_600));
    let mut waiting = Box::pin(large.acquire(1_200));
    let mut granted = poll(&mut waiting);
    let mut turns = 0;
    while granted.is_none() && held.pop_front().is_some() {
        turns += 1;
        granted = poll(&mut waiting);
        // Each gives back what it took before the next one comes.
        let goes_on = granted.is_some() || small.try_acquire(20).is_some();
        assert!(goes_on, "small ones go on");
    }
    assert!(turns > 10, "it had to wait");
    assert_eq!(granted.map(|permit| permit.bytes()), Some(1_200));
    assert_eq!(large.used_bytes(), 0);
}

/// A request that waits for others of its part, which give nothing back, cannot collect. It does
/// not keep a request of another part from it.
#[test]
fn a_request_that_can_collect_nothing_lets_another_collect() {
    const UNITS: usize = 64 * 1024;
    const PIECE: usize = UNITS / 1_024;
    let root = ByteBudget::new(UNITS);
    let [stalled, busy, third] = [root.part(), root.part(), root.part()];
    let children: Vec<_> = (0..20).map(|_| stalled.child(UNITS)).collect();
    let mut held = Vec::new();
    for child in children.iter().cycle().take(UNITS) {
        held.extend(child.try_acquire(PIECE));
    }
    let stream = busy.child(UNITS);
    let mut streamed: VecDeque<BytePermit> = VecDeque::new();
    while let Some(permit) = stream.try_acquire(PIECE) {
        streamed.push_back(permit);
    }
    let mut first = Box::pin(stalled.child(UNITS).acquire(UNITS / 64));
    assert!(poll(&mut first).is_none(), "its part has all it may have");
    let mut large = Box::pin(third.child(UNITS).acquire(UNITS / 8));
    let mut granted = poll(&mut large);
    let mut turns = 0;
    while granted.is_none() && turns < 200 {
        turns += 1;
        drop(streamed.pop_front());
        granted = poll(&mut large);
        // The bytes that came back are taken again.
        streamed.extend(stream.try_acquire(PIECE));
    }
    assert!(turns > 0 && granted.is_some(), "{turns} turns");
    assert_eq!(third.used_bytes(), UNITS / 8);
}

#[test]
fn a_request_that_is_given_up_stands_in_nobodys_way() {
    let root = ByteBudget::new(100);
    let child = root.child(100);
    let held = child.try_acquire(50).unwrap();
    let mut large = Box::pin(child.acquire(100));
    let mut small = Box::pin(child.acquire(10));
    assert!(poll(&mut large).is_none() && poll(&mut small).is_none());
    drop(large);
    assert_eq!(poll(&mut small).map(|permit| permit.bytes()), Some(10));
    // One that was granted and never looked at gives its bytes back.
    let mut granted = Box::pin(child.acquire(80));
    assert!(poll(&mut granted).is_none());
    drop(held);
    assert_eq!(root.used_bytes(), 80);
    drop(granted);
    assert_eq!(root.used_bytes(), 0);
}

#[derive(Debug, Clone)]
enum Step {
    Try(usize, usize),
    Wait(usize, usize),
    Poll(usize),
    GiveUp(usize),
    Split(usize, usize),
    Move(usize, usize),
    Release(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (node, bytes, at) = (0..6_usize, 0..140_usize, 0..64_usize);
    let step = prop_oneof![
        3 => (node.clone(), bytes.clone()).prop_map(|(n, b)| Step::Try(n, b)),
        3 => (node.clone(), bytes.clone()).prop_map(|(n, b)| Step::Wait(n, b)),
        3 => at.clone().prop_map(Step::Poll),
        1 => at.clone().prop_map(Step::GiveUp),
        1 => (at.clone(), bytes).prop_map(|(a, b)| Step::Split(a, b)),
        1 => (at.clone(), node).prop_map(|(a, n)| Step::Move(a, n)),
        4 => at.prop_map(Step::Release),
    ];
    prop::collection::vec(step, 0..200)
}

fn pick<T>(items: &[T], at: usize) -> Option<usize> {
    (!items.is_empty()).then(|| at % items.len())
}

proptest! {
    /// The root holds never more than its capacity, every node exactly what its permits say, and
    /// when all permits are gone every waiter has been served.
    #[test]
    fn a_tree_keeps_its_books_and_forgets_nobody(
        steps in steps(),
        // The larger ones have a reserve.
        unit in prop::sample::select(vec![1_usize, 100]),
    ) {
        let root = ByteBudget::new(100 * unit);
        let tenants = [root.part(), root.child(60 * unit)];
        let nodes = [
            root.clone(),
            tenants[0].child(100 * unit),
            tenants[0].child(30 * unit),
            tenants[1].child(60 * unit),
            root.part().child(60 * unit),
            tenants[1].clone(),
        ];
        let mut permits: Vec<BytePermit> = Vec::new();
        let mut waiting: Vec<Waiting> = Vec::new();
        for step in steps {
            match step {
                Step::Try(node, bytes) => {
                    permits.extend(nodes[node].try_acquire(bytes * unit));
                }
                Step::Wait(node, bytes) => {
                    waiting.push(Box::pin(nodes[node].acquire(bytes * unit)));
                }
                Step::Poll(at) => if let Some(at) = pick(&waiting, at)
                    && let Some(permit) = poll(&mut waiting[at])
                {
                    drop(waiting.swap_remove(at));
                    permits.push(permit);
                },
                Step::GiveUp(at) => if let Some(at) = pick(&waiting, at) {
                    drop(waiting.swap_remove(at));
                },
                Step::Split(at, bytes) => if let Some(at) = pick(&permits, at) {
                    let part = permits[at].split(bytes * unit);
                    permits.push(part);
                },
                Step::Move(at, node) => if let Some(at) = pick(&permits, at) {
                    permits[at].move_to(&nodes[node]);
                },
                Step::Release(at) => if let Some(at) = pick(&permits, at) {
                    drop(permits.swap_remove(at));
                },
            }
            prop_assert!(root.used_bytes() <= 100 * unit);
            let held: usize = permits.iter().map(BytePermit::bytes).sum();
            prop_assert!(root.used_bytes() >= held);
        }
        // Each permit that comes back lets the next ones go on.
        while !permits.is_empty() || !waiting.is_empty() {
            let before = permits.len() + waiting.len();
            permits.clear();
            let mut left = Vec::new();
            for mut one in waiting {
                match poll(&mut one) {
                    Some(permit) => permits.push(permit),
                    None => left.push(one),
                }
            }
            waiting = left;
            prop_assert!(permits.len() + waiting.len() < before || !permits.is_empty());
        }
        prop_assert_eq!(root.used_bytes(), 0);
        for node in nodes.iter().chain(&tenants) {
            prop_assert_eq!(node.used_bytes(), 0);
            prop_assert_eq!(node.node.beyond_bytes.load(Ordering::Relaxed), 0);
        }
    }
}
