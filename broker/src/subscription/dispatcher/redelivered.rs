//! The delivery counts that are stored with a subscription: those of messages that are not
//! acknowledged, cut to what a record may hold.
//!
//! The ranges come from up to four sorted sets that have no message in common. They are merged
//! while they are read, and only what the record may hold is kept: a subscription may hold hundreds
//! of thousands of ranges, and the owner task of its topic writes the record.

use std::ops::Range;

use aquifer_protocol_api::consumer::Redelivered;

use crate::subscription::dispatcher::Dispatcher;
use crate::subscription::dispatcher::deliver::inclusive;

/// A range of messages and how often they were delivered.
type Count = (Range<u64>, u32);

/// One sorted set of ranges.
struct Source<'a> {
    head: Option<Count>,
    rest: Box<dyn Iterator<Item = Count> + 'a>,
}

impl<'a> Source<'a> {
    fn new(mut rest: impl Iterator<Item = Count> + 'a) -> Source<'a> {
        Source {
            head: rest.next(),
            rest: Box::new(rest),
        }
    }

    fn start(&self) -> Option<u64> {
        self.head.as_ref().map(|(range, _)| range.start)
    }

    fn take(&mut self) -> Option<Count> {
        let next = self.rest.next();
        std::mem::replace(&mut self.head, next)
    }
}

/// The ranges of all sources in order. Neighbours with the same count are joined.
fn in_order(mut sources: Vec<Source<'_>>) -> impl Iterator<Item = Count> {
    let mut next = move || {
        let starts = sources.iter().enumerate();
        let starts = starts.filter_map(|(at, source)| Some((source.start()?, at)));
        let (_, at) = starts.min()?;
        sources[at].take()
    };
    let mut joined = next();
    std::iter::from_fn(move || {
        let (mut range, count) = joined.take()?;
        loop {
            joined = next();
            match &joined {
                Some((behind, same)) if behind.start == range.end && *same == count => {
                    range.end = behind.end;
                }
                _ => return Some((range, count)),
            }
        }
    })
}

impl Dispatcher {
    /// How often messages were delivered that are not acknowledged, in order: at most `ranges_max`
    /// ranges. Where that is too few, messages that were delivered more than once come first,
    /// because their counts decide about dead letters.
    pub(in crate::subscription) fn redelivered(&self, ranges_max: usize) -> Vec<Redelivered> {
        let sources = vec![
            Source::new(self.before.iter()),
            Source::new(self.replay.counts()),
            Source::new(self.held_back.counts()),
            Source::new(self.pending.redelivered()),
        ];
        let (mut again, mut once) = (Vec::new(), Vec::new());
        for (range, count) in in_order(sources) {
            let kept = match count {
                0 => continue,
                1 => &mut once,
                _ => &mut again,
            };
            if kept.len() < ranges_max {
                kept.push(Redelivered {
                    range: inclusive(&range),
                    count,
                });
            }
            if again.len() == ranges_max {
                break;
            }
        }
        once.truncate(ranges_max - again.len());
        again.append(&mut once);
        again.sort_by_key(|known| known.range.first);
        again
    }
}
