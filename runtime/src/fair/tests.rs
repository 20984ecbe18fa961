use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const QUANTUM: usize = 100;

/// Pops until `cost` has left; says how much of it each flow has got.
fn serve(queue: &mut FairQueue<u8, (u8, usize)>, cost: usize) -> BTreeMap<u8, usize> {
    let (mut served, mut sum) = (BTreeMap::new(), 0);
    while sum < cost
        && let Some((flow, item)) = queue.pop()
    {
        *served.entry(flow).or_default() += item;
        sum += item;
    }
    served
}

#[test]
fn a_flow_with_much_waiting_does_not_delay_one_with_little() {
    let mut queue = FairQueue::new(QUANTUM);
    for at in 0..10_000 {
        queue.push(0_u8, 50, at);
    }
    queue.push(1, 50, 77_777);
    let popped: Vec<usize> = std::iter::from_fn(|| queue.pop()).take(5).collect();
    assert!(popped.contains(&77_777), "{popped:?}");
}

/// Two flows that always wait, of weight 1 and 3; the weights change while they wait.
#[test]
fn flows_get_shares_by_their_weights_and_another_weight_counts_at_once() {
    let mut queue = FairQueue::new(QUANTUM);
    for _ in 0..20_000 {
        queue.push(1_u8, 50, (1, 50));
        queue.push(3, 50, (3, 50));
    }
    let mut shares = |weight: u32| {
        queue.weigh(3, weight);
        let served = serve(&mut queue, 100_000);
        (served[&1], served[&3])
    };
    let whole = 4 * QUANTUM;
    let (one, three) = shares(3);
    assert!(three.abs_diff(3 * one) <= whole, "{one} {three}");
    let (one, three) = shares(1);
    assert!(three.abs_diff(one) <= whole, "{one} {three}");
    let (one, three) = shares(9);
    assert!(three.abs_diff(9 * one) <= 10 * QUANTUM, "{one} {three}");
}

#[test]
fn weights_are_bounded() {
    let mut queue: FairQueue<usize, ()> = FairQueue::new(QUANTUM);
    (0..3 * WEIGHTS_MAX).for_each(|flow| queue.weigh(flow, 2));
    assert_eq!(queue.weights.len(), WEIGHTS_MAX);
    (0..WEIGHTS_MAX).for_each(|flow| queue.weigh(flow, 1));
    assert!(queue.weights.is_empty());
}

#[test]
fn an_item_that_is_too_large_now_stays_the_next_one() {
    let mut queue = FairQueue::new(QUANTUM);
    queue.push(1_u8, 500, 'a');
    queue.push(2, 10, 'b');
    let first = queue.pop_within(5);
    assert_eq!(first, None);
    assert_eq!(queue.len(), 2);
    let both: Vec<char> = std::iter::from_fn(|| queue.pop_within(500)).collect();
    assert_eq!(both.len(), 2);
    assert_eq!((queue.len(), queue.flows()), (0, 0));
}

proptest! {
    /// Flows that always have something waiting get the same, within a quantum and the largest
    /// item: what one has got more than another it pays back before it gets more.
    #[test]
    fn flows_that_always_wait_get_equal_shares(
        sizes in prop::collection::vec(prop::collection::vec(1..700_usize, 1..8), 2..6),
        rounds in 1..40_usize,
    ) {
        let mut queue = FairQueue::new(QUANTUM);
        let wanted = rounds * QUANTUM * sizes.len();
        for (flow, sizes) in sizes.iter().enumerate() {
            let flow = u8::try_from(flow).unwrap();
            // More than it can get, so that it is never without.
            let mut sum = 0;
            for size in sizes.iter().cycle() {
                queue.push(flow, *size, (flow, *size));
                sum += size;
                if sum > wanted + 1_000 {
                    break;
                }
            }
        }
        let flows = queue.flows();
        let served = serve(&mut queue, wanted);
        let largest = sizes.iter().flatten().max().copied().unwrap_or(0);
        let got = |flow: usize| served.get(&u8::try_from(flow).unwrap()).copied().unwrap_or(0);
        for one in 0..flows {
            for other in 0..one {
                let apart = got(one).abs_diff(got(other));
                prop_assert!(apart <= QUANTUM + 2 * largest, "{served:?}");
            }
        }
    }

    /// Against queues that are simply kept apart: every flow keeps its order, nothing is lost or
    /// made up, and there is a next item as long as anything waits.
    #[test]
    fn each_flow_keeps_its_order_and_nothing_that_waits_is_left(
        steps in prop::collection::vec((0..5_u8, 0..300_usize, any::<bool>()), 0..300),
    ) {
        let mut queue = FairQueue::new(QUANTUM);
        let mut model: BTreeMap<u8, VecDeque<usize>> = BTreeMap::new();
        let mut waiting = 0;
        for (number, (flow, cost, pops)) in steps.into_iter().enumerate() {
            queue.push(flow, cost, (flow, number));
            model.entry(flow).or_default().push_back(number);
            waiting += 1;
            if pops {
                let (flow, number) = queue.pop().expect("something waits");
                prop_assert_eq!(model.get_mut(&flow).and_then(VecDeque::pop_front), Some(number));
                waiting -= 1;
            }
            prop_assert_eq!(queue.len(), waiting);
            let flows = model.values().filter(|items| !items.is_empty()).count();
            prop_assert_eq!(queue.flows(), flows);
        }
        while let Some((flow, number)) = queue.pop() {
            prop_assert_eq!(model.get_mut(&flow).and_then(VecDeque::pop_front), Some(number));
            waiting -= 1;
        }
        prop_assert_eq!(waiting, 0);
    }

    /// However much others have and bring, an item waits for no more than its turns: the quanta
    /// that it needs, each once for all other flows, and their largest items.
    #[test]
    fn no_flow_starves(cost in 1..1_000_usize, others in 1..6_u8, size in 1..400_usize) {
        let mut queue = FairQueue::new(QUANTUM);
        for flow in 1..=others {
            queue.push(flow, size, (flow, size));
        }
        queue.push(0, cost, (0, cost));
        let turns = cost.div_ceil(QUANTUM) + 1;
        let bound = turns * usize::from(others) * (QUANTUM + size);
        let mut before = 0;
        while let Some((flow, item)) = queue.pop() {
            if flow == 0 {
                break;
            }
            // It never runs out.
            queue.push(flow, size, (flow, size));
            before += item;
            prop_assert!(before <= bound, "{before} of others went before");
        }
    }
}
