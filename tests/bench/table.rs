//! Results as people read them.

use crate::row::{Bound, Results, Row};

/// One row in a line.
pub fn sentence(row: &Row) -> String {
    let [name, measured, target, met, note] = cells(row);
    format!("{name}: {measured}, target {target}: {met} {note}")
}

/// All results: the machine, the disk, and the rows.
pub fn lines(results: &Results) -> Vec<String> {
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
    let mut disk = vec![["synced writes", "p50 µs", "p99 µs", "MB/s"].map(str::to_owned)];
    disk.extend(results.calibration.iter().map(|calibration| {
        let report = &calibration.report;
        [
            format!("{} KiB", calibration.block_bytes / 1024),
            format!("{:.0}", report.latency_us.p50),
            format!("{:.0}", report.latency_us.p99),
            format!("{:.0}", report.bytes_per_second / 1e6),
        ]
    }));
    let mut rows = vec![["row", "measured", "target", "met", "note"].map(str::to_owned)];
    rows.extend(results.rows.iter().map(cells));
    let mut lines = vec![machine];
    lines.extend(aligned(&disk));
    lines.push(String::new());
    lines.extend(aligned(&rows));
    lines
}

/// Columns as wide as their widest cell.
fn aligned<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> Vec<String> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let line = |row: &[String; COLUMNS]| {
        let cells = row.iter().zip(widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
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

#[test]
fn columns_align() {
    let rows = [["a", "12 µs", "x"], ["longer", "7", ""]].map(|row| row.map(str::to_owned));
    assert_eq!(aligned(&rows), ["a       12 µs  x", "longer  7"]);
}
