//! What the consumers of a subscription were given and what was confirmed to them, written down by
//! each of them as it happens, and what must hold of it afterwards (I9, P9, P10).
//!
//! A file has a line for each event: `open MS` when a consumer has been opened, with the time
//! before it was asked for; `got MS RANGES` and `ok MS RANGES` when messages were received, and
//! when their acknowledgement was confirmed. Ranges are indexes, `4-7,9-9`. All times are of one
//! machine's clock.

use std::collections::HashMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};

/// What happened to some messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// A consumer has received them.
    Received,
    /// It was told that their acknowledgement is durable.
    Confirmed,
}

/// An event of one consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When, in milliseconds.
    pub at_ms: u64,
    /// Which consumer: one that was opened again is another one.
    pub consumer: u32,
    /// Before this time the consumer did not exist, in milliseconds.
    pub opened_ms: u64,
    /// What happened.
    pub what: What,
    /// The messages: first and last index of each range.
    pub ranges: Vec<(u64, u64)>,
}

/// What was counted while checking.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Messages received, each as often as it came.
    pub deliveries: u64,
    /// Different messages.
    pub messages: u64,
    /// Deliveries of messages that were confirmed to another consumer, to one that existed then:
    /// they may have been in its queue.
    pub late: u64,
    /// Consumers.
    pub consumers: u64,
}

/// Indexes as ranges, in their order.
#[must_use]
pub fn ranges(indexes: impl IntoIterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for index in indexes {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => ranges.push((index, index)),
        }
    }
    ranges
}

/// The line of an event.
#[must_use]
pub fn line(what: What, at_ms: u64, ranges: &[(u64, u64)]) -> String {
    let mut line = match what {
        What::Received => format!("got {at_ms} "),
        What::Confirmed => format!("ok {at_ms} "),
    };
    for (at, (first, last)) in ranges.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(line, "{}{first}-{last}", if at == 0 { "" } else { "," });
    }
    line.push('\n');
    line
}

/// The line of a consumer that was opened.
#[must_use]
pub fn opened(at_ms: u64) -> String {
    format!("open {at_ms}\n")
}

/// Reads lines, those of one file in their order.
#[derive(Debug, Default)]
pub struct Parser {
    consumer: u32,
    opened_ms: u64,
}

impl Parser {
    /// A parser that gives its consumers numbers from this one on.
    #[must_use]
    pub fn new(first_consumer: u32) -> Parser {
        Parser {
            consumer: first_consumer,
            opened_ms: 0,
        }
    }

    /// The event of a line; none for one that says that a consumer was opened.
    ///
    /// # Errors
    /// For a line of another kind.
    pub fn parse(&mut self, line: &str) -> Result<Option<Event>> {
        let mut words = line.split(' ');
        let mut word = || words.next().with_context(|| format!("no event: {line:?}"));
        let (kind, at_ms) = (word()?, word()?.parse()?);
        let what = match kind {
            "open" => {
                self.consumer += 1;
                self.opened_ms = at_ms;
                return Ok(None);
            }
            "got" => What::Received,
            "ok" => What::Confirmed,
            _ => bail!("no event: {line:?}"),
        };
        let mut ranges = Vec::new();
        for range in word()?.split(',') {
            let (first, last) = range.split_once('-').context("a range")?;
            ranges.push((first.parse()?, last.parse()?));
        }
        Ok(Some(Event {
            at_ms,
            consumer: self.consumer,
            opened_ms: self.opened_ms,
            what,
            ranges,
        }))
    }
}

