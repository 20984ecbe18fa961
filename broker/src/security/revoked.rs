//! Revocations of JSON Web Tokens: of one, by its id, or of all that a principal was issued before
//! a time. No broker keeps the tokens themselves, so that a revocation says what it refuses.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use aquifer_proto::v1::RevocationRecord;
use aquifer_protocol_api::security::{Refuses, RevocationInfo};

/// The revocations of a cluster.
#[derive(Default)]
pub(crate) struct Revoked {
    by_id: BTreeMap<String, RevocationInfo>,
    /// Ids of tokens, each with those of the revocations that name it.
    tokens: HashMap<String, Vec<String>>,
    /// Principals, each with the revocations that name it, and the times before which their tokens
    /// are refused.
    principals: HashMap<String, Vec<(String, u64)>>,
}

impl Revoked {
    /// Whether a token is refused, by its `ALIAS:JTI`, whom it names, and when it was issued.
    pub(crate) fn refuses(&self, token: Option<&str>, principal: &str, issued_ms: u64) -> bool {
        let of_principal = self.principals.get(principal);
        token.is_some_and(|token| self.tokens.contains_key(token))
            || of_principal.is_some_and(|all| all.iter().any(|(_, before)| issued_ms < *before))
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The revocation of an id.
    pub(crate) fn get(&self, id: &str) -> Option<&RevocationInfo> {
        self.by_id.get(id)
    }

    /// The revocations behind an id, in order.
    pub(crate) fn after(&self, after: Option<&str>) -> impl Iterator<Item = &RevocationInfo> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = self.by_id.range::<str, _>((from, Bound::Unbounded));
        range.map(|(_, found)| found)
    }

    pub(super) fn put(&mut self, info: RevocationInfo) {
        self.remove(&info.id);
        let id = info.id.clone();
        match &info.refuses {
            Refuses::Token(token) => self.tokens.entry(token.clone()).or_default().push(id),
            Refuses::IssuedBefore(principal, before_ms) => {
                let all = self.principals.entry(principal.clone()).or_default();
                all.push((id, *before_ms));
            }
        }
        self.by_id.insert(info.id.clone(), info);
    }

    pub(super) fn remove(&mut self, id: &str) {
        let Some(gone) = self.by_id.remove(id) else {
            return;
        };
        match &gone.refuses {
            Refuses::Token(token) => {
                if let Some(all) = self.tokens.get_mut(token) {
                    all.retain(|other| other != id);
                    if all.is_empty() {
                        self.tokens.remove(token);
                    }
                }
            }
            Refuses::IssuedBefore(principal, _) => {
                if let Some(all) = self.principals.get_mut(principal) {
                    all.retain(|(other, _)| other != id);
                    if all.is_empty() {
                        self.principals.remove(principal);
                    }
                }
            }
        }
    }
}

/// The revocation of a record; says why it refuses nothing.
pub(crate) fn of(id: &str, record: RevocationRecord) -> Result<RevocationInfo, String> {
    let refuses = match (record.principal.is_empty(), record.jti.is_empty()) {
        (true, false) => Refuses::Token(record.jti),
        (false, true) => Refuses::IssuedBefore(record.principal, record.issued_before_ms),
        _ => return Err("it names neither one token nor one principal".to_owned()),
    };
    Ok(RevocationInfo {
        id: id.to_owned(),
        refuses,
        created_ms: record.created_ms,
        created_by: record.created_by,
        ends_ms: record.ends_ms,
    })
}

/// The record of a revocation.
pub(crate) fn record(info: &RevocationInfo) -> RevocationRecord {
    let mut record = RevocationRecord {
        created_ms: info.created_ms,
        created_by: info.created_by.clone(),
        ends_ms: info.ends_ms,
        ..RevocationRecord::default()
    };
    match &info.refuses {
        Refuses::Token(token) => record.jti.clone_from(token),
        Refuses::IssuedBefore(principal, before_ms) => {
            record.principal.clone_from(principal);
            record.issued_before_ms = *before_ms;
        }
    }
    record
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn revocation(id: u8, token: bool, name: u8, before_ms: u64) -> RevocationInfo {
        RevocationInfo {
            id: id.to_string(),
            refuses: match token {
                true => Refuses::Token(format!("sso:{name}")),
                false => Refuses::IssuedBefore(format!("jwt:sso:{name}"), before_ms),
            },
            created_ms: 1,
            created_by: "token:admin".to_owned(),
            ends_ms: 9,
        }
    }

    proptest! {
        /// What is refused is what a scan of all revocations finds, whatever came and went.
        #[test]
        fn the_index_agrees_with_a_scan(
            steps in prop::collection::vec((0..6u8, any::<bool>(), 0..3u8, 0..4u64, any::<bool>()), 0..40),
        ) {
            let (mut revoked, mut model) = (Revoked::default(), BTreeMap::new());
            for (id, token, name, before_ms, put) in steps {
                let info = revocation(id, token, name, before_ms);
                if put {
                    model.insert(info.id.clone(), info.clone());
                    revoked.put(info);
                } else {
                    model.remove(&info.id);
                    revoked.remove(&info.id);
                }
            }
            prop_assert_eq!(revoked.len(), model.len());
            for name in 0..3u8 {
                for issued_ms in 0..4u64 {
                    let (token, principal) = (format!("sso:{name}"), format!("jwt:sso:{name}"));
                    let expected = model.values().any(|info| match &info.refuses {
                        Refuses::Token(other) => *other == token,
                        Refuses::IssuedBefore(other, before) => {
                            *other == principal && issued_ms < *before
                        }
                    });
                    prop_assert_eq!(revoked.refuses(Some(&token), &principal, issued_ms), expected);
                }
            }
        }
    }

    #[test]
    fn a_revocation_survives_its_record() {
        for token in [true, false] {
            let info = revocation(1, token, 2, 3);
            assert_eq!(of("1", record(&info)), Ok(info));
        }
        assert!(of("1", RevocationRecord::default()).is_err());
        let both = RevocationRecord {
            principal: "jwt:sso:a".to_owned(),
            jti: "sso:b".to_owned(),
            ..RevocationRecord::default()
        };
        assert!(of("1", both).is_err());
    }
}
