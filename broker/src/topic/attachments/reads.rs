//! The reads of one subscription: where the next one continues, the one that runs beside the task,
//! and the pause after one that failed.

use std::time::Duration;

use aquifer_log::{LogEntry, ReadPoint};
use aquifer_model::id::Index;

use crate::subscription::NextRead;

/// First and longest pause after a read that storage did not answer.
pub(super) const RETRY_MIN: Duration = Duration::from_millis(50);
pub(super) const RETRY_MAX: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Reads {
    /// Where the next read continues; away while a read is aside.
    pub(super) point: Option<ReadPoint>,
    /// A read is aside, for this.
    pub(super) aside: Option<NextRead>,
    /// A read failed, and a timer runs until the next.
    pub(super) pausing: bool,
    /// How long after the next failure.
    pub(super) pause: Duration,
}

impl Default for Reads {
    fn default() -> Reads {
        Reads {
            point: None,
            aside: None,
            pausing: false,
            pause: RETRY_MIN,
        }
    }
}

impl Reads {
    /// Whether nothing may be read at the moment.
    pub(super) fn is_blocked(&self) -> bool {
        self.aside.is_some() || self.pausing
    }

    /// Whether a read runs beside the task.
    pub(super) fn is_aside(&self) -> bool {
        self.aside.is_some()
    }

    /// A read failed: the pause until the next, which grows, and whether the failure is to be
    /// logged, as the first and the longest are.
    pub(super) fn failed(&mut self) -> (Duration, bool) {
        let pause = self.pause;
        self.pause = (pause * 2).min(RETRY_MAX);
        (pause, pause == RETRY_MIN || pause == RETRY_MAX)
    }

    /// A read succeeded: the next failure is the first again.
    pub(super) fn succeeded(&mut self) {
        self.pause = RETRY_MIN;
    }

    /// Gives back entries that were read and not handed out, from this index.
    pub(super) fn unread(&mut self, from: Index, entries: &[LogEntry]) {
        if let Some(point) = &mut self.point {
            point.unread(from, entries);
        }
    }

    /// Lets go of what was read ahead, so that its memory can be used for other subscriptions.
    pub(super) fn release(&mut self) {
        if let Some(point) = &mut self.point {
            point.release();
        }
    }
}
