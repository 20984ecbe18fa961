//! Known defects, each of which can be put back (docs/specs/ledger-protocol.md). A check that does
//! not find a defect that is there proves nothing by finding none.

/// A defect of the protocol or of a bookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Defect {
    /// Recovery reads do not fence (BK#2614).
    RecoveryReadDoesNotFence,
    /// Recovery may begin before the last fragment (BK#2615).
    StartFloorMissing,
    /// Replacements during recovery are written to metadata at once.
    FragmentsPublishedInRecovery,
    /// The writer acknowledges below the ack quorum (I1).
    AckBeforeQuorum,
    /// A fence is answered before it is durable (I4).
    FenceNotDurable,
    /// A bookie that lost its disk answers "no such entry" (I5).
    ForgottenBookieAnswers,
    /// The journal is trimmed when entries are flushed and fences are not (H1).
    TrimBeforeAllFlushed,
    /// What replay found is served before it is synced (H2).
    ReplayServedUnsynced,
    /// "No such entry" while an earlier add is in the journal's queue (H3).
    NegativeWhileQueued,
    /// Replay takes records of an earlier use of a segment (H5).
    StaleRecycledRecords,
    /// A writer closes without saying which bookies may lack entries (H16).
    IncompleteLedgerNotMarked,
    /// A writer acknowledges although a bookie that can still get them lacks more than its bound.
    KeptBeyondBound,
    /// Recovery takes an entry that is damaged in one copy for absent there (I2).
    DamagedTakenForAbsence,
    /// Recovery takes an entry that is damaged in every copy for one of which nothing is known.
    RecoveryStopsAtDamage,
    /// Repair takes an incomplete replica's "no such entry" for absence (H16).
    NegativeTakenForAbsence,
    /// Repair gives up a position of which it cannot copy one entry, and with it those behind it.
    RepairStopsAtHole,
    /// An owner that hands a topic over opens ledgers still (H21).
    OpensAfterHandOver,
    /// A reader stops where the ledger that its place names was trimmed (H19).
    PlaceOutlivesLedger,
}

impl Defect {
    /// Those that the model check finds; the others are found by the simulation.
    pub const IN_MODEL: [Defect; 14] = [
        Defect::RecoveryReadDoesNotFence,
        Defect::StartFloorMissing,
        Defect::FragmentsPublishedInRecovery,
        Defect::AckBeforeQuorum,
        Defect::FenceNotDurable,
        Defect::ForgottenBookieAnswers,
        Defect::TrimBeforeAllFlushed,
        Defect::ReplayServedUnsynced,
        Defect::NegativeWhileQueued,
        Defect::StaleRecycledRecords,
        Defect::IncompleteLedgerNotMarked,
        Defect::KeptBeyondBound,
        Defect::DamagedTakenForAbsence,
        Defect::RecoveryStopsAtDamage,
    ];
}

/// A defect of the offload of ledgers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OffloadDefect {
    /// Copies go before the object was read back (H23).
    DropsBeforeVerify,
    /// An object counts whose bytes were not read back (H23).
    VerifiesWithoutReading,
    /// An attempt is committed over whatever the record says (H22).
    CommitsWithoutComparing,
    /// A build that knows nothing of objects writes the record again, and with it away where the
    /// only bytes are.
    OldBuildErasesPointer,
    /// What may still appear is looked for once only.
    LateObjectForgotten,
    /// An object that is not in another place counts as deleted.
    AbsenceInWrongPlaceCounts,
    /// What a backup names is deleted.
    HoldIgnored,
}

impl OffloadDefect {
    /// All of them, each of which the model of offload finds.
    pub const ALL: [OffloadDefect; 7] = [
        OffloadDefect::DropsBeforeVerify,
        OffloadDefect::VerifiesWithoutReading,
        OffloadDefect::CommitsWithoutComparing,
        OffloadDefect::OldBuildErasesPointer,
        OffloadDefect::LateObjectForgotten,
        OffloadDefect::AbsenceInWrongPlaceCounts,
        OffloadDefect::HoldIgnored,
    ];
}
