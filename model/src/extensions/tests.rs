use super::*;
use proptest::prelude::*;

#[test]
fn everything_that_is_put_in_comes_out() {
    let stamp = ProducerStamp {
        name: Bytes::from_static(b"p"),
        lowest_sequence_id: 3,
        highest_sequence_id: 9,
    };
    let instance = ProducerInstance([7; 16]);
    let mut some = ExtensionsBuilder::default();
    some.producer(&stamp).unwrap();
    some.producer_instance(instance).unwrap();
    some.origin(b"o").unwrap();
    some.transaction(b"t").unwrap();
    some.deliver_at_ms(1, 2).unwrap();
    some.event_time_ms(4).unwrap();
    some.schema(b"s").unwrap();
    let all = some.build();
    assert_eq!(all.producer(), Some(stamp));
    assert_eq!(all.producer_instance(), Some(instance));
    assert_eq!(all.origin().as_deref(), Some(&b"o"[..]));
    assert_eq!(all.transaction().as_deref(), Some(&b"t"[..]));
    assert_eq!(all.deliver_at_ms(), Some((1, 2)));
    assert_eq!(all.event_time_ms(), Some(4));
    assert_eq!(all.schema().as_deref(), Some(&b"s"[..]));
    assert_eq!(Extensions::parse(all.0.clone()), Ok(all));
}

#[test]
fn what_contradicts_itself_is_refused() {
    let parse = |bytes: &[u8]| Extensions::parse(Bytes::copy_from_slice(bytes));
    assert_eq!(parse(&[1]), Err(ExtensionError::Length));
    assert_eq!(parse(&[9, 0, 1, 0]), Err(ExtensionError::Length));
    // A producer without a name, and one whose ids descend.
    let mut producer = vec![1, 0, 16, 0];
    producer.extend([0; 16]);
    assert_eq!(parse(&producer), Err(ExtensionError::Value(1)));
    let mut some = ExtensionsBuilder::default();
    assert_eq!(some.deliver_at_ms(2, 1), Err(ExtensionError::Value(5)));
    let event = [6, 0, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    assert!(parse(&event).is_ok());
    let twice = [event, event].concat();
    assert_eq!(parse(&twice), Err(ExtensionError::Repeated(6)));
}

#[test]
fn no_head_gets_too_long() {
    let mut some = ExtensionsBuilder::default();
    let value = vec![0; EXTENSIONS_BYTES_MAX];
    assert_eq!(
        some.put(900, &value),
        Err(ExtensionError::TooLarge(EXTENSIONS_BYTES_MAX + 4))
    );
    some.put(900, &value[4..]).unwrap();
    assert_eq!(some.build().len(), EXTENSIONS_BYTES_MAX);
}

proptest! {
    /// Unknown tags survive a round trip, in order and beside known ones.
    #[test]
    fn unknown_tags_survive(
        unknown in proptest::collection::hash_map(
            8u16.., proptest::collection::vec(any::<u8>(), 0..40), 0..8),
        event in proptest::option::of(any::<u64>()),
    ) {
        let mut some = ExtensionsBuilder::default();
        // A map, because no tag may come twice; its order is as good as any.
        let unknown: Vec<_> = unknown.into_iter().collect();
        let (before, behind) = unknown.split_at(unknown.len() / 2);
        for (tag, value) in before {
            some.put(*tag, value).unwrap();
        }
        if let Some(event) = event {
            some.event_time_ms(event).unwrap();
        }
        for (tag, value) in behind {
            some.put(*tag, value).unwrap();
        }
        let all = some.build();
        let parsed = Extensions::parse(Bytes::copy_from_slice(all.as_bytes())).unwrap();
        prop_assert_eq!(&parsed, &all);
        prop_assert_eq!(parsed.event_time_ms(), event);
        for (tag, value) in &unknown {
            prop_assert_eq!(parsed.get(*tag), Some(Bytes::from(value.clone())));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(some) = Extensions::parse(bytes.into()) {
            let _ = (some.producer(), some.producer_instance(), some.deliver_at_ms());
            let _ = (some.event_time_ms(), some.origin(), some.transaction(), some.schema());
        }
    }
}
