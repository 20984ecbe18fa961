//! Where a cluster's objects are: places with a number, each with a record in metadata
//! (`locations/N`) and a marker in the store, which repeat the same random id.
//!
//! Invariants:
//! - A ledger names its place by the number, so that objects stay readable when new ones go
//!   elsewhere. A record is never removed.
//! - A missing bucket looks like missing objects. What a store says about absence counts only after
//!   its marker was read and is right ([`Location::check`]); nothing is written or deleted in a
//!   place with another marker, or with none where one was seen.
//! - What another cluster owns, from whose backup topics were restored, is only read.
//! - Places are opened when they are first needed: a store that is away keeps no process from
//!   starting, and loading a topic asks for none.

mod foreign;

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::Arc;

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::store::{MetadataStore, Versioned};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_metadata::{keys, record, scan};
use aquifer_model::id::LocationId;
use aquifer_proto::v1;
use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::rng::SharedRng;
use bytes::Bytes;
use tokio::sync::Mutex;

use crate::error::{ColdError, ColdResult};
use crate::read_only::ReadOnly;
use crate::store::ColdStore;

/// Places that a cluster may have had.
const LOCATIONS_MAX: usize = 10_000;
/// The first line of a marker.
const MARKER: &str = "aquifer cold location 1";
/// Bytes of a marker, at most.
const MARKER_BYTES_MAX: u64 = 4096;

/// Opens the store at a URL.
pub type Opener = Box<dyn Fn(&str) -> ColdResult<Arc<dyn ColdStore>> + Send + Sync>;

/// A place whose store is open.
pub struct Location {
    /// What ledgers call it.
    pub number: u32,
    /// What its marker says.
    pub id: LocationId,
    /// Where it is.
    pub url: String,
    /// The cluster that owns what is there.
    pub owner: String,
    /// Whether that is another one: then its objects are only read.
    pub is_foreign: bool,
    /// Its objects.
    pub store: Arc<dyn ColdStore>,
    marker: String,
}

/// A place as metadata or a backup describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceOfObjects {
    /// What its marker says.
    pub id: LocationId,
    /// Where it was seen last.
    pub url: String,
    /// The cluster that owns what is there.
    pub owner: String,
}

/// The places of a cluster.
pub struct Locations {
    metadata: Arc<dyn MetadataStore>,
    clock: SharedClock,
    rng: SharedRng,
    cluster: String,
    /// Where new objects go; empty: nowhere.
    url: String,
    opener: Opener,
    /// Held while it is opened, so that it is opened once.
    primary: Mutex<Option<Arc<Location>>>,
    /// Never held while a store is asked.
    all: Mutex<BTreeMap<u32, Arc<Location>>>,
}

/// A record of a place.
struct Known {
    number: u32,
    id: LocationId,
    url: String,
    marked: bool,
    created_ms: u64,
    /// The cluster that owns it; empty: this one.
    owner: String,
}

impl Known {
    fn decode(stored: &Versioned) -> ColdResult<Known> {
        let damaged = |reason: &str| MetadataError::Damaged {
            key: stored.key.clone(),
            reason: reason.to_owned(),
        };
        let Ok(keys::Key::Location(number)) = stored.key.parse() else {
            return Err(damaged("it is no location's key").into());
        };
        let record: v1::LocationRecord = record::decode(stored)?;
        let id = LocationId::try_from(record.location_id.as_ref());
        let id = id.map_err(|_| damaged("its id is malformed"))?;
        Ok(Known {
            number,
            id,
            url: record.url,
            marked: record.marked,
            created_ms: record.created_ms,
            owner: record.cluster,
        })
    }

    fn value(&self) -> Bytes {
        record::encode(v1::LocationRecord {
            location_id: Bytes::copy_from_slice(&self.id.0),
            url: self.url.clone(),
            created_ms: self.created_ms,
            marked: self.marked,
            cluster: self.owner.clone(),
        })
    }

    fn is_foreign(&self) -> bool {
        !self.owner.is_empty()
    }
}

