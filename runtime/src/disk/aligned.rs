//! A growable buffer whose bytes start at a block boundary and whose length can be padded to
//! whole blocks, as direct I/O demands.
//!
//! It needs no unsafe code: the vector is one block larger than asked for, and the bytes start
//! at the first aligned address inside. A vector never moves its bytes unless it grows, so the
//! start is computed again after each growth.

/// Size and alignment of a block of direct I/O, in bytes.
pub const BLOCK_BYTES: usize = 4096;

/// A byte buffer aligned to [`BLOCK_BYTES`].
#[derive(Debug)]
pub struct AlignedBuffer {
    /// Always fully initialised; the content is `start..start + len`.
    storage: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// A buffer that holds at least `capacity` bytes before it grows.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> AlignedBuffer {
        let storage = vec![0; whole_blocks(capacity) + BLOCK_BYTES];
        let start = aligned_start(&storage);
        AlignedBuffer {
            storage,
            start,
            len: 0,
        }
    }

    /// Forgets the content and keeps the memory.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends bytes.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let from = self.grow_by(bytes.len());
        self.storage[from..from + bytes.len()].copy_from_slice(bytes);
    }

    /// Appends zeros up to the next block boundary; nothing when the length is at one.
    pub fn pad_to_block(&mut self) {
        let padding = whole_blocks(self.len) - self.len;
        let from = self.grow_by(padding);
        self.storage[from..from + padding].fill(0);
    }

    /// Sets the length; new bytes are zeros. With [`Self::as_mut_slice`] this makes room for an
    /// aligned read.
    pub fn resize(&mut self, len: usize) {
        if let Some(more) = len.checked_sub(self.len) {
            let from = self.grow_by(more);
            self.storage[from..from + more].fill(0);
        } else {
            self.len = len;
        }
    }

    /// The content.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.len]
    }

    /// The content, to be changed in place.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.len]
    }

    /// Length of the content.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no content.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How long the content may become before the buffer grows.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.storage.len() - self.start
    }

    /// Lengthens the content and returns where the new bytes start in the storage.
    fn grow_by(&mut self, more: usize) -> usize {
        let needed = self.len + more;
        if needed > self.capacity() {
            let mut grown =
                AlignedBuffer::with_capacity(needed.max(self.capacity().saturating_mul(2)));
            grown.storage[grown.start..grown.start + self.len].copy_from_slice(self.as_slice());
            self.storage = grown.storage;
            self.start = grown.start;
        }
        let from = self.start + self.len;
        self.len = needed;
        from
    }
}

fn whole_blocks(bytes: usize) -> usize {
    bytes.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
}

fn aligned_start(storage: &[u8]) -> usize {
    let start = storage.as_ptr().align_offset(BLOCK_BYTES);
    // align_offset may give up by contract; for bytes on real targets it does not.
    assert!(start < BLOCK_BYTES, "a byte address can always be aligned");
    start
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_aligned(buffer: &AlignedBuffer) -> bool {
        buffer.as_slice().as_ptr().align_offset(BLOCK_BYTES) == 0
    }

    #[test]
    fn padding_fills_the_block_with_zeros_even_over_old_content() {
        let mut buffer = AlignedBuffer::with_capacity(10);
        buffer.extend_from_slice(&[7; BLOCK_BYTES]);
        buffer.pad_to_block();
        assert_eq!(buffer.len(), BLOCK_BYTES, "a full block needs no padding");
        buffer.clear();
        buffer.extend_from_slice(b"abc");
        buffer.pad_to_block();
        assert_eq!(buffer.len(), BLOCK_BYTES);
        assert_eq!(&buffer.as_slice()[..3], b"abc");
        assert!(buffer.as_slice()[3..].iter().all(|byte| *byte == 0));
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_vector_and_stays_aligned(
            capacity in 0_usize..10_000,
            steps in prop::collection::vec((0_u8..4, 0_usize..9_000), 1..12),
        ) {
            let mut buffer = AlignedBuffer::with_capacity(capacity);
            prop_assert!(buffer.capacity() >= capacity);
            let mut model: Vec<u8> = Vec::new();
            for (step, size) in steps {
                match step {
                    0 => {
                        let bytes: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).unwrap()).collect();
                        buffer.extend_from_slice(&bytes);
                        model.extend_from_slice(&bytes);
                    }
                    1 => {
                        buffer.pad_to_block();
                        model.resize(whole_blocks(model.len()), 0);
                    }
                    2 => {
                        buffer.resize(size);
                        model.resize(size, 0);
                    }
                    _ => {
                        buffer.clear();
                        model.clear();
                    }
                }
                prop_assert_eq!(buffer.as_slice(), model.as_slice());
                prop_assert!(is_aligned(&buffer));
            }
        }
    }
}
