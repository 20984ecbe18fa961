//! What a cluster for a given load needs: arithmetic without any knowledge of machines that run.
//! docs/operations/sizing.md has the formulas and where the figures of machines come from.
//!
//! All of it rounds up, and saturates where a load is beyond any machine.

use crate::batch::ROW_BYTES;
use crate::quorum::Quorum;

const GIB: u64 = 1 << 30;
const SECONDS_A_DAY: u64 = 86_400;
/// Room on the disks of ledgers beyond what must be kept, in percent: garbage that waits to be
/// collected, and a disk that is nearly full is slow.
const LEDGER_ROOM_PERCENT: u64 = 140;
/// A journal is freed once what it has is flushed; a disk of this many seconds of writes, and of
/// this size at least, never fills.
const JOURNAL_SECONDS: u64 = 120;
const JOURNAL_BYTES_MIN: u64 = 10 * GIB;
/// Bytes of metadata for a ledger with its place in the list of its topic, and for a topic.
const LEDGER_RECORD_BYTES: u64 = 350;
const TOPIC_RECORD_BYTES: u64 = 130;
/// Memory of a loaded topic at a broker.
const TOPIC_MEMORY_BYTES: u64 = 20 * 1024;
/// Memory of a broker and of a bookie beside that, with default settings and room for peaks.
const PROCESS_MEMORY_BYTES: u64 = GIB;

/// What a cluster is to carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Messages published a second, on average.
    pub messages_per_second: u64,
    /// Bytes of a message: key, properties and payload.
    pub message_bytes: u64,
    /// The busiest minutes, in percent of the average.
    pub peak_percent: u64,
    /// Size of what is stored, in percent of what is published: what compression leaves.
    pub stored_percent: u64,
    /// How long messages are kept.
    pub retention_seconds: u64,
    /// How long bookies keep what objects have; `None` without cold storage.
    pub hot_seconds: Option<u64>,
    /// How often each message is delivered: subscriptions and readers.
    pub deliveries: u64,
    /// Topics, each partition counted.
    pub topics: u64,
    /// Bookies of a ledger, copies of an entry, copies that an acknowledgement waits for.
    pub quorum: Quorum,
    /// Size at which a ledger is closed.
    pub rollover_bytes: u64,
    /// Age at which a ledger is closed.
    pub rollover_seconds: u64,
}

/// What one machine is trusted to sustain. Zero is taken for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Bytes of entries that one bookie takes in a second, journal and ledgers written.
    pub bookie_bytes_per_second: u64,
    /// Size of the disk for ledgers of one bookie.
    pub bookie_disk_bytes: u64,
    /// Messages that one broker takes and gives in a second, together.
    pub broker_messages_per_second: u64,
    /// Bytes a second of one direction of the network of a machine.
    pub network_bytes_per_second: u64,
}

/// What is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizing {
    /// Bytes of messages published a second at the peak.
    pub published_bytes_per_second: u64,
    /// Bookies.
    pub bookies: BookieSizing,
    /// Brokers.
    pub brokers: BrokerSizing,
    /// Objects, where there is cold storage.
    pub objects: Option<ObjectSizing>,
    /// Bytes of live records in etcd; its quota should be five times as much, and 2 GiB at least.
    pub metadata_bytes: u64,
}

/// What bookies are needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookieSizing {
    /// How many, with one that may be away.
    pub count: u64,
    /// What decided.
    pub because: &'static str,
    /// Size of the disk for ledgers of each.
    pub ledger_disk_bytes: u64,
    /// Size of the disk for the journal of each.
    pub journal_disk_bytes: u64,
    /// Bytes of entries that each takes in a second at the peak, while one is away. Journal and
    /// ledgers write as much each.
    pub written_bytes_per_second: u64,
    /// Memory of each.
    pub memory_bytes: u64,
}

/// What brokers are needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerSizing {
    /// How many, with one that may be away.
    pub count: u64,
    /// What decided.
    pub because: &'static str,
    /// What each receives and sends in a second at the peak, while one is away.
    pub received_bytes_per_second: u64,
    /// See above.
    pub sent_bytes_per_second: u64,
    /// Memory of each.
    pub memory_bytes: u64,
}

/// What object storage is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectSizing {
    /// Bytes of all objects.
    pub stored_bytes: u64,
    /// Objects written a day.
    pub written_a_day: u64,
    /// Bytes written to it a second.
    pub written_bytes_per_second: u64,
}

/// Computes what a load needs of machines.
#[must_use]
pub fn size(load: &Workload, machine: &Machine) -> Sizing {
    let row = u64::try_from(ROW_BYTES).unwrap_or(u64::MAX);
    let message = percent(load.message_bytes, load.stored_percent).saturating_add(row);
    let stored = load.messages_per_second.saturating_mul(message);
    let ledgers_a_day = load.ledgers_a_day(stored);
    let days = load.retention_seconds.div_ceil(SECONDS_A_DAY).max(1);
    let ledgers = ledgers_a_day.saturating_mul(days);
    let topics = load.topics.saturating_mul(TOPIC_RECORD_BYTES);
    Sizing {
        published_bytes_per_second: load.peak(load.published()),
        bookies: bookies(load, machine, stored),
        brokers: brokers(load, machine),
        objects: load.hot_seconds.map(|_| ObjectSizing {
            stored_bytes: stored.saturating_mul(load.retention_seconds),
            written_a_day: ledgers_a_day,
            written_bytes_per_second: stored,
        }),
        metadata_bytes: ledgers
            .saturating_mul(LEDGER_RECORD_BYTES)
            .saturating_add(topics),
    }
}

