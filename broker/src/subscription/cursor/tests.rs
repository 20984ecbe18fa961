//! Commits of positions, forwards and back, and what of them is durable.

use super::*;

fn cursor(durable: bool) -> Cursor {
    let kind = SubscriptionType::Exclusive;
    let state = CursorState::new(Index(10));
    let properties = Properties::from([("note".to_owned(), "x".to_owned())]);
    Cursor::new("group".to_owned(), kind, durable, properties, 0, state)
}

fn marks(cursor: &Cursor) -> (u64, u64) {
    (cursor.mark_delete().0, cursor.durable_mark_delete().0)
}

/// Needs no consumer and no delivery: a forward commit acknowledges, one back is a seek.
#[test]
fn a_position_is_committed_in_both_directions() {
    let mut cursor = cursor(true);
    assert_eq!(cursor.commit(Index(10)), Commit::Unchanged);
    let Commit::Forward(forward) = cursor.commit(Index(25)) else {
        unreachable!("it lies ahead");
    };
    assert_eq!(forward.cumulative, Some(Index(24)));
    assert_eq!(marks(&cursor), (25, 10));
    cursor.confirm(&forward);
    assert_eq!(marks(&cursor), (25, 25));

    assert_eq!(cursor.commit(Index(4)), Commit::Back(SeekEpoch(1)));
    assert_eq!(marks(&cursor), (4, 4), "what it wants is kept at once");
    let Commit::Forward(again) = cursor.commit(Index(30)) else {
        unreachable!("it lies ahead");
    };
    assert_eq!(again.seek_epoch, SeekEpoch(1));
    cursor.confirm(&forward);
    assert_eq!(marks(&cursor), (30, 4), "void since the seek");
    cursor.confirm_seek(SeekEpoch(1), Index(4));
    cursor.confirm(&again);
    assert_eq!(marks(&cursor), (30, 30));
}

/// I9: a later owner finds what was confirmed, whatever the directions were.
#[test]
fn logged_commits_add_up_to_the_position() {
    let mut cursor = cursor(true);
    let mut deltas = vec![crate::cursor_log::created(cursor.record())];
    for index in [12, 40, 7, 7, 9, 3, 100, 99] {
        match cursor.commit(Index(index)) {
            Commit::Unchanged => {}
            Commit::Forward(delta) => {
                deltas.push(crate::cursor_log::acknowledged(cursor.name(), &delta));
            }
            Commit::Back(epoch) => {
                deltas.push(crate::cursor_log::moved(cursor.name(), epoch, Index(index)));
            }
        }
        let records = crate::cursor_log::encode_deltas(deltas.clone());
        let numbered = records.into_iter().zip(0..).map(|(r, at)| (Index(at), r));
        let recovered = crate::cursor_log::replay(numbered).expect("the log is sound");
        let known = recovered
            .subscriptions
            .values()
            .next()
            .expect("it is there");
        assert_eq!(known.cursor.mark_delete(), Index(index));
        assert_eq!(known.cursor.seek_epoch(), cursor.seek_epoch());
        assert_eq!(known.properties["note"], "x");
    }
}

/// The cursor of a reader leaves nothing to be confirmed.
#[test]
fn without_a_record_every_change_counts_at_once() {
    let mut cursor = cursor(false);
    cursor.pass(Index(20));
    assert_eq!(marks(&cursor), (20, 20));
    cursor.pass(Index(15));
    assert_eq!(marks(&cursor), (20, 20), "it passes forwards only");
    cursor.seek(Index(3));
    assert_eq!(marks(&cursor), (3, 3));
}
