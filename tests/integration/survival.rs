//! Real events survive: every flight of a year is published while the server is killed, or loses
//! its power, again and again; afterwards the log and a Shared subscription are checked.

mod audit;
mod traffic;

use anyhow::{Result, ensure};
use aquifer_harness::data::flights;
use aquifer_harness::mount::{Mount, is_privileged};
use aquifer_harness::server::{Server, ServerOptions};
use aquifer_runtime::rng::{Rng, SeededRng, SystemRng};

use traffic::Traffic;

/// Kills that must each hit messages in flight.
const KILLS: u64 = 20;
/// Power losses that must each hit messages in flight.
const POWER_CUTS: u64 = 5;

/// A seed for the moments of the faults; a failing run prints it.
fn seeded() -> SeededRng {
    let seed = SystemRng::shared().next_u64();
    eprintln!("seed of the faults: {seed}");
    SeededRng::new(seed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_flight_survives_kill_9() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Server::start(&folder.path().join("data"), ServerOptions::default()).await?;
    let rng = seeded();
    let flights = flights()?;
    let traffic = Traffic::start(&server, flights, &rng).await?;
    let mut counted = 0;
    while counted < KILLS {
        pace(&traffic, counted, KILLS, &rng).await?;
        let in_flight = traffic.wait_in_flight().await?;
        server.kill()?;
        if traffic.still_in_flight().await? > 0 {
            counted += 1;
            eprintln!(
                "kill {counted}: {in_flight} in flight, {} acknowledged",
                traffic.acknowledged()
            );
        }
        server.restart()?;
    }
    finish(traffic, &mut server).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_flight_survives_power_loss() -> Result<()> {
    if !is_privileged() {
        eprintln!("skipped: cutting the power of a file system needs root and loop devices");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut mount = Mount::ext4(folder.path(), 4 << 30)?;
    let data_dir = mount.path().join("data");
    let log_dir = Some(folder.path().to_owned());
    let options = ServerOptions {
        log_dir,
        ..ServerOptions::default()
    };
    let mut server = Server::start(&data_dir, options).await?;
    let rng = seeded();
    let traffic = Traffic::start(&server, flights()?, &rng).await?;
    let mut counted = 0;
    while counted < POWER_CUTS {
        pace(&traffic, counted, POWER_CUTS, &rng).await?;
        let in_flight = traffic.wait_in_flight().await?;
        mount.cut_power()?;
        server.kill()?;
        if traffic.still_in_flight().await? > 0 {
            counted += 1;
            eprintln!(
                "cut {counted}: {in_flight} in flight, {} acknowledged",
                traffic.acknowledged()
            );
        }
        mount.power_up()?;
        server.restart()?;
    }
    let result = finish(traffic, &mut server).await;
    drop(server);
    result
}

/// Lets the producers go as far as fault number `done` of `all` may see them, and waits for a
/// random moment before that: so lines never run out before the faults do. After a fault that did
/// not count, what is left of its lines may be few: there are always some to be in flight.
async fn pace(traffic: &Traffic, done: u64, all: u64, rng: &SeededRng) -> Result<()> {
    let step = traffic.lines() / (all + 1);
    let some = traffic.acknowledged() + step / 2;
    traffic.let_send(some.max((done + 1) * step));
    traffic
        .wait_acknowledged(done * step + rng.below(step * 6 / 10))
        .await
}

/// Lets the traffic end, then checks everything that must hold.
async fn finish(traffic: Traffic, server: &mut Server) -> Result<()> {
    let lines = traffic.lines();
    let history = traffic.finish().await?;
    ensure!(
        history.acknowledged.len() as u64 == lines,
        "every line is acknowledged in the end"
    );
    audit::check(server, history).await?;
    server.stop()?;
    server.check_logs()
}
