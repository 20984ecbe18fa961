//! Ensemble, write quorum and ack quorum, checked when they are made.

use std::fmt;

use thiserror::Error;

use crate::limits::ENSEMBLE_MAX;

/// E ≥ Qw ≥ Qa ≥ 1: how many bookies share a ledger's entries, how many get each entry, and how
/// many must have it durable before it is acknowledged (I1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quorum {
    ensemble: u8,
    write: u8,
    ack: u8,
}

/// Sizes that do not satisfy E ≥ Qw ≥ Qa ≥ 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "ensemble {ensemble}, write quorum {write}, ack quorum {ack}: \
     needs {ENSEMBLE_MAX} >= ensemble >= write >= ack >= 1"
)]
pub struct QuorumError {
    ensemble: u32,
    write: u32,
    ack: u32,
}

impl Quorum {
    /// One bookie holds everything: standalone.
    pub const SINGLE: Quorum = Quorum {
        ensemble: 1,
        write: 1,
        ack: 1,
    };

    /// Checks and builds.
    ///
    /// # Errors
    /// When the sizes are not ordered or exceed [`ENSEMBLE_MAX`].
    pub fn new(ensemble: u32, write: u32, ack: u32) -> Result<Quorum, QuorumError> {
        let error = QuorumError {
            ensemble,
            write,
            ack,
        };
        if ensemble < write || write < ack || ack < 1 || ensemble > ENSEMBLE_MAX {
            return Err(error);
        }
        let small = |n: u32| u8::try_from(n).map_err(|_| error);
        Ok(Quorum {
            ensemble: small(ensemble)?,
            write: small(write)?,
            ack: small(ack)?,
        })
    }

    /// E: bookies that share the ledger.
    #[must_use]
    pub fn ensemble(self) -> usize {
        usize::from(self.ensemble)
    }

    /// Qw: bookies that get each entry.
    #[must_use]
    pub fn write(self) -> usize {
        usize::from(self.write)
    }

    /// Qa: bookies that must hold an entry durably before it is acknowledged.
    #[must_use]
    pub fn ack(self) -> usize {
        usize::from(self.ack)
    }

    /// The same with at most `bookies` bookies: a smaller ensemble and write quorum, never a
    /// smaller ack quorum. `None` when that leaves no ack quorum.
    #[must_use]
    pub fn within(self, bookies: usize) -> Option<Quorum> {
        let ensemble = usize::from(self.ensemble).min(bookies);
        let ensemble = u8::try_from(ensemble).unwrap_or(self.ensemble);
        (ensemble >= self.ack).then_some(Quorum {
            ensemble,
            write: self.write.min(ensemble),
            ack: self.ack,
        })
    }

    /// Positions of the ensemble that store `entry`: (entry + i) mod E for i in 0..Qw.
    pub fn write_set(self, entry: u64) -> impl Iterator<Item = usize> {
        let (ensemble, write) = (u64::from(self.ensemble), u64::from(self.write));
        (0..write).map(move |i| usize::try_from((entry % ensemble + i) % ensemble).unwrap_or(0))
    }
}

impl fmt::Display for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "E{} Qw{} Qa{}", self.ensemble, self.write, self.ack)
    }
}
