//! The bookies of the cluster: those that are registered now, and those that have a cookie.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_metadata::record::Record;
use aquifer_metadata::store::{MetadataStore, Versioned};
use aquifer_metadata::{keys, record, scan};
use aquifer_model::id::BookieId;
use aquifer_model::inventory::BookieView;
use aquifer_proto::v1;

use crate::error::LedgerError;

/// More bookies than a cluster has.
const BOOKIES_MAX: usize = 10_000;

/// Unreadable keys and values that are remembered.
const DAMAGED_LISTED_MAX: usize = 100;

/// A bookie as metadata shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its identity.
    pub id: BookieId,
    /// What it announces, while it is registered.
    pub registration: Option<v1::BookieRecord>,
    /// Its permanent record. Without one it was never properly set up, or was removed by hand.
    pub cookie: Option<v1::CookieRecord>,
}

impl Member {
    /// Whether an operator wants it empty, or has removed it.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        let leaving = |cookie: &v1::CookieRecord| cookie.draining || cookie.decommissioned_ms > 0;
        self.cookie.as_ref().is_some_and(leaving)
    }

    /// Whether it lost synced data, and is not restored yet.
    #[must_use]
    pub fn is_in_limbo(&self) -> bool {
        let cookie = self.cookie.as_ref();
        cookie.is_some_and(|cookie| cookie.limbo_since_ms > 0)
    }

    /// Whether this incarnation is gone for good.
    #[must_use]
    pub fn is_decommissioned(&self) -> bool {
        let cookie = self.cookie.as_ref();
        cookie.is_some_and(|cookie| cookie.decommissioned_ms > 0)
    }
}

impl Member {
    /// What it is, in a word.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match &self.registration {
            _ if self.is_decommissioned() => "decommissioned",
            Some(_) if self.is_leaving() => "draining",
            None if self.is_leaving() => "away, draining",
            Some(_) if self.is_in_limbo() => "limbo",
            Some(registration) if registration.read_only => "read-only",
            Some(_) => "writable",
            None => BookieView::AWAY,
        }
    }

    /// The same for people.
    #[must_use]
    pub fn view(&self) -> BookieView {
        let registration = self.registration.clone().unwrap_or_default();
        let cookie = self.cookie.clone().unwrap_or_default();
        BookieView {
            bookie: self.id,
            state: self.state(),
            address: registration.address,
            zone: registration.zone,
            free_bytes: registration.free_bytes,
            capacity_bytes: registration.capacity_bytes,
            draining: cookie.draining,
            decommissioned_ms: cookie.decommissioned_ms,
            limbo_since_ms: cookie.limbo_since_ms,
            directories: cookie.directories,
            ledgers: None,
        }
    }
}

/// All bookies, at about one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    all: BTreeMap<BookieId, Member>,
    damaged: Vec<String>,
}

impl Members {
    /// Reads registrations and cookies. One that cannot be read does not end it: a bookie that is
    /// registered is there, whatever it says; a cookie asks for nothing.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn load(store: &dyn MetadataStore) -> Result<Members, LedgerError> {
        let mut members = Members::default();
        let (cookies, _) = scan::all(store, keys::COOKIES_PREFIX, BOOKIES_MAX).await?;
        for item in &cookies {
            match item.key.parse() {
                Ok(keys::Key::Cookie(id)) => {
                    members.entry(id).cookie = members.readable(item);
                }
                _ => members.note(&item.key, "not the key of a cookie"),
            }
        }
        // After the cookies: a bookie that starts meanwhile must not appear to be without one.
        let (registered, _) = scan::all(store, keys::BOOKIES_PREFIX, BOOKIES_MAX).await?;
        for item in &registered {
            match item.key.parse() {
                Ok(keys::Key::Bookie(id)) => {
                    let registration = members.readable(item);
                    members.entry(id).registration = Some(registration.unwrap_or_default());
                }
                _ => members.note(&item.key, "not the key of a bookie"),
            }
        }
        Ok(members)
    }

    fn readable<R: Record>(&mut self, item: &Versioned) -> Option<R> {
        let decoded = record::decode(item);
        decoded
            .map_err(|error| self.note(&item.key, &error.to_string()))
            .ok()
    }

    fn note(&mut self, key: &str, what: &str) {
        tracing::error!(key, what, "what metadata says of a bookie is unreadable");
        if self.damaged.len() < DAMAGED_LISTED_MAX {
            self.damaged.push(format!("{key}: {what}"));
        }
    }

    /// What could not be read, the first of it.
    #[must_use]
    pub fn damaged(&self) -> &[String] {
        &self.damaged
    }

    fn entry(&mut self, id: BookieId) -> &mut Member {
        self.all.entry(id).or_insert(Member {
            id,
            registration: None,
            cookie: None,
        })
    }

    /// A bookie, if anything is known of it.
    #[must_use]
    pub fn get(&self, id: BookieId) -> Option<&Member> {
        self.all.get(&id)
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.all.values()
    }

    /// Whether it is registered now.
    #[must_use]
    pub fn is_registered(&self, id: BookieId) -> bool {
        self.get(id).is_some_and(|m| m.registration.is_some())
    }

    /// Whether an operator wants it empty, or has removed it.
    #[must_use]
    pub fn is_leaving(&self, id: BookieId) -> bool {
        self.get(id).is_some_and(Member::is_leaving)
    }

    /// Those that are registered now.
    #[must_use]
    pub fn registered(&self) -> BTreeSet<BookieId> {
        let registered = self.iter().filter(|member| member.registration.is_some());
        registered.map(|member| member.id).collect()
    }

    /// Those that an operator wants empty, or has removed.
    #[must_use]
    pub fn leaving(&self) -> BTreeSet<BookieId> {
        let leaving = self.iter().filter(|member| member.is_leaving());
        leaving.map(|member| member.id).collect()
    }
}
