//! Where a message is stored: ledger, entry, and place in the entry's batch.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::id::{EntryId, LEDGER_ID_MAX, LedgerId};

/// Where a message is stored. Written `L:E`, or `L:E:B` when it names one message of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The ledger.
    pub ledger: LedgerId,
    /// The entry within the ledger.
    pub entry: EntryId,
    /// The message within the entry's batch, from 0; 0 also where the text form had none.
    pub batch_index: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.ledger, self.entry, self.batch_index)
    }
}

/// A text that is not `L:E` or `L:E:B`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a position is LEDGER:ENTRY or LEDGER:ENTRY:BATCH in decimal, ledger below 2^53")]
pub struct ParsePositionError;

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Position, ParsePositionError> {
        let mut parts = text.split(':');
        let ledger = number(parts.next())?;
        let entry = number(parts.next())?;
        let batch_index = match parts.next() {
            None => 0,
            Some(part) => u32::try_from(number(Some(part))?).map_err(|_| ParsePositionError)?,
        };
        if parts.next().is_some() || ledger > LEDGER_ID_MAX {
            return Err(ParsePositionError);
        }
        Ok(Position {
            ledger: LedgerId(ledger),
            entry: EntryId(entry),
            batch_index,
        })
    }
}

fn number(part: Option<&str>) -> Result<u64, ParsePositionError> {
    let digits = part.ok_or(ParsePositionError)?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ParsePositionError);
    }
    digits.parse().map_err(|_| ParsePositionError)
}
