//! What goes wrong, at random, until it does not any more.

use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::clock::sleep;

use crate::bookie::Crash;
use crate::cluster::context::Cluster;

/// Injects faults for this time, then heals everything that can be healed.
pub(super) async fn run(cluster: &Arc<Cluster>, until: Duration) {
    while cluster.now() < until {
        sleep(cluster.between(50, 1_500)).await;
        inject(cluster);
        cluster.history.fault();
    }
    cluster.net.heal();
    cluster.store.heal();
}

fn inject(cluster: &Cluster) {
    let net = &cluster.net;
    let node = cluster.random_node();
    let kind = cluster.rng.below(20);
    net.note((node, kind));
    match kind {
        0..=3 => {
            let crash = match cluster.chance(2) {
                true => Crash::Kill,
                false => Crash::Power,
            };
            net.crash(node, crash, down_for(cluster));
        }
        4 => {
            // The whole cluster loses power.
            for node in 0..cluster.shape.bookies {
                net.crash(node, Crash::Power, down_for(cluster));
            }
        }
        5 if cluster.history.may_lose_replica() => {
            let crash = match cluster.chance(2) {
                true => Crash::LostWrite,
                false => Crash::Wipe,
            };
            net.crash(node, crash, down_for(cluster));
        }
        5..=7 => {
            let until = net.micros(cluster.between(50, 4_000));
            net.change_node(node, |node| node.paused_until = until);
        }
        8..=10 => net.break_link(node),
        11..=13 => {
            let until = net.micros(cluster.between(100, 5_000));
            let (there, back) = match cluster.rng.below(3) {
                0 => (true, false),
                1 => (false, true),
                _ => (true, true),
            };
            // All processes, or only some of them.
            let last = net.last_process();
            let whom = cluster.rng.below(3);
            let chosen = move |process: u32| match whom {
                0 => true,
                1 => process == last,
                _ => process != last,
            };
            net.partition(node, chosen, there, back, until);
        }
        14 | 15 => {
            let until = net.micros(cluster.between(500, 5_000));
            net.change_node(node, |node| node.slow_until = until);
        }
        16 => {
            let until = net.micros(cluster.between(20, 2_000));
            net.change_node(node, |node| node.overloaded_until = until);
        }
        17 => {
            let until = net.micros(cluster.between(100, 4_000));
            net.change_node(node, |node| node.read_only_until = until);
        }
        _ => cluster.store.go_away(cluster.between(100, 4_000)),
    }
}

/// Microseconds.
fn down_for(cluster: &Cluster) -> u64 {
    let pause = cluster.between(5, 2_500);
    u64::try_from(pause.as_micros()).unwrap_or(0)
}
