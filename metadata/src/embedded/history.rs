//! The latest changes, in memory, and the watches that follow them. A watch that falls behind
//! what is kept, or that begins before it, gets `Resync`; nothing waits for a slow watch.

use std::collections::VecDeque;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::{Revision, Versioned, Watch, WatchEvent};

/// A committed change of one key.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) revision: Revision,
    pub(super) key: String,
    /// `None`: the key was removed.
    pub(super) value: Option<Bytes>,
}

/// The latest changes.
#[derive(Debug)]
pub(super) struct History {
    ring: Mutex<Ring>,
    /// How many changes there were; it wakes the watches.
    total: watch::Sender<u64>,
    events_max: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Ring {
    changes: VecDeque<Change>,
    bytes: usize,
    /// Number of the first kept change, counted from the start of the process.
    first: u64,
    /// The revision up to which changes are no longer kept.
    floor: Revision,
}

impl Change {
    fn bytes(&self) -> usize {
        std::mem::size_of::<Change>() + self.key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }
}

impl History {
    /// Nothing is kept of what happened up to `floor`.
    pub(super) fn new(events_max: usize, bytes_max: usize, floor: Revision) -> History {
        History {
            ring: Mutex::new(Ring {
                changes: VecDeque::new(),
                bytes: 0,
                first: 0,
                floor,
            }),
            total: watch::Sender::new(0),
            events_max,
            bytes_max,
        }
    }

    /// Adds committed changes, in order of revision.
    pub(super) fn publish(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let mut ring = self.ring.lock();
        for change in changes {
            ring.bytes += change.bytes();
            ring.changes.push_back(change);
        }
        while ring.changes.len() > self.events_max || ring.bytes > self.bytes_max {
            let Some(dropped) = ring.changes.pop_front() else {
                break;
            };
            ring.bytes -= dropped.bytes();
            ring.first += 1;
            // The rest of its transaction cannot be resumed from any more.
            ring.floor = dropped.revision;
        }
        let total = ring.first.saturating_add(count(&ring.changes));
        drop(ring);
        self.total.send_replace(total);
    }

    /// Forgets everything up to a revision, whose changes are not known here.
    pub(super) fn restart(&self, floor: Revision) {
        let mut ring = self.ring.lock();
        // Every watch is behind the new first change, and so gets a resync.
        let total = ring.first.saturating_add(count(&ring.changes)) + 1;
        ring.changes.clear();
        ring.bytes = 0;
        ring.first = total;
        ring.floor = floor;
        drop(ring);
        self.total.send_replace(total);
    }

    pub(super) fn len(&self) -> usize {
        self.ring.lock().changes.len()
    }

    /// A watch of the changes after a revision.
    pub(super) fn watch(
        self: &Arc<Self>,
        prefix: &str,
        after: Revision,
        closed: CancellationToken,
    ) -> HistoryWatch {
        let ring = self.ring.lock();
        let position = if after < ring.floor {
            Position::Lost
        } else {
            let skipped = ring
                .changes
                .partition_point(|change| change.revision <= after);
            Position::At(
                ring.first
                    .saturating_add(u64::try_from(skipped).unwrap_or(u64::MAX)),
            )
        };
        HistoryWatch {
            total: self.total.subscribe(),
            history: Arc::clone(self),
            prefix: prefix.to_owned(),
            after,
            position,
            closed,
        }
    }
}

fn count(changes: &VecDeque<Change>) -> u64 {
    u64::try_from(changes.len()).unwrap_or(u64::MAX)
}

/// A watch on a [`History`].
#[derive(Debug)]
pub(super) struct HistoryWatch {
    history: Arc<History>,
    total: watch::Receiver<u64>,
    prefix: String,
    after: Revision,
    position: Position,
    closed: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    /// Number of the next change to look at.
    At(u64),
    /// Changes were missed, which is not yet reported.
    Lost,
    /// It is reported.
    Ended,
}

impl HistoryWatch {
    /// The next matching change that is there already.
    fn next_kept(&mut self) -> Option<WatchEvent> {
        let ring = self.history.ring.lock();
        let Position::At(mut next) = self.position else {
            self.position = Position::Ended;
            return Some(WatchEvent::Resync);
        };
        let Some(skip) = next.checked_sub(ring.first) else {
            self.position = Position::Ended;
            return Some(WatchEvent::Resync);
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let mut found = None;
        for change in ring.changes.iter().skip(skip) {
            next += 1;
            // Changes up to `after` may be published only after the watch began.
            if change.revision > self.after && change.key.starts_with(&self.prefix) {
                found = Some(event(change));
                break;
            }
        }
        self.position = Position::At(next);
        found
    }
}

fn event(change: &Change) -> WatchEvent {
    match &change.value {
        Some(value) => WatchEvent::Put(Versioned {
            key: change.key.clone(),
            value: value.clone(),
            revision: change.revision,
        }),
        None => WatchEvent::Delete {
            key: change.key.clone(),
            revision: change.revision,
        },
    }
}

#[async_trait]
impl Watch for HistoryWatch {
    async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if self.position == Position::Ended || self.closed.is_cancelled() {
                return None;
            }
            // Marked as seen before looking, so that a change in between wakes the wait.
            self.total.borrow_and_update();
            if let Some(event) = self.next_kept() {
                return Some(event);
            }
            tokio::select! {
                () = self.closed.cancelled() => return None,
                changed = self.total.changed() => {
                    if changed.is_err() {
                        return None;
                    }
                }
            }
        }
    }
}
