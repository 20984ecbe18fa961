//! `aquifer plan`: how large a cluster must be for a load.

use aquifer_model::sizing::{Machine, Sizing, Workload, size};
use serde_json::{Value, json};

use crate::args::PlanArgs;
use crate::exit::CliError;
use crate::output::{Output, Table};

const MEGABIT_BYTES: u64 = 1_000_000 / 8;
/// etcd's quota is that many times what is live, and this at least.
const QUOTA_TIMES: u64 = 5;
const QUOTA_MIN: u64 = 2 << 30;

/// Runs the command.
///
/// # Errors
/// When standard output is closed or full.
pub fn run(args: &PlanArgs, out: &Output) -> Result<(), CliError> {
    let load = Workload {
        messages_per_second: args.messages_per_second,
        message_bytes: args.message_bytes,
        peak_percent: args.peak_percent,
        stored_percent: args.stored_percent,
        retention_seconds: args.retention.as_secs(),
        hot_seconds: args.hot.map(|hot| hot.as_secs()),
        deliveries: args.deliveries,
        topics: args.topics,
        quorum: args.quorum,
        rollover_bytes: args.rollover_bytes,
        rollover_seconds: args.rollover_age.as_secs(),
    };
    let machine = Machine {
        bookie_bytes_per_second: args.bookie_bytes_per_second,
        bookie_disk_bytes: args.bookie_disk,
        broker_messages_per_second: args.broker_messages_per_second,
        network_bytes_per_second: args.network_megabits.saturating_mul(MEGABIT_BYTES),
    };
    let sized = size(&load, &machine);
    if out.is_json() {
        return out.object(&object(&sized));
    }
    out.table(&table(&sized))?;
    out.line("")?;
    out.line(format!("bookies: {} decide", sized.bookies.because))?;
    out.line(format!("brokers: {} decide", sized.brokers.because))?;
    out.line("One bookie and one broker may be away. docs/operations/sizing.md has the formulas.")
}

fn quota(sized: &Sizing) -> u64 {
    let times = sized.metadata_bytes.saturating_mul(QUOTA_TIMES);
    times.max(QUOTA_MIN)
}

fn object(sized: &Sizing) -> Value {
    let (bookies, brokers) = (&sized.bookies, &sized.brokers);
    let objects = sized.objects.as_ref().map(|objects| {
        json!({
            "stored_bytes": objects.stored_bytes,
            "written_a_day": objects.written_a_day,
            "written_bytes_per_second": objects.written_bytes_per_second,
        })
    });
    json!({
        "published_bytes_per_second": sized.published_bytes_per_second,
        "bookies": {
            "count": bookies.count,
            "because": bookies.because,
            "ledger_disk_bytes": bookies.ledger_disk_bytes,
            "journal_disk_bytes": bookies.journal_disk_bytes,
            "written_bytes_per_second": bookies.written_bytes_per_second,
            "memory_bytes": bookies.memory_bytes,
        },
        "brokers": {
            "count": brokers.count,
            "because": brokers.because,
            "received_bytes_per_second": brokers.received_bytes_per_second,
            "sent_bytes_per_second": brokers.sent_bytes_per_second,
            "memory_bytes": brokers.memory_bytes,
        },
        "objects": objects,
        "metadata": {
            "members": 3,
            "live_bytes": sized.metadata_bytes,
            "quota_bytes": quota(sized),
        },
    })
}

fn table(sized: &Sizing) -> Table {
    let (bookies, brokers) = (&sized.bookies, &sized.brokers);
    let mut table = Table::new(["what", "how many", "each"]);
    let mut row = |what: &str, count: u64, each: String| {
        table.row([what.to_owned(), count.to_string(), each]);
    };
    let each = format!(
        "disk for ledgers {}, for the journal {}, memory {}; takes {}/s",
        shown(bookies.ledger_disk_bytes),
        shown(bookies.journal_disk_bytes),
        shown(bookies.memory_bytes),
        shown(bookies.written_bytes_per_second),
    );
    row("bookies", bookies.count, each);
    let each = format!(
        "memory {}; receives {}/s, sends {}/s",
        shown(brokers.memory_bytes),
        shown(brokers.received_bytes_per_second),
        shown(brokers.sent_bytes_per_second),
    );
    row("brokers", brokers.count, each);
    let each = format!(
        "quota {}, of which {} are in use",
        shown(quota(sized)),
        shown(sized.metadata_bytes),
    );
    row("members of etcd", 3, each);
    if let Some(objects) = &sized.objects {
        let each = format!(
            "{}; {} objects a day, {}/s",
            shown(objects.stored_bytes),
            objects.written_a_day,
            shown(objects.written_bytes_per_second),
        );
        row("places for objects", 1, each);
    }
    table
}

/// Bytes for people, rounded up.
fn shown(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    // Ten of a unit at least, so that rounding adds little.
    let unit = units.iter().find(|(_, shift)| bytes >= 10 << shift);
    match unit {
        Some((name, shift)) => format!("{} {name}", bytes.div_ceil(1 << shift)),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_rounded_up() {
        assert_eq!(shown(0), "0 B");
        assert_eq!(shown(10_239), "10239 B");
        assert_eq!(shown(10_241), "11 KiB");
        assert_eq!(shown(10 << 30), "10 GiB");
        assert_eq!(shown((10 << 40) + 1), "11 TiB");
    }
}
