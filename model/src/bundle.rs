//! Ranges of the hash space of topics: what a bundle is made of.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A range of the 32-bit topic hash space, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleRange {
    /// First hash.
    pub first: u32,
    /// Last hash, not below the first.
    pub last: u32,
}

/// A text that is no range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a bundle is FIRST-LAST, two hashes of eight hexadecimal digits each")]
pub struct ParseBundleError;

impl fmt::Display for BundleRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:08x}", self.first, self.last)
    }
}

impl FromStr for BundleRange {
    type Err = ParseBundleError;

    fn from_str(text: &str) -> Result<BundleRange, ParseBundleError> {
        let (first, last) = text.split_once('-').ok_or(ParseBundleError)?;
        let hash = |text: &str| match text.len() {
            8 => u32::from_str_radix(text, 16).map_err(|_| ParseBundleError),
            _ => Err(ParseBundleError),
        };
        let range = BundleRange {
            first: hash(first)?,
            last: hash(last)?,
        };
        // `+` is a digit to the parser; only what is written is read.
        match range.first <= range.last && range.to_string() == text {
            true => Ok(range),
            false => Err(ParseBundleError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_written_is_read() {
        let range = BundleRange {
            first: 0x1f,
            last: u32::MAX,
        };
        assert_eq!(range.to_string().parse(), Ok(range));
        for bad in [
            "",
            "-",
            "0-1",
            "00000002-00000001",
            "0000001F-ffffffff",
            "+0000001-ffffffff",
        ] {
            assert_eq!(bad.parse::<BundleRange>(), Err(ParseBundleError), "{bad}");
        }
    }
}