impl Locations {
    /// Opens nothing yet. New objects go to `url`; an empty one means nowhere.
    #[must_use]
    pub fn new(
        metadata: Arc<dyn MetadataStore>,
        (clock, rng): (SharedClock, SharedRng),
        cluster: &str,
        url: &str,
        opener: Opener,
    ) -> Locations {
        Locations {
            metadata,
            clock,
            rng,
            cluster: cluster.to_owned(),
            url: url.to_owned(),
            opener,
            primary: Mutex::default(),
            all: Mutex::default(),
        }
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Whether new objects go anywhere.
    #[must_use]
    pub fn takes_objects(&self) -> bool {
        !self.url.is_empty()
    }

    /// Where new objects go. The first call notes the place in metadata and leaves a marker there.
    ///
    /// # Errors
    /// `Config` when none is set; `WrongPlace` when it has another cluster's marker, or has lost
    /// its own; those of the store.
    pub async fn primary(&self) -> ColdResult<Arc<Location>> {
        if !self.takes_objects() {
            return Err(ColdError::Config(
                "no place for objects is set: give --cold-store URL".to_owned(),
            ));
        }
        let mut opened = self.primary.lock().await;
        if let Some(primary) = &*opened {
            return Ok(Arc::clone(primary));
        }
        let store = (self.opener)(&self.url)?;
        let known = self.known().await?;
        let found = read_marker(&*store, &marker_name(&self.cluster)).await?;
        let known = match found {
            Some(id) => match known.into_iter().find(|known| known.id == id) {
                Some(known) if known.is_foreign() => {
                    return Err(self.wrong(
                        "it has objects of a cluster of the same name that a backup was restored \
                         from, and these are only read: give another prefix"
                            .to_owned(),
                    ));
                }
                Some(known) => known,
                None => {
                    return Err(self.wrong(format!(
                        "its marker {id} is not one of this cluster: give another prefix, or restore \
                         the metadata that belongs to it"
                    )));
                }
            },
            None => {
                let known = known.into_iter().find(|known| self.is_configured(known));
                let known = match known {
                    Some(known) if known.marked => {
                        let reason = format!("its marker {} is lost", marker_name(&self.cluster));
                        return Err(self.wrong(reason));
                    }
                    Some(known) => known,
                    None => self.note().await?,
                };
                self.mark(&*store, known.id).await?;
                known
            }
        };
        let location = Arc::new(Location {
            number: known.number,
            id: known.id,
            url: self.url.clone(),
            owner: self.cluster.clone(),
            is_foreign: false,
            store,
            marker: marker_name(&self.cluster),
        });
        location.check().await?;
        self.note_seen(&known).await?;
        tracing::info!(
            location = location.number,
            url = self.url,
            "cold store is open"
        );
        let mut all = self.all.lock().await;
        all.insert(location.number, Arc::clone(&location));
        *opened = Some(Arc::clone(&location));
        Ok(location)
    }

    /// The place of a number.
    ///
    /// # Errors
    /// `Config` when metadata knows none, or its URL cannot be opened; those of the store.
    pub async fn get(&self, number: u32) -> ColdResult<Arc<Location>> {
        if let Some(location) = self.all.lock().await.get(&number) {
            return Ok(Arc::clone(location));
        }
        let known = self.record_of(number).await?;
        if self.takes_objects() && self.is_configured(&known) {
            return self.primary().await;
        }
        let recorded = self.open_recorded(number, known).await;
        let Err(error) = recorded else {
            return recorded;
        };
        // The configured place may be this one under another URL: its marker says so. It is asked
        // last: while it is away, other places are read.
        if self.takes_objects() {
            match self.primary().await {
                Ok(primary) if primary.number == number => return Ok(primary),
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the configured cold store is not open"),
            }
        }
        Err(error)
    }

    async fn open_recorded(&self, number: u32, known: Known) -> ColdResult<Arc<Location>> {
        let (owner, is_foreign) = (self.owner_of(&known), known.is_foreign());
        let store = (self.opener)(&known.url)?;
        let location = Arc::new(Location {
            number,
            id: known.id,
            store: match is_foreign {
                true => Arc::new(ReadOnly(store)),
                false => store,
            },
            url: known.url,
            marker: marker_name(&owner),
            owner,
            is_foreign,
        });
        location.check().await?;
        let mut all = self.all.lock().await;
        all.insert(number, Arc::clone(&location));
        Ok(location)
    }

    /// What metadata says of a place; its store is not asked.
    ///
    /// # Errors
    /// `Config` when metadata knows none of the number.
    pub async fn describe(&self, number: u32) -> ColdResult<PlaceOfObjects> {
        let known = self.record_of(number).await?;
        Ok(PlaceOfObjects {
            id: known.id,
            owner: self.owner_of(&known),
            url: known.url,
        })
    }

    /// Opens a place of a cluster, this one or another, and answers what its marker says. Nothing
    /// is noted or written.
    ///
    /// # Errors
    /// `WrongPlace` when it has no marker of the cluster; those of the store.
    pub async fn visit(
        &self,
        url: &str,
        owner: &str,
    ) -> ColdResult<(LocationId, Arc<dyn ColdStore>)> {
        let store: Arc<dyn ColdStore> = Arc::new(ReadOnly((self.opener)(url)?));
        let marker = marker_name(owner);
        let found = read_marker(&*store, &marker).await?;
        let id = found.ok_or_else(|| ColdError::WrongPlace {
            url: url.to_owned(),
            reason: format!("it has no marker {marker}"),
        })?;
        Ok((id, store))
    }

    /// Gives a place the next number, or answers the record of the same place that has one.
    async fn add(&self, is_same: impl Fn(&Known) -> bool, mut new: Known) -> ColdResult<Known> {
        loop {
            let mut all = self.known().await?;
            if let Some(same) = all.iter().position(&is_same) {
                // Another process was faster, or it is this very change.
                return Ok(all.swap_remove(same));
            }
            new.number = all.last().map_or(0, |known| known.number).saturating_add(1);
            let decide = |stored: Option<Versioned>| match stored {
                Some(_) => Change::none(false),
                None => Change::put(keys::CLUSTER_PARTITION, new.value(), true),
            };
            let key = keys::location(new.number);
            let added = self
                .metadata
                .update(&key, &[], |stored| ready(Ok(decide(stored))));
            if added
                .await
                .map_err(UpdateError::<ColdError>::flatten)?
                .answer
            {
                return Ok(new);
            }
        }
    }

    /// Changes where the record of a place says that it is.
    async fn rewrite(&self, number: u32, change: impl Fn(&mut Known)) -> ColdResult<()> {
        let decide = |stored: Option<Versioned>| {
            let stored = stored.ok_or_else(|| unknown(number))?;
            let mut known = Known::decode(&stored)?;
            change(&mut known);
            let value = known.value();
            Ok(match value == stored.value {
                true => Change::none(()),
                false => Change::put(keys::CLUSTER_PARTITION, value, ()),
            })
        };
        let key = keys::location(number);
        let rewritten = self
            .metadata
            .update(&key, &[], |stored| ready(decide(stored)));
        rewritten.await.map(drop).map_err(UpdateError::flatten)
    }

    async fn record_of(&self, number: u32) -> ColdResult<Known> {
        let stored = self.metadata.get(&keys::location(number)).await?;
        Known::decode(&stored.ok_or_else(|| unknown(number))?)
    }

    fn owner_of(&self, known: &Known) -> String {
        match known.is_foreign() {
            true => known.owner.clone(),
            false => self.cluster.clone(),
        }
    }

    /// Whether this is the record of the configured place, by its URL.
    fn is_configured(&self, known: &Known) -> bool {
        known.url == self.url && !known.is_foreign()
    }

    async fn known(&self) -> ColdResult<Vec<Known>> {
        let found = scan::all(&*self.metadata, keys::LOCATIONS_PREFIX, LOCATIONS_MAX).await?;
        found.0.iter().map(Known::decode).collect()
    }

    fn wrong(&self, reason: String) -> ColdError {
        ColdError::WrongPlace {
            url: self.url.clone(),
            reason,
        }
    }

    /// A new number and a new id for the configured place.
    async fn note(&self) -> ColdResult<Known> {
        let new = Known {
            number: 0,
            id: LocationId(self.rng.id16()),
            url: self.url.clone(),
            marked: false,
            created_ms: self.clock.wall_ms(),
            owner: String::new(),
        };
        self.add(|known| self.is_configured(known), new).await
    }

    async fn mark(&self, store: &dyn ColdStore, id: LocationId) -> ColdResult<()> {
        let text = format!("{MARKER}\n{id}\n{}\n", self.cluster);
        let put = store
            .put_new(&marker_name(&self.cluster), text.into())
            .await;
        match put {
            // Whose it is is read next.
            Err(ColdError::AlreadyExists(_)) => Ok(()),
            put => put,
        }
    }

    /// Notes that the marker of a place was seen, and under which URL.
    async fn note_seen(&self, known: &Known) -> ColdResult<()> {
        if known.marked && known.url == self.url {
            return Ok(());
        }
        let seen = |known: &mut Known| {
            known.marked = true;
            known.url.clone_from(&self.url);
        };
        self.rewrite(known.number, seen).await
    }
}

impl Location {
    /// Whether the store is the place that metadata means: what it says of absence counts then.
    ///
    /// # Errors
    /// `WrongPlace`; those of the store.
    pub async fn check(&self) -> ColdResult<()> {
        let found = read_marker(&*self.store, &self.marker).await?;
        let reason = match found {
            Some(id) if id == self.id => return Ok(()),
            Some(id) => format!("its marker says {id}, not {}", self.id),
            None => format!("it has no marker {}", self.marker),
        };
        Err(ColdError::WrongPlace {
            url: self.url.clone(),
            reason,
        })
    }
}

fn unknown(number: u32) -> ColdError {
    ColdError::Config(format!("metadata has no location {number}"))
}

fn marker_name(cluster: &str) -> String {
    format!("{cluster}/location")
}

/// What the marker of a cluster in a store says; `None` where it has none.
///
/// # Errors
/// Those of the store; `Damaged`.
pub async fn marker_of(store: &dyn ColdStore, cluster: &str) -> ColdResult<Option<LocationId>> {
    read_marker(store, &marker_name(cluster)).await
}

async fn read_marker(store: &dyn ColdStore, name: &str) -> ColdResult<Option<LocationId>> {
    let damaged = |reason: &str| ColdError::Damaged {
        name: name.to_owned(),
        reason: reason.to_owned(),
    };
    let size = match store.size(name).await {
        Err(ColdError::NotFound(_)) => return Ok(None),
        size => size?,
    };
    if size > MARKER_BYTES_MAX {
        return Err(damaged("it is too long for a marker"));
    }
    let bytes = store.get(name, 0..size).await?;
    let text = std::str::from_utf8(&bytes).map_err(|_| damaged("it is no text"))?;
    let mut lines = text.lines();
    if lines.next() != Some(MARKER) {
        return Err(damaged("it is no marker"));
    }
    let id = lines.next().and_then(|line| line.parse().ok());
    id.map(Some).ok_or_else(|| damaged("it has no id"))
}
