//! What must hold of a history. Each checker has a test that shows it
//! catching the violation that it is for.

use std::collections::{HashMap, HashSet};

use anyhow::{Result, bail, ensure};
use aquifer_model::position::Position;

/// A message as a producer knows it after its receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    /// The producer's name.
    pub producer: String,
    /// Its sequence id.
    pub sequence_id: u64,
    /// What was sent.
    pub payload: Vec<u8>,
    /// Where the receipt says it is.
    pub position: Position,
    /// The index that the receipt says.
    pub index: u64,
}

/// A message as a reader found it in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// The producer's name.
    pub producer: String,
    /// Its sequence id.
    pub sequence_id: u64,
    /// What is stored.
    pub payload: Vec<u8>,
    /// Where it is.
    pub position: Position,
    /// Its index.
    pub index: u64,
}

/// P1 and P6: every acknowledged message is in the log, byte for byte, where its receipt says.
///
/// # Errors
/// Names the first messages that are not.
pub fn nothing_lost(acknowledged: &[Acknowledged], log: &[Logged]) -> Result<()> {
    let by_index: HashMap<u64, &Logged> =
        log.iter().map(|message| (message.index, message)).collect();
    let mut lost = Vec::new();
    for sent in acknowledged {
        match by_index.get(&sent.index) {
            Some(found)
                if found.producer == sent.producer
                    && found.sequence_id == sent.sequence_id
                    && found.payload == sent.payload
                    && found.position == sent.position => {}
            found => lost.push(format!("{sent:?} but the log has {found:?}")),
        }
    }
    ensure!(
        lost.is_empty(),
        "{} acknowledged messages lost, first: {}",
        lost.len(),
        lost[0]
    );
    Ok(())
}

/// When a message was sent and acknowledged, in microseconds of one clock, and where it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Append {
    /// Before it was handed to the SDK.
    pub invoked_us: u64,
    /// After its receipt arrived.
    pub acknowledged_us: u64,
    /// The index that the receipt says.
    pub index: u64,
}

/// P2: the log holds nothing but what was sent, byte for byte. `sent` says what a producer sent
/// under a sequence id, if it sent anything.
///
/// # Errors
/// Names the first message that was not sent.
pub fn nothing_invented(log: &[Logged], sent: impl Fn(&str, u64) -> Option<Vec<u8>>) -> Result<()> {
    for message in log {
        let expected = sent(&message.producer, message.sequence_id);
        ensure!(
            expected.as_ref() == Some(&message.payload),
            "what is at index {} was never sent: {message:?}, sent was {expected:?}",
            message.index
        );
    }
    Ok(())
}

/// P4: appends are linearizable. One that began after another had been acknowledged is behind it.
///
/// # Errors
/// Names the first pair that is not.
pub fn appends_in_real_time(appends: &[Append]) -> Result<()> {
    let mut begun: Vec<&Append> = appends.iter().collect();
    begun.sort_unstable_by_key(|append| append.invoked_us);
    let mut done = begun.clone();
    done.sort_unstable_by_key(|append| append.acknowledged_us);
    let (mut done, mut highest): (_, Option<&Append>) = (done.into_iter().peekable(), None);
    for append in begun {
        while let Some(before) = done.next_if(|done| done.acknowledged_us < append.invoked_us) {
            if highest.is_none_or(|highest| highest.index < before.index) {
                highest = Some(before);
            }
        }
        if let Some(before) = highest {
            ensure!(
                append.index > before.index,
                "{append:?} began after {before:?} had ended"
            );
        }
    }
    Ok(())
}

/// P8: every ledger is in exactly one topic's list, and once. `lists` are topics with their
/// ledgers.
///
/// # Errors
/// Names the first that is in two places.
pub fn ledgers_in_one_list(lists: &[(String, Vec<u64>)]) -> Result<()> {
    let mut owner = HashMap::new();
    for (topic, ledgers) in lists {
        for ledger in ledgers {
            if let Some(other) = owner.insert(*ledger, topic) {
                bail!("ledger {ledger} is listed by {other} and by {topic}");
            }
        }
    }
    Ok(())
}

/// I8: no (producer, sequence id) is stored twice.
///
/// # Errors
/// Names the first one that is.
pub fn nothing_twice(log: &[Logged]) -> Result<()> {
    let mut seen = HashMap::new();
    for message in log {
        let key = (message.producer.as_str(), message.sequence_id);
        if let Some(first) = seen.insert(key, message.index) {
            bail!(
                "{key:?} is stored at index {first} and at {}",
                message.index
            );
        }
    }
    Ok(())
}

