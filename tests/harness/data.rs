//! Event data: the flights of `AQUIFER_DATA` (or of `shared/data` beside the checkout), or lines of
//! the same shape where neither is there.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use anyhow::{Context, Result};
use aquifer_runtime::config::env;

/// Lines of the flights file, without its header.
pub const FLIGHTS: usize = 336_776;

/// One event: the line, and the aircraft as its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flight {
    /// The key.
    pub aircraft: String,
    /// The whole CSV line.
    pub line: String,
}

/// Reads the flights, or generates as many lines when the file is not there.
///
/// # Errors
/// When the file is there but cannot be read.
pub fn flights() -> Result<Vec<Flight>> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let folder = env("AQUIFER_DATA").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    let path = folder.join("flights.csv.zst");
    let Ok(file) = File::open(&path) else {
        eprintln!(
            "flights.csv.zst is not in {}: generating lines of its shape",
            folder.display()
        );
        return Ok((0..FLIGHTS).map(generated).collect());
    };
    let decoder = zstd::Decoder::new(file).context("opening flights.csv.zst")?;
    let mut flights = Vec::with_capacity(FLIGHTS);
    for line in BufReader::new(decoder).lines().skip(1) {
        let line = line.context("reading flights.csv.zst")?;
        let aircraft = line.split(',').nth(11).unwrap_or("NA").to_owned();
        flights.push(Flight { aircraft, line });
    }
    Ok(flights)
}

fn generated(i: usize) -> Flight {
    let aircraft = format!("N{:05}", (i * 7919) % 4043);
    let (month, day, number) = (1 + i / 28_065, 1 + i / 1_000 % 28, i % 9_999);
    let line = format!(
        "2013,{month},{day},{},{},2,830,819,11,UA,{number},{aircraft},EWR,IAH,227,{i},5,15,\
         2013-{month:02}-{day:02}T10:00:00Z",
        i % 2400,
        (i + 3) % 2400,
    );
    Flight { aircraft, line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_lines_have_the_shape_of_the_real_ones() {
        let flight = generated(12_345);
        assert_eq!(flight.line.split(',').count(), 19);
        assert_eq!(
            flight.line.split(',').nth(11),
            Some(flight.aircraft.as_str())
        );
    }
}
