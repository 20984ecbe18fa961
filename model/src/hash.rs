//! The key hash, recorded per topic.

/// How the keys of a topic are hashed. It never changes for a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KeyHash {
    /// Murmur3-32 with seed 0: [`key_hash`].
    #[default]
    Murmur3,
}

/// Murmur3 (x86, 32 bit) of a message key with seed 0. Routing by range and Key_Shared use it, so
/// it may never change for a topic that has messages.
#[must_use]
pub fn key_hash(key: &[u8]) -> u32 {
    let mut hash: u32 = 0;
    let mut chunks = key.chunks_exact(4);
    for chunk in &mut chunks {
        let word = chunk
            .iter()
            .rev()
            .fold(0u32, |word, byte| (word << 8) | u32::from(*byte));
        hash = (hash ^ scramble(word))
            .rotate_left(13)
            .wrapping_mul(5)
            .wrapping_add(0xe654_6b64);
    }
    let tail = chunks.remainder();
    if !tail.is_empty() {
        let word = tail
            .iter()
            .rev()
            .fold(0u32, |word, byte| (word << 8) | u32::from(*byte));
        hash ^= scramble(word);
    }
    // The algorithm mixes in the length modulo 2^32.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "murmur3-32 defines the length mod 2^32"
    )]
    let length = key.len() as u32;
    finalize(hash ^ length)
}

/// The first hashes of `count` ranges of equal size that cover all 32-bit hashes, ascending from 0.
pub fn even_firsts(count: u32) -> impl Iterator<Item = u32> + Clone {
    let first = move |n: u32| (u64::from(n) << 32) / u64::from(count);
    // Below 2^32, as n is below the count.
    (0..count).map(move |n| u32::try_from(first(n)).unwrap_or(u32::MAX))
}

fn scramble(word: u32) -> u32 {
    word.wrapping_mul(0xcc9e_2d51)
        .rotate_left(15)
        .wrapping_mul(0x1b87_3593)
}

fn finalize(mut hash: u32) -> u32 {
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the published algorithm (seed 0).
    #[test]
    fn matches_published_vectors() {
        for (text, hash) in [
            ("", 0u32),
            ("test", 0xba6b_d213),
            ("Hello, world!", 0xc036_3e43),
            ("The quick brown fox jumps over the lazy dog", 0x2e4f_f723),
        ] {
            assert_eq!(key_hash(text.as_bytes()), hash, "{text}");
        }
    }
}