impl Workload {
    /// Bytes of messages a second, on average.
    fn published(&self) -> u64 {
        self.messages_per_second.saturating_mul(self.message_bytes)
    }

    fn peak(&self, average: u64) -> u64 {
        percent(average, self.peak_percent.max(100))
    }

    /// A topic closes a ledger when it is full or old, whatever comes first.
    fn ledgers_a_day(&self, stored_a_second: u64) -> u64 {
        let stored = stored_a_second.saturating_mul(SECONDS_A_DAY);
        let full = stored.div_ceil(self.rollover_bytes.max(1));
        let old = SECONDS_A_DAY.div_ceil(self.rollover_seconds.max(1));
        full.saturating_add(self.topics.saturating_mul(old))
    }

    /// How long bookies keep a message: until the ledger that it is in is closed, and then as long
    /// as it must be kept there.
    fn kept_seconds(&self) -> u64 {
        let kept = self.hot_seconds.unwrap_or(u64::MAX);
        kept.min(self.retention_seconds)
            .saturating_add(self.rollover_seconds)
    }
}

fn bookies(load: &Workload, machine: &Machine, stored: u64) -> BookieSizing {
    let copies = wide(load.quorum.write());
    let kept = stored.saturating_mul(load.kept_seconds());
    let on_disks = percent(kept.saturating_mul(copies), LEDGER_ROOM_PERCENT);
    let written = load.peak(stored).saturating_mul(copies);
    // One may be away: the others carry its part, and there is a place for its copies.
    let (without_one, because) = largest(&[
        (wide(load.quorum.ensemble()), "an ensemble and one to spare"),
        (
            on_disks.div_ceil(machine.bookie_disk_bytes.max(1)),
            "the disks for ledgers",
        ),
        (
            written.div_ceil(machine.bookie_bytes_per_second.max(1)),
            "what bookies write",
        ),
        (
            written.div_ceil(machine.network_bytes_per_second.max(1)),
            "the network of bookies",
        ),
    ]);
    let each = written.div_ceil(without_one);
    BookieSizing {
        count: without_one.saturating_add(1),
        because,
        ledger_disk_bytes: on_disks.div_ceil(without_one),
        journal_disk_bytes: each.saturating_mul(JOURNAL_SECONDS).max(JOURNAL_BYTES_MIN),
        written_bytes_per_second: each,
        memory_bytes: PROCESS_MEMORY_BYTES,
    }
}

fn brokers(load: &Workload, machine: &Machine) -> BrokerSizing {
    let copies = wide(load.quorum.write());
    let received = load.peak(load.published());
    let sent = received.saturating_mul(copies.saturating_add(load.deliveries));
    let handled = load
        .messages_per_second
        .saturating_mul(load.deliveries.saturating_add(1));
    let (without_one, because) = largest(&[
        (1, "one and one to spare"),
        (
            load.peak(handled)
                .div_ceil(machine.broker_messages_per_second.max(1)),
            "the messages that brokers take and give",
        ),
        (
            sent.max(received)
                .div_ceil(machine.network_bytes_per_second.max(1)),
            "the network of brokers",
        ),
    ]);
    let topics = load.topics.div_ceil(without_one);
    BrokerSizing {
        count: without_one.saturating_add(1),
        because,
        received_bytes_per_second: received.div_ceil(without_one),
        sent_bytes_per_second: sent.div_ceil(without_one),
        memory_bytes: topics
            .saturating_mul(TOPIC_MEMORY_BYTES)
            .saturating_add(PROCESS_MEMORY_BYTES),
    }
}

