//! The settings of auditing and repair.

use serde::{Deserialize, Serialize};

/// Most ledgers that one worker may repair at once: every worker looks at the locks of all others.
const LEDGERS_AT_ONCE_MAX: usize = 256;

/// The settings of auditing and repair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplicationConfig {
    /// A bookie that is away for this many milliseconds is lost, and what it held is copied.
    pub lost_after_ms: u64,
    /// With more bookies than these away at once nothing is copied.
    pub lost_bookies_max: usize,
    /// With a larger share of the bookies than this away at once nothing is copied, in percent.
    pub lost_percent_max: usize,
    /// Bytes a second that repair and checks read in the whole cluster: the workers that live share
    /// them evenly.
    pub repair_bytes_per_second: u64,
    /// Ledgers that one worker repairs at once. They share its part of the rate, and its bound on
    /// bytes in flight: more of them use the time that each waits for metadata.
    pub ledgers_at_once: usize,
    /// How long an open ledger that lost a bookie is left to its writer, in milliseconds.
    pub open_ledger_grace_ms: u64,
    /// How often a worker looks for marks when nothing tells it of any, in milliseconds.
    pub poll_ms: u64,
    /// How often the auditor looks at the bookies, in milliseconds.
    pub audit_ms: u64,
    /// How often the auditor reads all ledger records although nothing has happened, in
    /// milliseconds.
    pub scan_ms: u64,
    /// Marks that may wait before the auditor writes others; more are written as these are cleared.
    /// Those of recoveries count as well, but are written in any case.
    pub marks_max: usize,
    /// In this many milliseconds every closed ledger is checked replica by replica once; 0: never.
    pub check_cycle_ms: u64,
    /// How often ledgers that no topic refers to are looked for, in milliseconds; 0: never.
    pub orphan_audit_ms: u64,
    /// A ledger is no orphan before it is so old, in milliseconds.
    pub orphan_age_ms: u64,
    /// With more orphans than these at once something else is wrong: none is deleted.
    pub orphans_max: usize,
}

impl Default for ReplicationConfig {
    fn default() -> ReplicationConfig {
        ReplicationConfig {
            lost_after_ms: 600_000,
            lost_bookies_max: 2,
            lost_percent_max: 40,
            repair_bytes_per_second: 32 << 20,
            ledgers_at_once: 16,
            open_ledger_grace_ms: 30_000,
            poll_ms: 10_000,
            audit_ms: 5_000,
            scan_ms: 3_600_000,
            marks_max: 10_000,
            check_cycle_ms: 604_800_000,
            orphan_audit_ms: 21_600_000,
            orphan_age_ms: 86_400_000,
            orphans_max: 1_000,
        }
    }
}

impl ReplicationConfig {
    /// Checks that everything makes progress.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn check(&self) -> Result<(), String> {
        let positive = [
            ("repair_bytes_per_second", self.repair_bytes_per_second),
            ("ledgers_at_once", self.ledgers_at_once as u64),
            ("poll_ms", self.poll_ms),
            ("audit_ms", self.audit_ms),
            ("marks_max", self.marks_max as u64),
        ];
        let zero = positive.iter().find(|(_, value)| *value == 0);
        if let Some((name, _)) = zero {
            return Err(format!("autorecovery.replication.{name} must not be 0"));
        }
        if self.ledgers_at_once > LEDGERS_AT_ONCE_MAX {
            let name = "autorecovery.replication.ledgers_at_once";
            return Err(format!("{name} must not be above {LEDGERS_AT_ONCE_MAX}"));
        }
        Ok(())
    }
}
