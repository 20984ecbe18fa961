//! Compression of payload blocks. What comes out of a block is bounded before it is unpacked.

use aquifer_model::batch::Compression;
use aquifer_model::limits::BATCH_UNCOMPRESSED_BYTES_MAX;
use bytes::Bytes;

/// Level 1: messaging wants speed; the ratio gained above it is small.
const ZSTD_LEVEL: i32 = 1;

/// The block compressed; `None` when that gains nothing.
pub(crate) fn compress(compression: Compression, block: &[u8]) -> Option<Vec<u8>> {
    let packed = match compression {
        Compression::None => return None,
        Compression::Lz4 => lz4_flex::block::compress(block),
        Compression::Zstd => zstd::bulk::compress(block, ZSTD_LEVEL).ok()?,
    };
    (packed.len() < block.len()).then_some(packed)
}

/// The block as it was before compression. `size` is what the batch says that it has then.
pub(crate) fn decompress(
    compression: Compression,
    block: Bytes,
    size: usize,
) -> Result<Bytes, String> {
    if size > BATCH_UNCOMPRESSED_BYTES_MAX {
        return Err(format!(
            "it claims {size} bytes uncompressed, at most {BATCH_UNCOMPRESSED_BYTES_MAX} are allowed"
        ));
    }
    let unpacked = match compression {
        Compression::None => block,
        Compression::Lz4 => {
            let mut out = vec![0; size];
            let written = lz4_flex::block::decompress_into(&block, &mut out)
                .map_err(|error| format!("lz4: {error}"))?;
            out.truncate(written);
            out.into()
        }
        Compression::Zstd => zstd::bulk::decompress(&block, size)
            .map_err(|error| format!("zstd: {error}"))?
            .into(),
    };
    if unpacked.len() != size {
        return Err(format!(
            "it has {} bytes uncompressed where it claims {size}",
            unpacked.len()
        ));
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Compression; 3] = [Compression::None, Compression::Lz4, Compression::Zstd];

    proptest! {
        #[test]
        fn blocks_survive_compression(block in proptest::collection::vec(0u8..4, 0..2000)) {
            for compression in ALL {
                if let Some(packed) = compress(compression, &block) {
                    prop_assert!(packed.len() < block.len());
                    let back = decompress(compression, packed.into(), block.len());
                    prop_assert_eq!(back.as_deref(), Ok(&block[..]));
                }
            }
        }

        #[test]
        fn arbitrary_blocks_never_panic(
            block in proptest::collection::vec(any::<u8>(), 0..300),
            size in 0usize..5000,
        ) {
            for compression in ALL {
                if let Ok(out) = decompress(compression, block.clone().into(), size) {
                    prop_assert_eq!(out.len(), size);
                }
            }
        }
    }

    #[test]
    fn a_bomb_does_not_unpack() {
        let block = vec![0u8; 1_000_000];
        for compression in [Compression::Lz4, Compression::Zstd] {
            let packed = Bytes::from(compress(compression, &block).unwrap());
            for claimed in [0, 10, 999_999, 1_000_001, BATCH_UNCOMPRESSED_BYTES_MAX + 1] {
                let result = decompress(compression, packed.clone(), claimed);
                assert!(result.is_err(), "{compression:?} {claimed}");
            }
        }
    }

    #[test]
    fn what_does_not_shrink_stays_as_it_is() {
        assert_eq!(compress(Compression::Zstd, b"x"), None);
        assert_eq!(compress(Compression::None, &[0; 1000]), None);
    }
}
