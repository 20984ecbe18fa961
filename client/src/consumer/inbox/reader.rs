//! The place of a reader on one topic or partition: what it has seen, and how far the topic
//! reaches. Plain state, no I/O.
//!
//! Invariant: the place only rises, but for a seek of this reader.

use aquifer_model::id::Index;

use crate::batch::Delivered;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ReaderState {
    /// The index after the last message that was handed out; unknown before the first session.
    next: Option<u64>,
    /// The index after the last message that has arrived.
    arrived: u64,
    /// Index after the newest message, as far as it is known.
    end: u64,
}

impl ReaderState {
    /// A session begins, at `start`; the topic reaches up to `end`.
    pub(super) fn begin(&mut self, start: u64, end: u64) {
        // What was trimmed meanwhile cannot be read; what was read is not repeated.
        let next = self.next.map_or(start, |next| next.max(start));
        self.next = Some(next);
        self.arrived = next;
        self.end = end;
    }

    /// The index where the next session begins, once there was one.
    pub(super) fn next(&self) -> Option<Index> {
        self.next.map(Index)
    }

    /// An entry has arrived: what was seen of it is left out.
    pub(super) fn take_in(&mut self, delivered: &mut Delivered) {
        delivered.skip_below(self.arrived);
        self.arrived = self.arrived.max(delivered.end());
    }

    /// Everything below an index was handed out, or cannot be.
    pub(super) fn passed(&mut self, next: u64) {
        self.next = Some(next);
    }

    /// A seek has led here.
    pub(super) fn moved_to(&mut self, index: u64) {
        self.next = Some(index);
        self.arrived = index;
    }

    pub(super) fn is_behind(&self) -> bool {
        self.next.unwrap_or(0) < self.end
    }

    /// The topic reaches up to here, or further.
    pub(super) fn set_end(&mut self, end: u64) {
        self.end = self.end.max(end);
    }

    /// What lies below an index cannot be read any more.
    pub(super) fn trimmed_below(&mut self, first: u64) {
        self.next = self.next.map(|next| next.max(first));
    }
}
