//! The cost sheet: requests and bytes for a gigabyte, and what they cost at list prices. It is
//! docs/operations/cold-cost.md in figures of this run.

use crate::objects::moved::Moved;
use crate::row::{Bound, Row};

/// What was moved, with the requests that it took.
pub struct Sheet {
    pub offloaded: Moved,
    pub read: Moved,
    pub seeks: Moved,
}

impl Sheet {
    pub fn rows(&self) -> Vec<Row> {
        vec![
            of_gigabyte("a GB offloaded", &self.offloaded, 0.001),
            of_gigabyte("a GB read sequentially", &self.read, 0.0002),
            self.random(),
        ]
    }

    /// A thousand reads of a message somewhere.
    fn random(&self) -> Row {
        let Moved {
            requests, bytes, ..
        } = &self.seeks;
        let reads = bytes / f64::from(super::MESSAGE_BYTES) / 1_000.0;
        let row = Row::new(
            "cost sheet: 1,000 reads of a message at random",
            requests.dollars() / reads * 1e6,
            "µ$",
            Bound::AtMost,
            1_200.0,
        );
        row.note(format!(
            "requests: {}; {} read",
            requests.shown(reads),
            super::megabytes(requests.bytes_read / reads)
        ))
    }
}

/// In millionths of a dollar, so that figures have digits.
fn of_gigabyte(what: &str, moved: &Moved, dollars_max: f64) -> Row {
    let gigabytes = moved.bytes / 1e9;
    let row = Row::new(
        &format!("cost sheet: {what}"),
        moved.requests.dollars() / gigabytes * 1e6,
        "µ$",
        Bound::AtMost,
        dollars_max * 1e6,
    );
    row.note(format!(
        "requests: {}; {} written, {} read",
        moved.requests.shown(gigabytes),
        super::megabytes(moved.requests.bytes_written / gigabytes),
        super::megabytes(moved.requests.bytes_read / gigabytes)
    ))
}