/// Checks the events of a subscription, of all of its consumers. `in_order`: it serves one consumer
/// at a time (Exclusive, Failover).
///
/// # Errors
/// - P10: a consumer that is served in order got a new message that is not the next one.
/// - I9: a message came again to the consumer to which its acknowledgement had been confirmed, or
///   to one that was opened after that.
pub fn check(mut events: Vec<Event>, in_order: bool) -> Result<Counts> {
    // Within a millisecond, what comes first in the log was received first.
    events.sort_by_key(|event| (event.at_ms, event.what, event.ranges.first().copied()));
    let mut counts = Counts::default();
    let mut seen = Vec::new();
    let mut confirmed: HashMap<u64, (u32, u64)> = HashMap::new();
    let mut consumers = std::collections::HashSet::new();
    for event in events {
        consumers.insert(event.consumer);
        let indexes = event.ranges.iter().flat_map(|(first, last)| *first..=*last);
        for index in indexes {
            if event.what == What::Confirmed {
                // The earliest one counts.
                confirmed
                    .entry(index)
                    .or_insert((event.consumer, event.at_ms));
                continue;
            }
            counts.deliveries += 1;
            if let Some((consumer, at_ms)) = confirmed.get(&index) {
                ensure!(
                    *consumer != event.consumer,
                    "I9: index {index} came at {} to the consumer to which its acknowledgement had been confirmed at {at_ms}",
                    event.at_ms
                );
                ensure!(
                    event.opened_ms <= *at_ms,
                    "I9: index {index}, whose acknowledgement was confirmed at {at_ms}, came at {} to a consumer that was opened at {}",
                    event.at_ms,
                    event.opened_ms
                );
                counts.late += 1;
            }
            note(&mut seen, &mut counts, index, in_order)?;
        }
    }
    counts.consumers = consumers.len() as u64;
    Ok(counts)
}

fn note(seen: &mut Vec<bool>, counts: &mut Counts, index: u64, in_order: bool) -> Result<()> {
    let at = usize::try_from(index)?;
    if seen.get(at) == Some(&true) {
        return Ok(());
    }
    ensure!(
        !in_order || at == seen.len(),
        "P10: index {index} after {} messages",
        seen.len()
    );
    if seen.len() <= at {
        seen.resize(at + 1, false);
    }
    seen[at] = true;
    counts.messages += 1;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(files: &[&str]) -> Vec<Event> {
        let mut events = Vec::new();
        for (number, file) in files.iter().enumerate() {
            let mut parser = Parser::new(u32::try_from(number).unwrap() * 100);
            for line in file.lines() {
                events.extend(parser.parse(line).unwrap());
            }
        }
        events
    }

    #[test]
    fn lines_survive_a_round_trip() {
        let given = ranges([4, 5, 6, 9, 11, 12]);
        let text = opened(3) + &line(What::Received, 7, &given) + &line(What::Confirmed, 8, &given);
        let found = events(&[&text]);
        assert_eq!(found[0].ranges, [(4, 6), (9, 9), (11, 12)]);
        assert_eq!((found[0].at_ms, found[0].opened_ms), (7, 3));
        assert_eq!(found[1].what, What::Confirmed);
        assert!(Parser::default().parse("gone 7 1-2").is_err());
        assert!(Parser::default().parse("got").is_err());
    }

    #[test]
    fn a_sound_history_passes() {
        // The second consumer had 3 to 4 in its queue when they were confirmed to the first.
        let found = events(&[
            "open 1\ngot 2 0-4\nok 5 0-2\nok 6 3-4",
            "open 3\ngot 7 3-6\nok 9 3-6\nopen 10\ngot 11 7-7",
        ]);
        let counts = check(found, true).unwrap();
        assert_eq!(counts.late, 2);
        assert_eq!((counts.messages, counts.deliveries), (8, 10));
        assert_eq!(counts.consumers, 3);
    }

    #[test]
    fn a_confirmed_message_that_comes_again_is_caught() {
        let same = events(&["open 1\ngot 2 0-4\nok 5 0-2\ngot 8 2-2"]);
        assert!(check(same, false).unwrap_err().to_string().contains("I9"));
        let later = events(&["open 1\ngot 2 0-4\nok 5 0-2", "open 6\ngot 8 2-2"]);
        assert!(check(later, false).unwrap_err().to_string().contains("I9"));
        // What was not confirmed may come again to any consumer.
        let pending = events(&["open 1\ngot 2 0-4\nok 5 0-2", "open 6\ngot 8 3-4"]);
        check(pending, false).unwrap();
    }

    #[test]
    fn a_skipped_message_is_caught() {
        let skipped = || events(&["open 1\ngot 2 0-4\ngot 3 6-6"]);
        assert!(
            check(skipped(), true)
                .unwrap_err()
                .to_string()
                .contains("P10")
        );
        check(skipped(), false).unwrap();
    }
}
