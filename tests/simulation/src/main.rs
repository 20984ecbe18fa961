//! Long runs of the model check and the simulation, from the command line.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use aquifer_runtime::clock::{Clock, SystemClock};
use aquifer_simulation::cluster::{self, Options, Report};
use aquifer_simulation::defect::Defect;
use aquifer_simulation::model::{Schedules, Setting};
use aquifer_simulation::offload::Offloads;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    about = "Checks the ledger protocol: every schedule of a model, or many seeds of a cluster"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Visits every state of the model's settings.
    Model {
        /// The settings that take minutes to hours too.
        #[arg(long)]
        large: bool,
        /// Only settings whose name contains this.
        #[arg(long)]
        only: Option<String>,
        /// Without leaving out schedules that lead to the same; much slower.
        #[arg(long)]
        every_schedule: bool,
    },
    /// Runs seeds of the simulated cluster.
    Seeds {
        /// How many.
        #[arg(long, default_value_t = 1_000)]
        seeds: u64,
        /// The first.
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// Where finished seeds are noted; a later call with the same file goes on behind them.
        #[arg(long)]
        resume: Option<PathBuf>,
        /// A known defect to put back: then a seed that finds it is what is wanted.
        #[arg(long)]
        defect: Option<Defect>,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Model {
            large,
            only,
            every_schedule,
        } => model(large, only.as_deref(), every_schedule),
        Command::Seeds {
            seeds,
            first,
            resume,
            defect,
        } => run_seeds(first, seeds, resume.as_deref(), defect),
    }
}

fn model(large: bool, only: Option<&str>, every_schedule: bool) -> anyhow::Result<()> {
    let schedules = match every_schedule {
        true => Schedules::Every,
        false => Schedules::Reduced,
    };
    let mut settings = Setting::small();
    settings.extend(Setting::medium());
    if large {
        settings.extend(Setting::large());
    }
    for (name, setting) in settings {
        if only.is_some_and(|only| !name.contains(only)) {
            continue;
        }
        let started = SystemClock.monotonic();
        let seen = setting.search_and_tell(schedules, &|states| {
            eprint!("\r{name}: {} million states", states / 1_000_000);
        });
        let seconds = (SystemClock.monotonic() - started).as_secs_f64();
        match seen {
            Ok(seen) => println!(
                "{name}: {} states, depth {}, {seconds:.1} s",
                seen.states, seen.depth
            ),
            Err(violation) => bail!("{name}: {violation}"),
        }
    }
    if only.is_none_or(|only| "offload".contains(only)) {
        match Offloads::default().visit_all() {
            Ok(states) => println!("offload: {states} states"),
            Err(violation) => bail!("offload: {violation}"),
        }
    }
    Ok(())
}

/// What all seeds did together; also the content of the file for going on.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    next: u64,
    acknowledged: u64,
    recoveries: u64,
    changes: u64,
    closed: u64,
    faults: u64,
}

impl Sum {
    fn load(path: &Path, first: u64) -> anyhow::Result<Sum> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Sum {
                    next: first,
                    ..Sum::default()
                });
            }
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[next, acknowledged, recoveries, changes, closed, faults]) => Ok(Sum {
                next,
                acknowledged,
                recoveries,
                changes,
                closed,
                faults,
            }),
            _ => bail!("{} is not a file of this program", path.display()),
        }
    }

    fn save(&self, path: &Path) -> anyhow::Result<()> {
        let text = format!(
            "{} {} {} {} {} {}\n",
            self.next, self.acknowledged, self.recoveries, self.changes, self.closed, self.faults
        );
        let fresh = path.with_extension("new");
        fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, path))?;
        Ok(())
    }

    fn add(&mut self, seed: u64, report: &Report) {
        self.next = seed + 1;
        self.acknowledged += report.acknowledged;
        self.recoveries += report.recoveries;
        self.changes += report.changes;
        self.closed += report.closed;
        self.faults += report.faults;
    }
}

fn run_seeds(
    first: u64,
    seeds: u64,
    resume: Option<&Path>,
    defect: Option<Defect>,
) -> anyhow::Result<()> {
    let mut sum = match resume {
        Some(path) => Sum::load(path, first)?,
        None => Sum {
            next: first,
            ..Sum::default()
        },
    };
    for seed in sum.next..first + seeds {
        let report = cluster::run(Options { seed, defect })?;
        if !report.violations.is_empty() {
            bail!("seed {seed}: {}", report.violations.join("; "));
        }
        sum.add(seed, &report);
        if seed % 100 == 99 {
            if let Some(path) = resume {
                sum.save(path)?;
            }
            print!("\r{} seeds", seed + 1 - first);
            std::io::stdout().flush()?;
        }
    }
    if let Some(path) = resume {
        sum.save(path)?;
    }
    println!(
        "\r{} seeds, no violation: {} entries acknowledged, {} recoveries, {} ensemble changes, \
         {} ledgers closed, {} faults",
        sum.next - first,
        sum.acknowledged,
        sum.recoveries,
        sum.changes,
        sum.closed,
        sum.faults
    );
    Ok(())
}
