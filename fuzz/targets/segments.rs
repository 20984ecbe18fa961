//! A topic's record and the pages of its segments: whatever they hold, they are refused or make a
//! list in which each segment begins where the one before it ends.
#![no_main]

use aquifer_log::pages::assemble;
use aquifer_metadata::store::{Revision, Versioned};
use aquifer_metadata::{keys, record, segments};
use aquifer_model::id::TopicIncarnation;
use aquifer_model::topic::TopicName;
use aquifer_proto::v1;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let topic: TopicName = "t/n/x".parse().expect("a name");
    match kind % 2 {
        0 => stored(&topic, data),
        _ => made(&topic, data),
    }
});

/// Any bytes as the values of three keys, the first two lengths in front.
fn stored(topic: &TopicName, data: &[u8]) {
    let [a, b, rest @ ..] = data else { return };
    let (first, rest) = rest.split_at(usize::from(*a).min(rest.len()));
    let (second, third) = rest.split_at(usize::from(*b).min(rest.len()));
    let item = |key: String, value: &[u8]| Versioned {
        key,
        value: Bytes::copy_from_slice(value),
        revision: Revision(1),
    };
    let at = item(keys::topic(topic), first);
    let _ = segments::listed(&at);
    let Ok(record) = record::decode::<v1::TopicRecord>(&at) else { return };
    let Ok(incarnation) = TopicIncarnation::try_from(record.incarnation.as_ref()) else { return };
    let page = |number: u32, value| item(keys::segment_page(topic, incarnation, number), value);
    let pages = [page(record.first_page, second), page(record.first_page.wrapping_add(1), third)];
    for page in &pages {
        let _ = segments::listed(page);
    }
    for count in 0..=pages.len() {
        check(topic, &record, &pages[..count]);
    }
}

/// Small numbers as segments, so that lists that fit are found: each byte is one, divided by zeros
/// into pages and the record.
fn made(topic: &TopicName, data: &[u8]) {
    let (mut id, mut index) = (0, 0);
    let mut lists: Vec<Vec<v1::SegmentRecord>> = vec![Vec::new()];
    for byte in data.iter().take(200) {
        if *byte == 0 {
            lists.push(Vec::new());
            continue;
        }
        let (step, gap) = (u64::from(byte & 7), u64::from(byte >> 6));
        id += step;
        let first_index = index + gap;
        index = first_index + u64::from(byte >> 3 & 7);
        let segment = v1::SegmentRecord {
            ledger_id: id,
            first_index,
            sealed: true,
            end_index: index,
            bytes: step,
            ..v1::SegmentRecord::default()
        };
        lists.last_mut().expect("a list").push(segment);
    }
    let newest = lists.pop().unwrap_or_default();
    let paged = lists.iter().flatten().map(|segment| segment.bytes).sum();
    let incarnation = TopicIncarnation([7; 16]);
    let record = v1::TopicRecord {
        incarnation: incarnation.0.to_vec().into(),
        segments: newest,
        first_page: 7,
        end_page: 7 + u32::try_from(lists.len()).expect("few"),
        paged_bytes: paged,
        ..v1::TopicRecord::default()
    };
    let pages: Vec<Versioned> = (7..)
        .zip(lists)
        .map(|(number, segments)| Versioned {
            key: keys::segment_page(topic, incarnation, number),
            value: record::encode(v1::SegmentPageRecord {
                incarnation: incarnation.0.to_vec().into(),
                segments,
            }),
            revision: Revision(1),
        })
        .collect();
    check(topic, &record, &pages);
}

fn check(topic: &TopicName, record: &v1::TopicRecord, pages: &[Versioned]) {
    let Ok(all) = assemble(topic, record, pages) else { return };
    let listed = all.len() - record.segments.len();
    for (at, pair) in all.windows(2).enumerate() {
        // What the record itself lists is checked when the log is opened.
        if at < listed {
            assert!(pair[0].sealed && pair[0].end_index == pair[1].first_index);
            assert!(pair[0].ledger_id < pair[1].ledger_id);
        }
    }
}
