//! Ledger records.

/// Ledger ids that this process has reserved.
#[derive(Debug, Default)]
pub(crate) struct LedgerIds {}
