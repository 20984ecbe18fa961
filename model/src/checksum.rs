//! CRC32C, the checksum of every stored format and of batches on the wire. Every byte of a payload
//! is summed several times between a producer and a consumer, so the implementation matters: this
//! one folds 512 bits at a time where the processor can.

use crc_fast::{CrcAlgorithm, Digest, crc32_iscsi};

/// The checksum of some bytes.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32_iscsi(bytes)
}

/// The checksum of bytes that follow others with the checksum `before`.
#[must_use]
pub fn crc32c_append(before: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!before));
    digest.update(bytes);
    u32::try_from(digest.finalize()).expect("a CRC of 32 bits has 32 bits")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One bit at a time, as the polynomial says.
    fn slowly(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
            })
        })
    }

    #[test]
    fn known_values() {
        assert_eq!(crc32c(b""), 0);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    proptest! {
        #[test]
        fn every_length_and_alignment_has_the_right_sum_in_one_and_in_two_parts(
            bytes in prop::collection::vec(any::<u8>(), 0..3000),
            from in any::<prop::sample::Index>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = &bytes[from.index(bytes.len() + 1)..];
            let (head, tail) = bytes.split_at(cut.index(bytes.len() + 1));
            prop_assert_eq!(crc32c(bytes), slowly(bytes));
            prop_assert_eq!(crc32c_append(crc32c(head), tail), slowly(bytes));
        }
    }
}
