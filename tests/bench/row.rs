//! Results as programs read them: rows beside their targets, and the machine that they belong to.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use aquifer_harness::command;
use aquifer_harness::figures::rounded;
use aquifer_harness::server::binary;
use serde::Serialize;

use crate::load::Calibration;

/// What an acknowledgement stands for, in every row.
const DURABILITY: &str = "synced: acknowledged after fdatasync of the journal";

/// Whether more is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// More is better.
    AtLeast,
    /// Less is better.
    AtMost,
}

/// One row of the contract.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub name: String,
    /// Nothing when it could not be measured; the note says why.
    pub measured: Option<f64>,
    pub unit: &'static str,
    pub target: f64,
    pub target_is: Bound,
    pub met: bool,
    pub durability: &'static str,
    pub note: String,
}

impl Row {
    /// A measured row.
    pub fn new(name: &str, measured: f64, unit: &'static str, bound: Bound, target: f64) -> Row {
        let met = match bound {
            Bound::AtLeast => measured >= target,
            Bound::AtMost => measured <= target,
        };
        Row {
            name: name.to_owned(),
            measured: Some(rounded(measured)),
            unit,
            target: rounded(target),
            target_is: bound,
            met,
            durability: DURABILITY,
            note: String::new(),
        }
    }

    /// A row that could not be measured.
    pub fn failed(name: &str, error: &anyhow::Error) -> Row {
        Row {
            measured: None,
            met: false,
            note: format!("not measured: {error:#}"),
            ..Row::new(name, 0.0, "", Bound::AtLeast, 0.0)
        }
    }

    /// The same row with a note.
    pub fn note(mut self, note: impl Into<String>) -> Row {
        self.note = note.into();
        self
    }
}

/// The machine that results belong to.
#[derive(Debug, Serialize)]
pub struct Machine {
    pub cpus: usize,
    pub system: String,
    pub version: String,
    /// The profile of the binary; figures of anything but `release` say nothing.
    pub build: String,
}

impl Machine {
    /// This machine, with the binary under test.
    ///
    /// # Errors
    /// When the binary cannot be run.
    pub fn this() -> Result<Machine> {
        let system = fs::read_to_string("/proc/version").unwrap_or_default();
        let cpus = std::thread::available_parallelism();
        let said = command::run(Command::new(binary()).arg("--version"))?;
        let version = said.split_whitespace().last();
        // Cargo names the directory after the profile.
        let profile = binary().parent().and_then(|folder| folder.file_name());
        Ok(Machine {
            cpus: cpus.map_or(1, std::num::NonZeroUsize::get),
            // `Linux version 6.1.0`: the rest is about who compiled it.
            system: system.split(' ').take(3).collect::<Vec<_>>().join(" "),
            version: version.context("a binary has a version")?.to_owned(),
            build: profile.map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        })
    }
}

/// Everything, as JSON.
#[derive(Debug, Serialize)]
pub struct Results {
    pub machine: Machine,
    pub quick: bool,
    pub calibration: Vec<Calibration>,
    pub rows: Vec<Row>,
}

#[test]
fn a_row_is_met_on_the_right_side_of_its_target() {
    assert!(Row::new("a", 5.0, "x", Bound::AtLeast, 5.0).met);
    assert!(!Row::new("a", 4.9, "x", Bound::AtLeast, 5.0).met);
    assert!(Row::new("a", 5.0, "x", Bound::AtMost, 5.0).met);
    assert!(!Row::new("a", 5.1, "x", Bound::AtMost, 5.0).met);
    let failed = Row::failed("a", &anyhow::anyhow!("no disk"));
    assert!(!failed.met && failed.measured.is_none());
    let object = serde_json::to_value(&failed).expect("it serializes");
    for field in ["name", "measured", "target", "met", "durability"] {
        assert!(object.get(field).is_some(), "{field}");
    }
}
