//! Paged lists of tenants, namespaces and topics over the metadata store's scans.
//!
//! A page that was begun earlier continues by name in the newest state: a list that takes long
//! sees some changes and not others, but never an item twice. Subtrees that do not matter are
//! jumped over, so that listing tenants does not read a million topics.

use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::scan;
use aquifer_metadata::store::{MetadataStore, Versioned};
use aquifer_model::limits::METADATA_PAGE_KEYS_MAX;
use aquifer_protocol_api::admin::{Page, PageRequest};

use crate::error::BrokerError;

/// Items of a page when the caller does not say.
const PAGE_ITEMS_DEFAULT: usize = 100;
/// Sorts after everything that a key may contain.
const AFTER_ALL: char = '\u{7f}';

/// What a key means to a list.
pub(crate) enum Listed<T> {
    /// An item, and where it continues if it is the last of a page.
    Item(T, String),
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

impl Lister<'_> {
    /// Reads a page; `look` says what each key means.
    pub(crate) async fn page<T, F>(
        &self,
        request: &PageRequest,
        start_after: Option<String>,
        look: F,
    ) -> Result<Page<T>, BrokerError>
    where
        F: Fn(&Versioned) -> Result<Listed<T>, BrokerError>,
    {
        let limit = page_items(request);
        let mut items: Vec<T> = Vec::new();
        let mut after = start_after;
        let mut next_name = None;
        'pages: loop {
            let page = scan::page_behind(self.store, &self.prefix, after.as_deref(), limit + 1);
            let page = page.await?;
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
                    Listed::Skip => after = Some(versioned.key.clone()),
                    Listed::SkipUnder(prefix) => {
                        after = Some(behind(&prefix));
                        continue 'pages;
                    }
                }
            }
            if end {
                return Ok(Page { items, next: None });
            }
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
