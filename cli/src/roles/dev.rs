//! A cluster on this machine: etcd, bookies and brokers as processes of their own, on free ports,
//! below one data directory. It starts them from the bottom up, stops them
//! from the top down, and owns nothing else.
//!
//! No process outlives this one, however it ends ([`child`]). What dies stays dead, because that
//! is what one wants to look at, unless `--supervise` was given.

pub mod child;
mod cluster;
mod etcd;
mod greeting;
mod plan;

use std::time::Duration;

use crate::args::DevArgs;
use crate::exit::CliError;
use crate::output::Output;
use crate::roles::dev::cluster::Cluster;
use crate::roles::dev::greeting::Greeting;
use crate::roles::dev::plan::Plan;
use crate::roles::process::{self, Signals};

/// Runs a cluster until it is told to end. `began` is when the process did.
pub async fn run(args: DevArgs, began: Duration, out: &Output) -> Result<(), CliError> {
    let mut signals = Signals::listen()?;
    let plan = Plan::new(&args)?;
    let lock = process::lock_data_dir(&plan.data_dir)?;
    let mut cluster = Cluster::default();
    let start = cluster.start(plan.clone());
    if let Err(error) = signals.or_start(start).await {
        cluster.stop(&mut signals, out).await;
        return Err(error);
    }
    let greeting = Greeting {
        plan: &plan,
        cluster: &cluster,
        ready_ms: process::ready_ms(began),
    };
    greeting.print(out)?;
    cluster.watch(&mut signals, args.supervise, out).await;
    cluster.stop(&mut signals, out).await;
    drop(lock);
    Ok(())
}
