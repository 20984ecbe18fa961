//! A place in a topic as people type it: earliest, latest, an index, a position or a time.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;

use crate::id::Index;
use crate::position::Position;

/// A place in a topic: an integer is an index, `L:E[:B]` a position,
/// RFC 3339 or `@milliseconds` a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The oldest message that is still kept.
    Earliest,
    /// After the newest message.
    Latest,
    /// At this index, or the oldest kept one if it was trimmed.
    Index(Index),
    /// At this stored position.
    Position(Position),
    /// At the first message whose broker time is not before this, in ms since the Unix epoch.
    TimeMs(u64),
}

/// A text that names no place.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "a place is `earliest`, `latest`, an index (42), a position (7:3 or 7:3:0), \
     an RFC 3339 time (2026-01-31T12:00:00Z) or @milliseconds since 1970"
)]
pub struct ParsePlaceError;

impl FromStr for Place {
    type Err = ParsePlaceError;

    fn from_str(text: &str) -> Result<Place, ParsePlaceError> {
        match text {
            "earliest" => return Ok(Place::Earliest),
            "latest" => return Ok(Place::Latest),
            _ => {}
        }
        if let Some(ms) = text.strip_prefix('@') {
            return ms.parse().map(Place::TimeMs).map_err(|_| ParsePlaceError);
        }
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return text
                .parse()
                .map(|i| Place::Index(Index(i)))
                .map_err(|_| ParsePlaceError);
        }
        if let Ok(position) = text.parse() {
            return Ok(Place::Position(position));
        }
        let time = humantime::parse_rfc3339_weak(text).map_err(|_| ParsePlaceError)?;
        let since_epoch = time
            .duration_since(UNIX_EPOCH)
            .map_err(|_| ParsePlaceError)?;
        u64::try_from(since_epoch.as_millis())
            .map(Place::TimeMs)
            .map_err(|_| ParsePlaceError)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Earliest => f.write_str("earliest"),
            Place::Latest => f.write_str("latest"),
            Place::Index(index) => index.fmt(f),
            Place::Position(position) => position.fmt(f),
            Place::TimeMs(ms) => write!(f, "@{ms}"),
        }
    }
}

/// Formats milliseconds since the Unix epoch as RFC 3339 in UTC.
#[must_use]
pub fn rfc3339_ms(ms: u64) -> String {
    let time: SystemTime = UNIX_EPOCH + Duration::from_millis(ms.min(253_402_300_799_999));
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{EntryId, LedgerId};

    #[test]
    fn every_written_form_parses_to_its_place() {
        let position = |l, e, batch_index| Position {
            ledger: LedgerId(l),
            entry: EntryId(e),
            batch_index,
        };
        for (text, place) in [
            ("earliest", Place::Earliest),
            ("latest", Place::Latest),
            ("42", Place::Index(Index(42))),
            ("7:3", Place::Position(position(7, 3, 0))),
            ("7:3:2", Place::Position(position(7, 3, 2))),
            ("@1700000000000", Place::TimeMs(1_700_000_000_000)),
            ("2023-11-14T22:13:20Z", Place::TimeMs(1_700_000_000_000)),
        ] {
            assert_eq!(text.parse::<Place>(), Ok(place), "{text}");
        }
        for bad in [
            "",
            "-1",
            "7:",
            ":3",
            "1:2:3:4",
            "9007199254740992:0",
            "@",
            "@-1",
            "noon",
            "7:+3",
        ] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }

    #[test]
    fn times_print_as_rfc3339() {
        assert_eq!(rfc3339_ms(1_700_000_000_000), "2023-11-14T22:13:20.000Z");
        assert!(!rfc3339_ms(u64::MAX).is_empty());
    }
}
