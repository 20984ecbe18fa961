//! How the suite's results are shown.

use crate::exit::CliError;
use crate::output::{Output, Table};

use super::{Bound, Results, Row};

/// One row in a line.
pub fn sentence(row: &Row) -> String {
    let [name, measured, target, met, note] = cells(row);
    format!("{name}: {measured}, target {target}: {met} {note}")
}

/// The table: on standard output for people; beside the JSON, on standard error, for programs.
pub fn print(out: &Output, results: &Results) -> Result<(), CliError> {
    let mut disk = Table::new(["synced writes", "p50 µs", "p99 µs", "MB/s"]);
    for calibration in &results.calibration {
        let report = &calibration.report;
        disk.row([
            format!("{} KiB", calibration.block_bytes / 1024),
            format!("{:.0}", report.latency_us.p50),
            format!("{:.0}", report.latency_us.p99),
            format!("{:.0}", report.bytes_per_second / 1e6),
        ]);
    }
    let mut rows = Table::new(["row", "measured", "target", "met", "note"]);
    for row in &results.rows {
        rows.row(cells(row));
    }
    let machine = format!(
        "{} CPUs, {}, aquifer {} ({} build{})",
        results.machine.cpus,
        results.machine.system,
        results.machine.version,
        results.machine.build,
        if results.quick {
            ", quick: not a result"
        } else {
            ""
        }
    );
    let lines = std::iter::once(machine)
        .chain(disk.lines())
        .chain(std::iter::once(String::new()))
        .chain(rows.lines());
    for line in lines {
        if out.is_json() {
            out.note(&line);
        } else {
            out.line(&line)?;
        }
    }
    if out.is_json() {
        out.object(results)?;
    }
    Ok(())
}

fn cells(row: &Row) -> [String; 5] {
    let sign = match row.target_is {
        Bound::AtLeast => '≥',
        Bound::AtMost => '≤',
    };
    let measured = row.measured.map(|value| number(value) + " " + row.unit);
    [
        row.name.clone(),
        measured.unwrap_or_else(|| "-".to_owned()),
        format!("{sign} {}", number(row.target)),
        if row.met { "yes" } else { "NO" }.to_owned(),
        row.note.clone(),
    ]
}

fn number(value: f64) -> String {
    if value.abs() >= 1_000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}
