//! The bounds of a model, those that are visited completely, and those that find a defect.

use aquifer_model::quorum::Quorum;

use crate::bookie::Crash;
use crate::defect::Defect;

/// What may happen, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// E, Qw and Qa.
    pub quorum: Quorum,
    /// Bookies; those beyond E take the place of failed ones.
    pub bookies: u8,
    /// Entries that the writer adds.
    pub adds: u8,
    /// Clients that recover the ledger.
    pub recoverers: u8,
    /// Entries that a recovery reads at once.
    pub window: u32,
    /// Links that break, and timeouts of requests that are still in flight.
    pub losses: u8,
    /// Requests that arrive twice.
    pub duplicates: u8,
    /// Ensemble changes that succeed; further ones find no replacement.
    pub changes: u8,
    /// A failed bookie is replaced only after a pause.
    pub delay_changes: bool,
    /// Acknowledged bytes that a bookie may lack, of entries of one byte: beyond, acknowledgements
    /// wait for it.
    pub kept_bytes_max: u64,
    /// How often memory is short, so that nothing is kept for slower bookies.
    pub sheds: u8,
    /// Crashes in all.
    pub crashes: u8,
    /// How bookies may crash.
    pub kinds: Vec<Crash>,
    /// How often the newest entry that a bookie has is damaged on its disk.
    pub rots: u8,
    /// Writing, syncing and flushing of a bookie's journal are steps of their own; otherwise every
    /// request is durable when it is served.
    pub journal: bool,
    /// The writer may close the ledger itself.
    pub closes: bool,
    /// The defect that is put back.
    pub defect: Option<Defect>,
}

fn quorum(ensemble: u32, write: u32, ack: u32) -> Quorum {
    Quorum::new(ensemble, write, ack).expect("settings name quorums that are in order")
}

impl Setting {
    /// Whether acknowledgements may wait for a bookie that is behind.
    #[must_use]
    pub fn holds_back(&self) -> bool {
        self.kept_bytes_max < u64::from(self.adds)
    }

    /// Nothing goes wrong.
    #[must_use]
    pub fn quiet(ensemble: u32, write: u32, ack: u32, adds: u8) -> Setting {
        Setting {
            quorum: quorum(ensemble, write, ack),
            bookies: u8::try_from(ensemble).unwrap_or(u8::MAX),
            adds,
            recoverers: 1,
            window: 1,
            losses: 0,
            duplicates: 0,
            changes: 0,
            delay_changes: false,
            kept_bytes_max: u64::MAX,
            sheds: 0,
            crashes: 0,
            kinds: vec![Crash::Power],
            rots: 0,
            journal: false,
            closes: false,
            defect: None,
        }
    }

    /// Settings that every change is checked with, and their names.
    #[must_use]
    pub fn small() -> Vec<(&'static str, Setting)> {
        vec![
            (
                "one bookie, two recoverers",
                Setting {
                    recoverers: 2,
                    ..Setting::quiet(1, 1, 1, 2)
                },
            ),
            (
                "one bookie with its journal, a crash",
                Setting {
                    journal: true,
                    crashes: 1,
                    kinds: vec![Crash::Kill, Crash::Power],
                    ..Setting::quiet(1, 1, 1, 2)
                },
            ),
            (
                "one bookie, an entry that is damaged",
                Setting {
                    rots: 1,
                    ..Setting::quiet(1, 1, 1, 2)
                },
            ),
            (
                "E3 Qw3 Qa2, one entry",
                Setting {
                    closes: true,
                    ..Setting::quiet(3, 3, 2, 1)
                },
            ),
            (
                "E2 Qw2 Qa2 and a spare bookie, a change, a loss",
                Setting {
                    bookies: 3,
                    changes: 1,
                    losses: 1,
                    ..Setting::quiet(2, 2, 2, 2)
                },
            ),
        ]
    }

    /// Larger settings that every change is checked with too, by a reduced search.
    #[must_use]
    pub fn medium() -> Vec<(&'static str, Setting)> {
        let three_entries = Setting::three_entries_and_a_change();
        vec![
            (
                "three entries, a change, a crash",
                Setting {
                    crashes: 1,
                    ..three_entries.clone()
                },
            ),
            (
                "three entries, a change, a loss",
                Setting {
                    losses: 1,
                    ..three_entries
                },
            ),
            (
                "two entries, a change, a crash, a loss, a duplicate",
                Setting {
                    adds: 2,
                    ..Setting::with_all_faults()
                },
            ),
            ("E3 Qw3 Qa2, two entries", Setting::quiet(3, 3, 2, 2)),
            (
                "E2 Qw2 Qa1, three entries of which one may be lacked, a change, a shortage",
                Setting {
                    bookies: 3,
                    changes: 1,
                    kept_bytes_max: 1,
                    sheds: 1,
                    ..Setting::quiet(2, 2, 1, 3)
                },
            ),
            (
                "E2 Qw2 Qa1, two entries of which one may be lacked, a crash, a loss",
                Setting {
                    kept_bytes_max: 1,
                    crashes: 1,
                    losses: 1,
                    ..Setting::quiet(2, 2, 1, 2)
                },
            ),
            (
                "E2 Qw2 Qa1, two entries, two damaged copies, a loss",
                Setting {
                    rots: 2,
                    losses: 1,
                    ..Setting::quiet(2, 2, 1, 2)
                },
            ),
            (
                "E3 Qw3 Qa2, a loss, closing",
                Setting {
                    losses: 1,
                    closes: true,
                    ..Setting::quiet(3, 3, 2, 1)
                },
            ),
        ]
    }

