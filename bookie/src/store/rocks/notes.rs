//! What the database says of the bookie besides ledgers: the bytes of a loss and of damaged files
//! (docs/formats.md). Bytes that are damaged themselves still mean a loss, or damage.

use aquifer_model::bytes_at::u64_at;
use aquifer_model::id::LedgerId;

use crate::journal::replay::Loss;
use crate::report::{DamageReport, DamagedFile};

const LOSS_VERSION: u8 = 1;
const LOSS_HEAD_BYTES: usize = 17;
/// Longest reason of a loss that is stored.
const REASON_BYTES_MAX: usize = 4096;
const DAMAGE_VERSION: u8 = 1;
/// Damaged files that are remembered by name; more of them are found when these are set aside.
pub const FILES_MAX: usize = 64;
/// Longest description of a file that is stored.
const WHAT_BYTES_MAX: usize = 1024;

/// The stored bytes of a loss.
#[must_use]
pub fn encode_loss(loss: &Loss) -> Vec<u8> {
    let mut bytes = vec![LOSS_VERSION];
    bytes.extend_from_slice(&loss.first.to_le_bytes());
    bytes.extend_from_slice(&loss.last.to_le_bytes());
    let reason = loss.reason.as_bytes();
    bytes.extend_from_slice(&reason[..reason.len().min(REASON_BYTES_MAX)]);
    bytes
}

/// Reads stored bytes. Damaged ones still mean a loss.
#[must_use]
pub fn decode_loss(bytes: &[u8]) -> Loss {
    if bytes.len() < LOSS_HEAD_BYTES || bytes[0] != LOSS_VERSION {
        return Loss::unknown();
    }
    Loss {
        first: u64_at(bytes, 1),
        last: u64_at(bytes, 9),
        reason: String::from_utf8_lossy(&bytes[LOSS_HEAD_BYTES..]).into_owned(),
    }
}

/// The stored bytes of a report of damaged files.
#[must_use]
pub fn encode_damage(report: &DamageReport) -> Vec<u8> {
    let mut bytes = vec![DAMAGE_VERSION];
    for file in report.files.iter().take(FILES_MAX) {
        bytes.extend_from_slice(&file.first.0.to_le_bytes());
        bytes.extend_from_slice(&file.last.0.to_le_bytes());
        for text in [&file.name, &file.what] {
            let end = text.floor_char_boundary(WHAT_BYTES_MAX);
            bytes.extend_from_slice(&(end as u64).to_le_bytes());
            bytes.extend_from_slice(&text.as_bytes()[..end]);
        }
    }
    bytes
}

/// Reads stored bytes. Damaged ones still mean damage, of whatever files.
#[must_use]
pub fn decode_damage(bytes: &[u8]) -> DamageReport {
    let mut report = DamageReport::default();
    let mut rest = match bytes.split_first() {
        Some((&DAMAGE_VERSION, rest)) => rest,
        _ => return report,
    };
    while !rest.is_empty() && report.files.len() < FILES_MAX {
        match file(rest) {
            Some((file, behind)) => {
                report.files.push(file);
                rest = behind;
            }
            None => break,
        }
    }
    report
}

fn file(bytes: &[u8]) -> Option<(DamagedFile, &[u8])> {
    let (ids, rest) = bytes.split_at_checked(16)?;
    let (name, rest) = text(rest)?;
    let (what, rest) = text(rest)?;
    let file = DamagedFile {
        name,
        first: LedgerId(u64_at(ids, 0)),
        last: LedgerId(u64_at(ids, 8)),
        what,
    };
    Some((file, rest))
}

fn text(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (len, rest) = bytes.split_at_checked(8)?;
    let len = usize::try_from(u64_at(len, 0)).ok()?;
    let (text, rest) = rest.split_at_checked(len)?;
    Some((String::from_utf8_lossy(text).into_owned(), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::golden;

    /// The stored bytes: they may never change while bookies have such notes.
    #[test]
    fn golden_bytes_stay() {
        let loss = Loss {
            first: 5,
            last: 8,
            reason: "why".to_owned(),
        };
        let file = |name: &str, first, last, what: &str| DamagedFile {
            name: name.to_owned(),
            first: LedgerId(first),
            last: LedgerId(last),
            what: what.to_owned(),
        };
        let report = DamageReport {
            files: vec![
                file("000012.sst", 1, 3, "bad block"),
                file("", 0, u64::MAX, "unknown"),
            ],
        };
        let golden = golden(include_str!("notes/golden_v1.hex"));
        assert_eq!([encode_loss(&loss), encode_damage(&report)], *golden);
        assert_eq!(decode_loss(&golden[0]), loss);
        assert_eq!(decode_damage(&golden[1]), report);
    }

    proptest! {
        #[test]
        fn losses_round_trip(first in any::<u64>(), last in any::<u64>(), reason in ".{0,100}") {
            let loss = Loss { first, last, reason };
            prop_assert_eq!(decode_loss(&encode_loss(&loss)), loss);
        }

        #[test]
        fn arbitrary_bytes_of_a_loss_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode_loss(&bytes);
        }

        #[test]
        fn reports_round_trip(files in prop::collection::vec(
            ("[0-9]{6}\\.sst", any::<u64>(), any::<u64>(), ".{0,50}"), 0..4)
        ) {
            let files = files.into_iter().map(|(name, first, last, what)| DamagedFile {
                name,
                first: LedgerId(first),
                last: LedgerId(last),
                what,
            });
            let report = DamageReport { files: files.collect() };
            prop_assert_eq!(decode_damage(&encode_damage(&report)), report);
        }

        #[test]
        fn arbitrary_bytes_of_damage_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode_damage(&bytes);
        }
    }
}