/// I7: sequence ids of each producer rise along the log.
///
/// # Errors
/// Names the first that does not.
pub fn producers_in_order(log: &[Logged]) -> Result<()> {
    let mut last: HashMap<&str, u64> = HashMap::new();
    for message in log {
        if let Some(before) = last.insert(&message.producer, message.sequence_id) {
            let (now, index) = (message.sequence_id, message.index);
            ensure!(
                before < now,
                "{}: {now} after {before} at index {index}",
                message.producer
            );
        }
    }
    Ok(())
}

/// P7: indexes are dense and positions rise.
///
/// # Errors
/// Names the first gap.
pub fn dense(log: &[Logged]) -> Result<()> {
    for pair in log.windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        ensure!(
            after.index == before.index + 1,
            "index {} after {}",
            after.index,
            before.index
        );
        ensure!(
            after.position > before.position,
            "position {} after {}",
            after.position,
            before.position
        );
    }
    Ok(())
}

/// P3: two readers saw the same log.
///
/// # Errors
/// Names the first difference.
pub fn readers_agree(one: &[Logged], other: &[Logged]) -> Result<()> {
    ensure!(
        one.len() == other.len(),
        "{} messages and {}",
        one.len(),
        other.len()
    );
    for (a, b) in one.iter().zip(other) {
        ensure!(a == b, "{a:?} and {b:?}");
    }
    Ok(())
}

/// I9: the subscription was given every message of the log.
///
/// # Errors
/// Says how many are missing, and the first.
pub fn delivered_at_least_once(log: &[Logged], received: &HashSet<u64>) -> Result<()> {
    let missing: Vec<u64> = log
        .iter()
        .map(|message| message.index)
        .filter(|i| !received.contains(i))
        .collect();
    ensure!(
        missing.is_empty(),
        "{} never delivered, first: {}",
        missing.len(),
        missing[0]
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use aquifer_model::id::{EntryId, LedgerId};

    fn log() -> Vec<Logged> {
        (0..4)
            .map(|i| Logged {
                producer: format!("p{}", i % 2),
                sequence_id: i / 2,
                payload: vec![7],
                position: Position {
                    ledger: LedgerId(1),
                    entry: EntryId(i),
                    batch_index: 0,
                },
                index: i,
            })
            .collect()
    }

    fn sent(message: &Logged) -> Acknowledged {
        Acknowledged {
            producer: message.producer.clone(),
            sequence_id: message.sequence_id,
            payload: message.payload.clone(),
            position: message.position,
            index: message.index,
        }
    }

    #[test]
    fn a_sound_history_passes() {
        let log = log();
        let acknowledged: Vec<_> = log.iter().map(sent).collect();
        nothing_lost(&acknowledged, &log).unwrap();
        nothing_twice(&log).unwrap();
        producers_in_order(&log).unwrap();
        dense(&log).unwrap();
        readers_agree(&log, &log).unwrap();
        delivered_at_least_once(&log, &HashSet::from([0, 1, 2, 3])).unwrap();
        nothing_invented(&log, |_, _| Some(vec![7])).unwrap();
        let append = |invoked_us, acknowledged_us, index| Append {
            invoked_us,
            acknowledged_us,
            index,
        };
        // Those that overlap may be in any order.
        appends_in_real_time(&[append(0, 10, 1), append(5, 8, 0), append(11, 12, 2)]).unwrap();
        ledgers_in_one_list(&[("a".to_owned(), vec![1, 2]), ("b".to_owned(), vec![3])]).unwrap();
    }

    #[test]
    fn each_violation_is_caught() {
        let log = log();
        let acknowledged: Vec<_> = log.iter().map(sent).collect();
        assert!(nothing_lost(&acknowledged, &log[..3]).is_err());
        let mut other = log.clone();
        other[1].payload = vec![8];
        assert!(nothing_lost(&acknowledged, &other).is_err());
        assert!(readers_agree(&log, &other).is_err());
        let mut twice = log.clone();
        twice[2].sequence_id = 0;
        assert!(nothing_twice(&twice).is_err());
        assert!(producers_in_order(&twice).is_err());
        let mut gap = log.clone();
        gap.remove(1);
        assert!(dense(&gap).is_err());
        assert!(delivered_at_least_once(&log, &HashSet::from([0, 1, 3])).is_err());
        assert!(nothing_invented(&log, |_, id| (id == 0).then(|| vec![7])).is_err());
        assert!(nothing_invented(&other, |_, _| Some(vec![7])).is_err());
        let append = |invoked_us, acknowledged_us, index| Append {
            invoked_us,
            acknowledged_us,
            index,
        };
        let late = [append(0, 10, 1), append(20, 25, 0), append(2, 30, 2)];
        assert!(appends_in_real_time(&late).is_err());
        let lists = [("a".to_owned(), vec![1, 2]), ("b".to_owned(), vec![2])];
        assert!(ledgers_in_one_list(&lists).is_err());
    }
}