    /// One entry, of which a copy is damaged.
    fn damaged(ensemble: u32, write: u32, ack: u32) -> Setting {
        Setting {
            rots: 1,
            ..Setting::quiet(ensemble, write, ack, 1)
        }
    }

    /// Three bookies, one of which takes the place of another.
    fn three_entries_and_a_change() -> Setting {
        Setting {
            bookies: 3,
            changes: 1,
            ..Setting::quiet(2, 2, 2, 3)
        }
    }

    /// The same, and everything that can go wrong goes wrong once.
    fn with_all_faults() -> Setting {
        Setting {
            losses: 1,
            duplicates: 1,
            crashes: 1,
            ..Setting::three_entries_and_a_change()
        }
    }

    /// Settings that take minutes to hours.
    #[must_use]
    pub fn large() -> Vec<(&'static str, Setting)> {
        let three_entries = Setting::three_entries_and_a_change();
        let three_copies = Setting::quiet(3, 3, 2, 3);
        vec![
            (
                "three entries, a change, a crash, a loss, a duplicate",
                Setting::with_all_faults(),
            ),
            (
                "two recoverers, a change, a loss",
                Setting {
                    defect: None,
                    ..Setting::finds(Defect::FragmentsPublishedInRecovery)
                },
            ),
            (
                "three entries, a change, a lost disk, a loss",
                Setting {
                    losses: 1,
                    crashes: 1,
                    kinds: vec![Crash::Wipe],
                    ..three_entries
                },
            ),
            (
                "E2 Qw2 Qa1, three entries, a put-off change, a crash",
                Setting {
                    bookies: 3,
                    changes: 1,
                    crashes: 1,
                    delay_changes: true,
                    ..Setting::quiet(2, 2, 1, 3)
                },
            ),
            (
                "E3 Qw3 Qa2, two entries of which one may be lacked, a loss",
                Setting {
                    kept_bytes_max: 1,
                    losses: 1,
                    ..Setting::quiet(3, 3, 2, 2)
                },
            ),
            ("E3 Qw3 Qa2, three entries", three_copies.clone()),
            (
                "E3 Qw3 Qa2, three entries, a crash",
                Setting {
                    crashes: 1,
                    ..three_copies.clone()
                },
            ),
            (
                "E3 Qw3 Qa2 and a spare bookie, two entries, a change, a crash",
                Setting {
                    bookies: 4,
                    changes: 1,
                    crashes: 1,
                    adds: 2,
                    ..three_copies
                },
            ),
        ]
    }

    /// The setting in which a defect shows.
    #[must_use]
    pub fn finds(defect: Defect) -> Setting {
        let base = match defect {
            Defect::AckBeforeQuorum => Setting::quiet(3, 3, 2, 1),
            Defect::RecoveryReadDoesNotFence => Setting {
                losses: 1,
                ..Setting::quiet(2, 2, 2, 1)
            },
            Defect::StartFloorMissing => Setting {
                bookies: 3,
                changes: 1,
                losses: 1,
                ..Setting::quiet(2, 2, 2, 2)
            },
            Defect::FragmentsPublishedInRecovery => Setting {
                bookies: 3,
                losses: 1,
                changes: 1,
                recoverers: 2,
                ..Setting::quiet(2, 2, 2, 1)
            },
            Defect::KeptBeyondBound => Setting {
                kept_bytes_max: 1,
                ..Setting::quiet(2, 2, 1, 2)
            },
            Defect::FenceNotDurable => Setting {
                crashes: 1,
                ..Setting::quiet(1, 1, 1, 1)
            },
            Defect::ForgottenBookieAnswers => Setting {
                crashes: 1,
                kinds: vec![Crash::Wipe],
                ..Setting::quiet(2, 2, 2, 1)
            },
            Defect::TrimBeforeAllFlushed => Setting {
                crashes: 1,
                journal: true,
                ..Setting::quiet(1, 1, 1, 1)
            },
            Defect::ReplayServedUnsynced => Setting {
                crashes: 1,
                kinds: vec![Crash::Kill],
                journal: true,
                ..Setting::quiet(1, 1, 1, 1)
            },
            Defect::NegativeWhileQueued => Setting {
                journal: true,
                ..Setting::quiet(2, 2, 2, 1)
            },
            Defect::DamagedTakenForAbsence => Setting::damaged(3, 3, 2),
            Defect::RecoveryStopsAtDamage => Setting::damaged(1, 1, 1),
            // Repair and owners of topics are not in the model.
            Defect::IncompleteLedgerNotMarked
            | Defect::NegativeTakenForAbsence
            | Defect::RepairStopsAtHole
            | Defect::OpensAfterHandOver
            | Defect::PlaceOutlivesLedger => Setting {
                closes: true,
                ..Setting::quiet(3, 3, 2, 1)
            },
            Defect::StaleRecycledRecords => Setting {
                crashes: 1,
                kinds: vec![Crash::LostWrite],
                journal: true,
                ..Setting::quiet(1, 1, 1, 2)
            },
        };
        Setting {
            defect: Some(defect),
            ..base
        }
    }
}
