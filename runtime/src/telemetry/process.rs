//! What the process uses, read from the operating system when metrics are rendered.

use opentelemetry::metrics::Meter;

use crate::clock::{Clock, SystemClock};

/// Registers the gauges of the process; they live as long as the provider of the meter.
pub(super) fn register(meter: &Meter) {
    meter
        .u64_observable_gauge("aquifer_process_resident_bytes")
        .with_description("Memory of the process that is in RAM")
        .with_callback(|gauge| {
            if let Some(bytes) = resident_bytes() {
                gauge.observe(bytes, &[]);
            }
        })
        .build();
    meter
        .f64_observable_counter("aquifer_process_cpu_seconds_total")
        .with_description("CPU time of all threads of the process")
        .with_callback(|counter| {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
            if let Ok(time) = std::time::Duration::try_from(time) {
                counter.observe(time.as_secs_f64(), &[]);
            }
        })
        .build();
    let started_ms = SystemClock.wall_ms();
    meter
        .u64_observable_gauge("aquifer_process_start_time_ms")
        .with_description("When the process started, in milliseconds since 1970")
        .with_callback(move |gauge| gauge.observe(started_ms, &[]))
        .build();
    meter
        .u64_observable_gauge("aquifer_process_open_fds")
        .with_description("Open file descriptors of the process")
        .with_callback(|gauge| {
            if let Some(count) = open_fds() {
                gauge.observe(count, &[]);
            }
        })
        .build();
}

/// Memory of this process that is in RAM, where the operating system tells.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn open_fds() -> Option<u64> {
    let entries = std::fs::read_dir("/proc/self/fd").ok()?;
    u64::try_from(entries.count()).ok()
}
