//! What the process uses, read from the operating system when metrics are rendered.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use tokio::runtime::RuntimeMetrics;

use crate::clock::{Clock, SystemClock};

/// Registers whether the process serves, as it says whenever metrics are rendered.
pub(super) fn register_ready(meter: &Meter, is_ready: impl Fn() -> bool + Send + Sync + 'static) {
    meter
        .u64_observable_gauge("aquifer_process_ready")
        .with_description("1 while the process serves, as its /readyz says")
        .with_callback(move |gauge| gauge.observe(u64::from(is_ready()), &[]))
        .build();
}

/// Registers the gauges of the process; they live as long as the provider of the meter.
pub(super) fn register(meter: &Meter) {
    meter
        .u64_observable_gauge("aquifer_build_info")
        .with_description("1, with the version of the program")
        .with_callback(|gauge| {
            let version = KeyValue::new("version", env!("CARGO_PKG_VERSION"));
            gauge.observe(1, &[version]);
        })
        .build();
    meter
        .u64_observable_gauge("aquifer_process_max_fds")
        .with_description("File descriptors that the process may have open")
        .with_callback(|gauge| {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
            gauge.observe(limit.current.unwrap_or(u64::MAX), &[]);
        })
        .build();
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
            if let Ok(time) = Duration::try_from(time) {
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

/// Registers gauges of the runtime that is entered.
pub(super) fn register_runtime(meter: &Meter) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return;
    };
    let number = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let gauge = |name: &'static str, about: &'static str, read: fn(&RuntimeMetrics) -> usize| {
        let metrics = runtime.metrics();
        meter
            .u64_observable_gauge(name)
            .with_description(about)
            .with_callback(move |gauge| gauge.observe(number(read(&metrics)), &[]))
            .build();
    };
    gauge(
        "aquifer_runtime_workers",
        "Threads that run tasks",
        RuntimeMetrics::num_workers,
    );
    gauge(
        "aquifer_runtime_tasks",
        "Tasks that have not ended",
        RuntimeMetrics::num_alive_tasks,
    );
    gauge(
        "aquifer_runtime_queued_tasks",
        "Tasks in the queue that workers share",
        RuntimeMetrics::global_queue_depth,
    );
    let metrics = runtime.metrics();
    meter
        .f64_observable_counter("aquifer_runtime_busy_seconds_total")
        .with_description("Time that workers have run tasks, all together")
        .with_callback(move |counter| {
            let busy = |worker| metrics.worker_total_busy_duration(worker);
            let busy: Duration = (0..metrics.num_workers()).map(busy).sum();
            counter.observe(busy.as_secs_f64(), &[]);
        })
        .build();
}

/// Memory of this process that is in RAM, where the operating system tells.
#[must_use]
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
