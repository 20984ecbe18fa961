use super::*;
use proptest::prelude::*;

fn fields() -> BatchFields {
    BatchFields {
        producer_name: Bytes::from_static(b"p"),
        producer_instance: Some(ProducerInstance([3; 16])),
        lowest_sequence_id: 7,
        highest_sequence_id: 8,
        publish_time_ms: 1_700_000_000_000,
        deliver_at_ms: Some(5),
        ordering_key: Some(Bytes::from_static(b"o")),
        compression: Compression::Zstd,
        uncompressed_bytes: 10,
        schema_version: Some(Bytes::from_static(b"s")),
        replication_origin: Some(Bytes::from_static(b"r")),
        transaction_id: Some(Bytes::from_static(b"t")),
        encryption: Some(Bytes::from_static(b"e")),
        trace: TraceContext::new([1; 16], [2; 8]),
        unknown: vec![(999, Bytes::from_static(b"later")), (1000, Bytes::new())],
    }
}

fn rows() -> Vec<MessageRow> {
    let row = MessageRow {
        key_hash: 1,
        size_bytes: 5,
        sequence_delta: 0,
        flags: FLAG_HAS_KEY | 1 << 30,
        event_time_ms: 9,
    };
    vec![
        row,
        MessageRow {
            sequence_delta: 1,
            ..row
        },
    ]
}

#[test]
fn every_field_survives_a_round_trip() {
    let bytes = encode(&fields(), &rows(), b"helloworld").unwrap();
    let batch = Batch::parse(bytes).unwrap();
    assert_eq!(batch.fields(), &fields());
    assert_eq!(batch.rows().collect::<Vec<_>>(), rows());
    assert_eq!(batch.payload(), Bytes::from_static(b"helloworld"));
    assert_eq!(batch.message_count(), 2);
}

/// The stored bytes of version 1: they may never change while topics hold them.
#[test]
fn golden_bytes_still_parse() {
    let golden = encode(
        &BatchFields {
            producer_name: Bytes::from_static(b"p"),
            ..BatchFields::default()
        },
        &[MessageRow {
            size_bytes: 4,
            ..MessageRow::default()
        }],
        &[0, 0, b'h', b'i'],
    )
    .unwrap();
    let hex: String = golden.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, include_str!("golden_v1.hex").trim());
}

#[test]
fn a_trace_is_24_bytes_that_are_not_zero() {
    for value in [&[][..], &[0; 24], &[1; 23], &[1; 25]] {
        let fields = BatchFields {
            unknown: vec![(tag::TRACE, Bytes::copy_from_slice(value))],
            ..BatchFields::default()
        };
        let batch = encode(&fields, &rows(), b"helloworld").unwrap();
        assert_eq!(
            Batch::parse(batch).err(),
            Some(BatchError::Field(tag::TRACE))
        );
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let bytes = encode(&fields(), &rows(), b"helloworld").unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Batch::parse(bad.into()).is_err(), "bit {bit}");
    }
    for len in 0..bytes.len() {
        assert!(Batch::parse(bytes.slice(..len)).is_err(), "cut to {len}");
    }
}

/// Puts bytes behind every row, as a later version may.
fn with_longer_rows(batch: &Bytes, rows: usize, row_bytes: usize) -> Bytes {
    let fields_len = u32_at(batch, 12) as usize;
    let (table_at, table_len) = (PREFIX_BYTES + fields_len, rows * ROW_BYTES);
    let mut out = BytesMut::from(&batch[..table_at]);
    for row in batch[table_at..table_at + table_len].chunks_exact(ROW_BYTES) {
        out.extend_from_slice(row);
        out.put_bytes(0xab, row_bytes - ROW_BYTES);
    }
    out.extend_from_slice(&batch[table_at + table_len..]);
    let total = u32::try_from(out.len()).unwrap();
    out[8..12].copy_from_slice(&total.to_le_bytes());
    let table_len = u32::try_from(rows * row_bytes).unwrap();
    out[16..20].copy_from_slice(&table_len.to_le_bytes());
    seal(&mut out);
    out.freeze()
}

#[test]
fn rows_of_a_later_version_are_read_as_far_as_they_are_known() {
    let bytes = encode(&fields(), &rows(), b"helloworld").unwrap();
    for row_bytes in [25, 40, ROW_BYTES_MAX] {
        let longer = with_longer_rows(&bytes, 2, row_bytes);
        let batch = Batch::parse(longer.clone()).unwrap();
        assert_eq!(batch.rows().collect::<Vec<_>>(), rows());
        assert_eq!(batch.row(1), Some(rows()[1]));
        assert_eq!(batch.row(2), None);
        assert_eq!(batch.payload(), Bytes::from_static(b"helloworld"));
        assert_eq!(batch.bytes(), &longer, "kept as it came");
    }
    let too_long = with_longer_rows(&bytes, 2, ROW_BYTES_MAX + 1);
    assert!(matches!(
        Batch::parse(too_long),
        Err(BatchError::TooLarge { .. })
    ));
}

proptest! {
    /// Fields and row bytes of a later version are kept as they came.
    #[test]
    fn batches_of_later_versions_survive(
        unknown in proptest::collection::btree_map(
            200u16.., proptest::collection::vec(any::<u8>(), 0..40), 0..6),
        row_bytes in ROW_BYTES..=ROW_BYTES_MAX,
        payload in proptest::collection::vec(any::<u8>(), 0..60),
    ) {
        let unknown = unknown.into_iter().map(|(tag, value)| (tag, Bytes::from(value)));
        let later = BatchFields {
            unknown: unknown.collect(),
            ..fields()
        };
        let bytes = encode(&later, &rows(), &payload).unwrap();
        let bytes = with_longer_rows(&bytes, rows().len(), row_bytes);
        let batch = Batch::parse(bytes.clone()).unwrap();
        prop_assert_eq!(batch.fields(), &later);
        prop_assert_eq!(batch.rows().collect::<Vec<_>>(), rows());
        prop_assert_eq!(batch.payload(), Bytes::from(payload));
        prop_assert_eq!(batch.bytes(), &bytes);
    }

    #[test]
    fn records_round_trip(
        key in proptest::collection::vec(any::<u8>(), 0..300),
        properties in proptest::collection::vec((".{0,20}", ".{0,200}"), 0..5),
        value in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let record = MessageRecord {
            key: key.into(),
            properties: properties.into_iter().map(|(n, v)| (n.into(), v.into())).collect(),
            value: value.into(),
        };
        let mut out = BytesMut::new();
        prop_assert_eq!(record.encode(&mut out), out.len());
        prop_assert_eq!(MessageRecord::decode(out.freeze()), Ok(record));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = MessageRecord::decode(bytes.clone().into());
        let _ = BatchFields::decode(bytes.clone().into());
        let _ = Batch::parse(bytes.into());
    }

    /// The checksum is made right, so that the parser behind it meets the arbitrary bytes.
    #[test]
    fn arbitrary_bytes_with_a_right_checksum_never_panic(
        lengths in proptest::array::uniform3(0u32..200),
        body in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([0; 4]);
        bytes.extend(u32::try_from(PREFIX_BYTES + body.len()).unwrap().to_le_bytes());
        lengths.iter().for_each(|length| bytes.extend(length.to_le_bytes()));
        bytes.extend(&body);
        let checksum = checksum::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        if let Ok(batch) = Batch::parse(bytes.into()) {
            prop_assert_eq!(batch.rows().count(), batch.message_count() as usize);
            let _ = batch.payload();
        }
    }
}