/// The largest number, which is at least one, and why; of equals the first.
fn largest(reasons: &[(u64, &'static str)]) -> (u64, &'static str) {
    let mut found = (1, "");
    for (number, because) in reasons {
        if *number > found.0 || found.1.is_empty() {
            found = ((*number).max(1), *because);
        }
    }
    found
}

fn percent(of: u64, percent: u64) -> u64 {
    let exact = (u128::from(of) * u128::from(percent)).div_ceil(100);
    u64::try_from(exact).unwrap_or(u64::MAX)
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIB: u64 = 1 << 40;

    fn load() -> Workload {
        Workload {
            messages_per_second: 10_000,
            message_bytes: 1_000,
            peak_percent: 200,
            stored_percent: 100,
            retention_seconds: 7 * SECONDS_A_DAY,
            hot_seconds: None,
            deliveries: 2,
            topics: 100,
            quorum: Quorum::new(3, 3, 2).unwrap(),
            rollover_bytes: GIB,
            rollover_seconds: 4 * 3_600,
        }
    }

    fn machine() -> Machine {
        Machine {
            bookie_bytes_per_second: 100_000_000,
            bookie_disk_bytes: 4 * TIB,
            broker_messages_per_second: 100_000,
            network_bytes_per_second: 1_250_000_000,
        }
    }

    #[test]
    fn disks_decide_where_much_is_kept() {
        let sized = size(&load(), &machine());
        assert_eq!(sized.published_bytes_per_second, 20_000_000);
        // 10,240,000 B/s for 7 days and 4 hours, three times, and 40 % more.
        let kept: u64 = 10_240_000 * (7 * 86_400 + 14_400) * 3;
        let on_disks = (kept * 14).div_ceil(10);
        assert_eq!(on_disks.div_ceil(4 * TIB), 7);
        assert_eq!(sized.bookies.count, 8);
        assert_eq!(sized.bookies.because, "the disks for ledgers");
        assert_eq!(sized.bookies.ledger_disk_bytes, on_disks.div_ceil(7));
        // 61,440,000 B/s of three copies at the peak.
        let written = 61_440_000_u64.div_ceil(7);
        assert_eq!(sized.bookies.written_bytes_per_second, written);
        assert_eq!(sized.bookies.journal_disk_bytes, 10 * GIB);
        assert_eq!(sized.objects, None);
    }

    #[test]
    fn cold_storage_keeps_what_bookies_need_not() {
        let tiered = Workload {
            hot_seconds: Some(3_600),
            ..load()
        };
        let sized = size(&tiered, &machine());
        assert_eq!(sized.bookies.count, 4, "an ensemble and one");
        let kept = (10_240_000_u64 * 18_000 * 3 * 14).div_ceil(10);
        assert_eq!(sized.bookies.ledger_disk_bytes, kept.div_ceil(3));
        let objects = sized.objects.unwrap();
        assert_eq!(objects.stored_bytes, 10_240_000 * 7 * 86_400);
        // 824 that are full, and six of each topic that are old.
        let full = (10_240_000_u64 * 86_400).div_ceil(GIB);
        assert_eq!(objects.written_a_day, full + 600);
        assert_eq!(sized.metadata_bytes, (full + 600) * 7 * 350 + 13_000);
        // Copies are not kept longer than messages are.
        let short = Workload {
            retention_seconds: 60,
            ..tiered
        };
        let kept = (10_240_000_u64 * 14_460 * 3 * 14).div_ceil(10);
        let sized = size(&short, &machine()).bookies;
        assert_eq!(sized.ledger_disk_bytes, kept.div_ceil(3));
    }

    #[test]
    fn brokers_follow_messages_and_network() {
        let sized = size(&load(), &machine()).brokers;
        assert_eq!((sized.count, sized.because), (2, "one and one to spare"));
        assert_eq!(sized.received_bytes_per_second, 20_000_000);
        assert_eq!(sized.sent_bytes_per_second, 100_000_000);
        assert_eq!(sized.memory_bytes, GIB + 100 * 20 * 1024);
        let busy = Workload {
            messages_per_second: 100_000,
            ..load()
        };
        let sized = size(&busy, &machine()).brokers;
        assert_eq!(sized.count, 7, "600,000 a second at the peak, and one");
        let large = Workload {
            message_bytes: 200_000,
            ..load()
        };
        let sized = size(&large, &machine()).brokers;
        assert_eq!((sized.count, sized.because), (17, "the network of brokers"));
    }

    #[test]
    fn journals_and_bookies_follow_what_is_written() {
        let busy = Workload {
            messages_per_second: 1_000_000,
            retention_seconds: 600,
            rollover_seconds: 600,
            ..load()
        };
        let roomy = Machine {
            bookie_disk_bytes: 100 * TIB,
            ..machine()
        };
        let sized = size(&busy, &roomy).bookies;
        // 6,144 MB/s of copies at the peak, 100 MB/s each.
        assert_eq!((sized.count, sized.because), (63, "what bookies write"));
        let each = 6_144_000_000_u64.div_ceil(62);
        assert_eq!(sized.journal_disk_bytes, each * 120);
    }

    #[test]
    fn what_is_beyond_any_machine_saturates() {
        let absurd = Workload {
            messages_per_second: u64::MAX,
            message_bytes: u64::MAX,
            retention_seconds: u64::MAX,
            ..load()
        };
        let nothing = Machine {
            bookie_bytes_per_second: 0,
            bookie_disk_bytes: 0,
            broker_messages_per_second: 0,
            network_bytes_per_second: 0,
        };
        assert_eq!(size(&absurd, &nothing).bookies.count, u64::MAX);
        let idle = Workload {
            messages_per_second: 0,
            topics: 0,
            ..load()
        };
        let sized = size(&idle, &machine());
        assert_eq!((sized.bookies.count, sized.brokers.count), (4, 2));
        assert_eq!(sized.metadata_bytes, 0);
    }
}
