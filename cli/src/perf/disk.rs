//! Calibrates the disk: write and fdatasync into a pre-zeroed file, the way the journal does it.
//! Results of a server only mean something beside this, from the same run on the same disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aquifer_runtime::clock::{Clock, SystemClock};
use aquifer_runtime::disk::{Disk, OpenOptions, RealDisk};
use serde::Serialize;

use crate::exit::CliError;
use crate::output::Output;
use crate::perf::latency::Latencies;
use crate::perf::stamp::Payload;
use crate::perf::{Counted, Report};

/// The sizes of writes.
const BLOCK_SIZES: [usize; 3] = [4 * 1024, 64 * 1024, 1024 * 1024];
/// The file is written from its start again when its end is reached.
const FILE_BYTES: usize = 64 * 1024 * 1024;
const DURABILITY: &str = "synced: fdatasync after each write";

/// What one size of writes came to.
#[derive(Debug, Clone, Serialize)]
pub struct Calibration {
    /// Bytes of each write.
    pub block_bytes: usize,
    /// The result; a message is a write.
    #[serde(flatten)]
    pub report: Report,
}

/// Measures every size for `each` on the disk of `directory`. It blocks, for about three times
/// `each`.
///
/// # Errors
/// When the disk refuses.
fn calibrate(directory: &Path, each: Duration) -> Result<Vec<Calibration>, CliError> {
    let path = directory.join(format!("aquifer-perf-{}.tmp", std::process::id()));
    let result = measure(&path, each);
    // The error that matters is the first one; a file that never came to be cannot be removed.
    let _ = RealDisk.remove(&path);
    result.map_err(|error| {
        CliError::failed(format!("cannot measure {}: {error}", directory.display()))
    })
}

fn measure(path: &Path, each: Duration) -> std::io::Result<Vec<Calibration>> {
    let options = OpenOptions {
        create: true,
        direct: false,
    };
    let file = RealDisk.open(path, options)?;
    let zeros = vec![0; BLOCK_SIZES[2]];
    for offset in (0..FILE_BYTES).step_by(zeros.len()) {
        file.write_all_at(to_u64(offset), &zeros)?;
    }
    file.sync_data()?;
    let mut calibrations = Vec::with_capacity(BLOCK_SIZES.len());
    for size in BLOCK_SIZES {
        let block = Payload::new(size).plain();
        let mut latencies = Latencies::new();
        let mut counted = Counted::default();
        let mut offset = 0;
        let start = SystemClock.monotonic();
        while counted.elapsed < each {
            let begun = SystemClock.monotonic();
            file.write_all_at(to_u64(offset), &block)?;
            file.sync_data()?;
            let done = SystemClock.monotonic();
            latencies.record(done.saturating_sub(begun));
            counted.messages += 1;
            counted.elapsed = done.saturating_sub(start);
            offset = (offset + size) % FILE_BYTES;
        }
        calibrations.push(Calibration {
            block_bytes: size,
            report: Report {
                durability: DURABILITY,
                ..Report::new(&counted, size, &latencies)
            },
        });
    }
    Ok(calibrations)
}

fn to_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Runs `aquifer perf disk`: one result, or one JSON object, a size.
///
/// # Errors
/// When the disk refuses.
pub async fn run(directory: PathBuf, seconds: f64, out: &Output) -> Result<(), CliError> {
    let each = crate::perf::duration("--seconds", seconds)?;
    out.note(&format!(
        "writing and syncing for {seconds} s each at 4 KiB, 64 KiB and 1 MiB in {}",
        directory.display()
    ));
    let calibrations = blocking(move || calibrate(&directory, each)).await?;
    for calibration in &calibrations {
        if out.is_json() {
            out.object(calibration)?;
        } else {
            let name = format!("{} KiB writes", calibration.block_bytes / 1024);
            calibration.report.print(out, &name)?;
        }
    }
    Ok(())
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CliError> + Send + 'static,
) -> Result<T, CliError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(CliError::failed(error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_measured_and_nothing_stays_behind() {
        let directory = std::env::temp_dir();
        let calibrations = calibrate(&directory, Duration::from_millis(1)).expect("a disk");
        let sizes: Vec<usize> = calibrations.iter().map(|one| one.block_bytes).collect();
        assert_eq!(sizes, BLOCK_SIZES);
        assert!(calibrations.iter().all(|one| one.report.messages > 0));
        let object = serde_json::to_value(&calibrations[0]).expect("it serializes");
        assert_eq!(object["block_bytes"], 4096);
        assert!(object["latency_us"]["p50"].is_number());
        let left = directory.join(format!("aquifer-perf-{}.tmp", std::process::id()));
        assert!(!left.exists());
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        assert!(calibrate(Path::new("/nonexistent/x"), Duration::ZERO).is_err());
    }
}
