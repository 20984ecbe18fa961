//! Wire frames: any bytes decoded as each message that a peer may send; what decodes also encodes.
#![no_main]

use aquifer_proto::v1;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 8 {
        0 => check::<v1::ProduceRequest>(data),
        1 => check::<v1::ProduceResponse>(data),
        2 => check::<v1::ConsumeRequest>(data),
        3 => check::<v1::ConsumeResponse>(data),
        4 => check::<v1::OrderedFrame>(data),
        5 => check::<v1::OrderedReplies>(data),
        6 => check::<v1::MetadataValue>(data),
        _ => check::<v1::CursorLogRecord>(data),
    }
});

fn check<M: Message + Default + PartialEq + std::fmt::Debug>(data: &[u8]) {
    if let Ok(message) = M::decode(data) {
        let again = M::decode(&message.encode_to_vec()[..]).expect("what was decoded encodes");
        assert_eq!(again, message);
    }
}
