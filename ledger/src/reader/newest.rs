//! Looking for the newest entry that can still be read, behind entries that are damaged in every
//! copy.

use aquifer_model::id::EntryId;

/// What `probe` finds at an entry up to `last`, and that entry: at `last` itself, or else in steps
/// back that double, the first entry of all included. An entry that is passed over may be whole.
///
/// # Errors
/// The first one of `probe`.
pub async fn newest_whole<T, E, F>(
    last: EntryId,
    mut probe: impl FnMut(EntryId) -> F,
) -> Result<Option<(EntryId, T)>, E>
where
    F: Future<Output = Result<Option<T>, E>>,
{
    let mut back = 0_u64;
    loop {
        let entry = EntryId(last.0.saturating_sub(back));
        match probe(entry).await? {
            Some(found) => return Ok(Some((entry, found))),
            None if entry == EntryId::FIRST => return Ok(None),
            None => back = back.saturating_mul(2).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_whole_at_the_beginning_is_found_in_few_steps(
            last in any::<u64>(),
            whole in 0_u64..100,
        ) {
            let mut probes = 0;
            let found = newest_whole(EntryId(last), |entry| {
                probes += 1;
                ready(Ok::<_, ()>((entry.0 <= whole).then_some(entry.0)))
            });
            let found = found.now_or_never().expect("the probe does not wait");
            let (entry, value) = found.expect("no error").expect("the first entry is whole");
            prop_assert!(entry.0 <= whole.min(last) && value == entry.0);
            prop_assert!(entry.0 == last || last > whole);
            prop_assert!(probes <= 66, "{probes}");
        }
    }

    #[test]
    fn nothing_is_found_where_all_is_damaged_and_an_error_ends_the_search() {
        let damaged = newest_whole(EntryId(9), |_| ready(Ok::<Option<()>, u8>(None)));
        assert_eq!(damaged.now_or_never(), Some(Ok(None)));
        let away = newest_whole(EntryId(9), |entry| {
            ready(match entry.0 {
                9 => Ok(None),
                _ => Err::<Option<()>, u8>(7),
            })
        });
        assert_eq!(away.now_or_never(), Some(Err(7)));
    }
}
