//! What is counted, shown before the first event. A rate over a series that begins with its first
//! event misses that event, and a dashboard without a series has nothing to show.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Meter, UpDownCounter};

/// A histogram with the upper ends of its buckets: it has no instrument that could show nothing.
pub type Shape = (&'static str, &'static [f64]);

/// A counter without labels, which begins with 0.
#[must_use]
pub fn counter(meter: &Meter, name: &'static str) -> Counter<u64> {
    let counter = meter.u64_counter(name).build();
    counter.add(0, &[]);
    counter
}

/// A gauge without labels, which begins with 0.
#[must_use]
pub fn gauge(meter: &Meter, name: &'static str) -> Gauge<u64> {
    let gauge = meter.u64_gauge(name).build();
    gauge.record(0, &[]);
    gauge
}

/// A number of things that are open, without labels, which begins with 0.
#[must_use]
pub fn open(meter: &Meter, name: &'static str) -> UpDownCounter<i64> {
    let counter = meter.i64_up_down_counter(name).build();
    counter.add(0, &[]);
    counter
}

/// A counter that begins with 0 for each value of a label.
#[must_use]
pub fn counter_by<'a>(
    meter: &Meter,
    name: &'static str,
    label: &'static str,
    values: impl IntoIterator<Item = &'a str>,
) -> Counter<u64> {
    let counter = meter.u64_counter(name).build();
    for value in values {
        counter.add(0, &[KeyValue::new(label, value.to_owned())]);
    }
    counter
}

/// Appends the histograms that `is_there` does not know, without an observation.
pub(super) fn append(
    text: &mut String,
    shapes: &BTreeMap<&'static str, &'static [f64]>,
    is_there: impl Fn(&str) -> bool,
) {
    for (name, bounds) in shapes.iter().filter(|(name, _)| !is_there(name)) {
        let mut write = |line: std::fmt::Arguments<'_>| {
            // A string takes everything.
            let _ = text.write_fmt(line);
        };
        write(format_args!("# TYPE {name} histogram\n"));
        for bound in *bounds {
            write(format_args!("{name}_bucket{{le=\"{bound}\"}} 0\n"));
        }
        write(format_args!("{name}_bucket{{le=\"+Inf\"}} 0\n"));
        write(format_args!("{name}_sum 0\n{name}_count 0\n"));
    }
}
