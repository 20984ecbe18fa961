//! The journal of a bookie: records, segments, and lists of commits with damage among them.
#![no_main]

use aquifer_bookie::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 3 {
        0 => fuzzing::records(data),
        1 => fuzzing::segment(data),
        _ => fuzzing::commits(data),
    }
});
