//! The part of etcd's keys that belongs to a cluster: everything below its root. Callers see keys
//! without the root, and never those that the store keeps for itself.

use bytes::Bytes;
use etcd_client::proto::PbKeyValue;

use crate::keys;
use crate::store::{Revision, Versioned};

/// The keys of a cluster.
#[derive(Debug)]
pub(super) struct Space {
    root: String,
}

impl Space {
    pub(super) fn new(cluster: &str) -> Space {
        Space {
            root: keys::root(cluster),
        }
    }

    /// A key as etcd has it.
    pub(super) fn key(&self, key: &str) -> Vec<u8> {
        [self.root.as_bytes(), key.as_bytes()].concat()
    }

    /// The keys that begin with a prefix: from, up to but without.
    pub(super) fn range(&self, prefix: &str) -> (Vec<u8>, Vec<u8>) {
        let from = self.key(prefix);
        if prefix.is_empty() {
            // What the store keeps for itself comes last.
            return (from, self.key(keys::INTERNAL_PREFIX));
        }
        let mut to = from.clone();
        // No byte of a text is 0xff, so the last one can always be raised.
        if let Some(last) = to.last_mut() {
            *last = last.saturating_add(1);
        }
        (from, to)
    }

    /// Where a range continues after a key as etcd has it.
    pub(super) fn after(mut key: Vec<u8>) -> Vec<u8> {
        key.push(0);
        key
    }

    /// A key and its value without the root. A key that is no text was not written by this store:
    /// it is passed over, because it stands for nothing here.
    pub(super) fn item(&self, found: PbKeyValue) -> Option<Versioned> {
        let key = self.relative(&found.key)?;
        Some(Versioned {
            key,
            value: Bytes::from(found.value),
            revision: revision(found.mod_revision),
        })
    }

    /// A key without the root.
    pub(super) fn relative(&self, key: &[u8]) -> Option<String> {
        let relative = key
            .strip_prefix(self.root.as_bytes())
            .and_then(|key| std::str::from_utf8(key).ok());
        if relative.is_none() {
            let key = String::from_utf8_lossy(key);
            tracing::warn!(%key, "foreign key in etcd is ignored");
        }
        relative.map(str::to_owned)
    }
}

/// A revision of etcd. They are positive; anything else comes from something that is not etcd.
pub(super) fn revision(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or(0))
}

/// The same in the other direction; a revision that etcd cannot have is later than all it has.
pub(super) fn number(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_their_prefix_and_nothing_of_the_store() {
        let space = Space::new("c");
        let holds = |prefix: &str, key: &str| {
            let (from, to) = space.range(prefix);
            let key = space.key(key);
            from <= key && key < to
        };
        assert!(holds("l/", "l/1") && holds("l/", "l/~") && !holds("l/", "m/1"));
        assert!(!holds("l/", "l"));
        assert!(holds("", "a") && holds("", "zzz"));
        assert!(!holds("", &keys::commit_slot(1, 2)));
        let foreign = Space::new("d").key("x");
        let (from, to) = space.range("");
        assert!(foreign < from || foreign >= to);
    }

    #[test]
    fn foreign_keys_and_numbers_are_no_panic() {
        let space = Space::new("c");
        let item = |key: Vec<u8>, mod_revision: i64| {
            space.item(PbKeyValue {
                key,
                mod_revision,
                ..PbKeyValue::default()
            })
        };
        assert_eq!(item(b"\xff\xfe".to_vec(), 1), None);
        assert_eq!(
            item([b"/aquifer/v1/c/".as_slice(), b"\xff"].concat(), 1),
            None
        );
        assert_eq!(
            item(space.key("a"), -7).map(|item| item.revision),
            Some(Revision(0))
        );
        assert_eq!(number(Revision(u64::MAX)), i64::MAX);
    }
}
