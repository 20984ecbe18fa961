//! The bookie of a process: opened alike in a standalone server and in one of its own.

use std::path::Path;
use std::sync::Arc;

use aquifer_bookie::{Bookie, BookieConfig, BookieDeps, BookieOpenError};
use aquifer_ledger::placement::BookieInfo;
use aquifer_runtime::clock::{SharedClock, SystemClock};
use aquifer_runtime::disk::{RealDisk, SharedDisk};
use aquifer_runtime::rng::{SharedRng, SystemRng};
use aquifer_runtime::telemetry::Telemetry;

use crate::exit::CliError;

/// What everything in a process is made with.
pub struct Seams {
    /// Time.
    pub clock: SharedClock,
    /// Randomness.
    pub rng: SharedRng,
    /// Files.
    pub disk: SharedDisk,
}

impl Seams {
    /// Those of the machine.
    pub fn real() -> Seams {
        Seams {
            clock: SystemClock::shared(),
            rng: SystemRng::shared(),
            disk: RealDisk::shared(),
        }
    }
}

/// Opens the bookie. Whatever happens later, it must be shut down: RocksDB must not be in use while
/// the process ends, or it aborts.
///
/// # Errors
/// When it does not start.
pub async fn open_bookie(
    config: &BookieConfig,
    seams: &Seams,
    telemetry: &Telemetry,
) -> Result<Bookie, CliError> {
    telemetry.show_histograms(aquifer_bookie::HISTOGRAMS);
    let settings = config.clone();
    let deps = BookieDeps {
        disk: Arc::clone(&seams.disk),
        clock: Arc::clone(&seams.clock),
        rng: Arc::clone(&seams.rng),
        meter: telemetry.meter("aquifer_bookie"),
    };
    let opened = tokio::task::spawn_blocking(move || Bookie::open(settings, deps)).await;
    match opened {
        Ok(Ok(bookie)) => Ok(bookie),
        Ok(Err(error)) => Err(bookie_failed(config, &error)),
        Err(error) => Err(part_failed("the bookie", &config.data_dir, &error)),
    }
}

/// The bookie of this process as placement sees it, where there is no other.
pub fn local_bookie(bookie: &Bookie) -> BookieInfo {
    BookieInfo {
        id: bookie.id(),
        zone: String::new(),
        read_only: false,
        free_bytes: 0,
        capacity_bytes: 0,
    }
}

/// Why a bookie did not start, and what to do.
pub fn bookie_failed(config: &BookieConfig, error: &BookieOpenError) -> CliError {
    let advice = error.advice(config.cluster.is_some());
    part_failed("the bookie", &config.data_dir, error).advise(advice)
}

/// Why a part did not start, with every cause.
pub fn part_failed(what: &str, path: &Path, error: &dyn std::error::Error) -> CliError {
    let mut message = format!("{what} in {} does not start: {error}", path.display());
    let mut source = error.source();
    while let Some(cause) = source {
        message.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    CliError::failed(message)
}
