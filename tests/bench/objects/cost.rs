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

    /// The table of docs/operations/cold-cost.md, ready to be put there.
    pub fn page(&self) -> Vec<String> {
        let size = super::MESSAGE_BYTES / 1_024;
        let at_random = format!("read at random, messages of {size} KiB one by one");
        let steps = [
            ("offloaded, read back and checked", &self.offloaded),
            ("read sequentially", &self.read),
            (at_random.as_str(), &self.seeks),
        ];
        let head = [
            "| a GB | requests | written | read | dollars |",
            "|---|---|---|---|---|",
        ];
        let lines = steps.map(|(what, moved)| line(what, moved));
        head.into_iter().map(str::to_owned).chain(lines).collect()
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

/// What a gigabyte takes, as a line of a table.
fn line(what: &str, moved: &Moved) -> String {
    let (requests, gigabytes) = (&moved.requests, moved.bytes / 1e9);
    format!(
        "| {what} | {} | {} | {} | {:.5} |",
        requests.shown(gigabytes),
        super::megabytes(requests.bytes_written / gigabytes),
        super::megabytes(requests.bytes_read / gigabytes),
        requests.dollars() / gigabytes
    )
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

#[test]
fn the_page_has_what_a_gigabyte_takes() {
    use crate::objects::requests::Requests;
    let moved = |bytes: f64, text: &str| Moved {
        bytes,
        seconds: 1.0,
        requests: Requests::parse(text),
    };
    let sheet = Sheet {
        offloaded: moved(
            0.5e9,
            "aquifer_cold_requests_total{kind=\"part\",status=\"ok\"} 60\n\
             aquifer_cold_bytes_total{direction=\"written\"} 500000000\n",
        ),
        read: moved(
            1e9,
            "aquifer_cold_requests_total{kind=\"get\",status=\"ok\"} 125\n\
             aquifer_cold_bytes_total{direction=\"read\"} 1000000000\n",
        ),
        seeks: moved(
            8_192.0,
            "aquifer_cold_requests_total{kind=\"get\",status=\"ok\"} 2\n\
             aquifer_cold_bytes_total{direction=\"read\"} 300000\n",
        ),
    };
    let page = sheet.page();
    assert_eq!(page.len(), 5);
    assert_eq!(
        page[2],
        "| offloaded, read back and checked | part 120.0 | 1000 MB | 0 MB | 0.00060 |"
    );
    assert_eq!(
        page[3],
        "| read sequentially | get 125.0 | 0 MB | 1000 MB | 0.00005 |"
    );
    assert!(page[4].starts_with("| read at random, messages of 8 KiB one by one | get 244140.6 |"));
}
