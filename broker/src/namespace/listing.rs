//! Paged lists of tenants, namespaces and topics over the metadata store's scans.
//!
//! A page that was begun earlier continues by name in the newest state: a list that takes long
//! sees some changes and not others, but never an item twice. Subtrees that do not matter are
//! jumped over, so that listing tenants does not read a million topics. One request of a caller
//! reads a bounded number of keys, however few of them the caller may see (I13): its page ends
//! there, with the place where the next one goes on.

use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::scan;
use aquifer_metadata::store::{MetadataStore, Versioned};
use aquifer_model::limits::METADATA_PAGE_KEYS_MAX;
use aquifer_protocol_api::admin::{Page, PageRequest};

use crate::error::BrokerError;

/// Items of a page when the caller does not say.
const PAGE_ITEMS_DEFAULT: usize = 100;
/// Keys that one page reads at most, about.
pub(crate) const KEYS_READ_MAX: usize = 20 * METADATA_PAGE_KEYS_MAX;
/// Scans of one page at most that find no item.
const EMPTY_SCANS_MAX: usize = 32;
/// Keys of the first scan behind a subtree that was jumped over: another one may follow at once.
const KEYS_AFTER_JUMP: usize = 16;
/// How much more a scan reads when the one before was not enough.
const KEYS_GROWTH: usize = 4;
/// Sorts after everything that a key may contain.
const AFTER_ALL: char = '\u{7f}';

/// What a key means to a list.
pub(crate) enum Listed<T> {
    /// An item, and where it continues if it is the last of a page.
    Item(T, String),
    /// An item that is not shown, and where a page continues that ends with it.
    Hidden(String),
    /// Nothing; go on with the next key.
    Skip,
    /// Nothing, like everything else that begins with this prefix.
    SkipUnder(String),
}

/// Which kind of list.
pub(crate) struct Lister<'a> {
    /// The store.
    pub(crate) store: &'a dyn MetadataStore,
    /// What all keys begin with.
    pub(crate) prefix: String,
}

/// What a page has read, and reads next.
struct Reading {
    /// Keys of the next scan.
    keys: usize,
    keys_read: usize,
    scans: usize,
}

impl Reading {
    fn new(limit: usize) -> Reading {
        Reading {
            keys: (limit + 1).min(METADATA_PAGE_KEYS_MAX),
            keys_read: 0,
            scans: 0,
        }
    }

    fn read(&mut self, keys: usize) {
        self.keys_read += keys;
        self.scans += 1;
    }

    /// The scan ended before the page was full.
    fn goes_on(&mut self) {
        self.keys = (self.keys * KEYS_GROWTH).min(METADATA_PAGE_KEYS_MAX);
    }

    fn jumps(&mut self) {
        self.keys = KEYS_AFTER_JUMP;
    }

    fn is_enough(&self, items: usize) -> bool {
        self.keys_read >= KEYS_READ_MAX || self.scans >= items + EMPTY_SCANS_MAX
    }
}

impl Lister<'_> {
    /// Reads a page, however many keys lie between its items; `look` says what each key means.
    pub(crate) async fn page<T, F>(
        &self,
        request: &PageRequest,
        start_after: Option<String>,
        look: F,
    ) -> Result<Page<T>, BrokerError>
    where
        F: Fn(&Versioned) -> Result<Listed<T>, BrokerError>,
    {
        self.read(request, start_after, false, look).await
    }

    /// The same for a caller that comes back: after a bounded number of keys the page has fewer
    /// items than were asked for, or none, and says where it goes on.
    pub(crate) async fn page_for_caller<T, F>(
        &self,
        request: &PageRequest,
        start_after: Option<String>,
        look: F,
    ) -> Result<Page<T>, BrokerError>
    where
        F: Fn(&Versioned) -> Result<Listed<T>, BrokerError>,
    {
        self.read(request, start_after, true, look).await
    }

    async fn read<T, F>(
        &self,
        request: &PageRequest,
        start_after: Option<String>,
        is_bounded: bool,
        look: F,
    ) -> Result<Page<T>, BrokerError>
    where
        F: Fn(&Versioned) -> Result<Listed<T>, BrokerError>,
    {
        let limit = page_items(request);
        let mut items: Vec<T> = Vec::new();
        let mut after = start_after;
        let mut next_name = None;
        let mut reading = Reading::new(limit);
        'pages: loop {
            // Without a name the next page would begin where this one did.
            if is_bounded && next_name.is_some() && reading.is_enough(items.len()) {
                return Ok(Page {
                    items,
                    next: next_name,
                });
            }
            let keys = reading.keys;
            let page = scan::page_behind(self.store, &self.prefix, after.as_deref(), keys);
            let page = page.await?;
            reading.read(page.items.len());
            let end = page.next.is_none();
            for versioned in &page.items {
                match look(versioned)? {
                    Listed::Item(..) if items.len() == limit => {
                        return Ok(Page {
                            items,
                            next: next_name,
                        });
                    }
                    Listed::Item(item, name) => {
                        items.push(item);
                        next_name = Some(name);
                        after = Some(versioned.key.clone());
                    }
                    Listed::Hidden(name) => {
                        next_name = Some(name);
                        after = Some(versioned.key.clone());
                    }
                    Listed::Skip => after = Some(versioned.key.clone()),
                    Listed::SkipUnder(prefix) => {
                        after = Some(behind(&prefix));
                        reading.jumps();
                        continue 'pages;
                    }
                }
            }
            if end {
                return Ok(Page { items, next: None });
            }
            reading.goes_on();
        }
    }
}

/// Most items of a page.
pub(crate) fn page_items(request: &PageRequest) -> usize {
    match request.limit {
        0 => PAGE_ITEMS_DEFAULT,
        limit => limit.min(METADATA_PAGE_KEYS_MAX),
    }
}

/// Where a list continues behind everything that begins with a prefix.
pub(crate) fn behind(prefix: &str) -> String {
    format!("{prefix}{AFTER_ALL}")
}

/// The key of a scanned item.
pub(crate) fn parse(versioned: &Versioned) -> Result<Key, BrokerError> {
    Ok(versioned.key.parse::<Key>()?)
}

/// What `t/` means to a list of tenants.
pub(crate) fn look_tenant(versioned: &Versioned) -> Result<Listed<String>, BrokerError> {
    Ok(match parse(versioned)? {
        Key::Tenant(tenant) => Listed::Item(tenant.clone(), tenant),
        Key::Namespace(namespace) => Listed::SkipUnder(keys::tenant_prefix(namespace.tenant())),
        Key::Topic(topic) | Key::SegmentPage(topic, ..) => {
            Listed::SkipUnder(keys::tenant_prefix(topic.namespace().tenant()))
        }
        _ => Listed::Skip,
    })
}
