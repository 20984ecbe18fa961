//! Whole scans, for callers that need more than a page. They are for starts, audits and listings
//! on demand; nothing on the path of a message may wait for one.

use std::collections::BTreeSet;

use crate::error::{MetadataError, MetadataResult};
use crate::store::{MetadataStore, PageToken, Revision, Versioned};

/// Keys that a whole scan asks for at once.
const PAGE_KEYS: usize = 500;
/// How often a scan is begun anew when its snapshot is gone.
const RESTARTS_MAX: usize = 5;
/// Sorts after every character of a key.
const AFTER_EVERY_KEY: char = '\x7f';

/// All keys below a prefix at one revision, but at most `keys_max`.
///
/// # Errors
/// `Invalid` when there are more; otherwise those of [`MetadataStore::scan`], where a lost
/// snapshot is tried again a few times.
pub async fn all(
    store: &dyn MetadataStore,
    prefix: &str,
    keys_max: usize,
) -> MetadataResult<(Vec<Versioned>, Revision)> {
    let mut restarts = 0;
    loop {
        match once(store, prefix, keys_max).await {
            Err(MetadataError::Unavailable(_)) if restarts < RESTARTS_MAX => restarts += 1,
            other => return other,
        }
    }
}

async fn once(
    store: &dyn MetadataStore,
    prefix: &str,
    keys_max: usize,
) -> MetadataResult<(Vec<Versioned>, Revision)> {
    let mut items = Vec::new();
    let mut page = None;
    loop {
        let found = store.scan(prefix, page, PAGE_KEYS).await?;
        items.extend(found.items);
        if items.len() > keys_max {
            return Err(MetadataError::Invalid(format!(
                "there are more than {keys_max} keys below {prefix:?}"
            )));
        }
        match found.next {
            Some(next) => page = Some(next),
            None => return Ok((items, found.revision)),
        }
    }
}

/// The distinct names that follow a prefix, up to the next `/`, still escaped, in order: the
/// tenants below `t/`, the namespaces below `t/T/`. Returns at most
/// `names_max`. What is below a name is skipped, not read: the cost depends on the names alone.
///
/// # Errors
/// Those of [`MetadataStore::scan`].
pub async fn children(
    store: &dyn MetadataStore,
    prefix: &str,
    names_max: usize,
) -> MetadataResult<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let mut page: Option<PageToken> = None;
    while names.len() < names_max {
        let found = store.scan(prefix, page.take(), 1).await?;
        let Some(first) = found.items.first() else {
            break;
        };
        let below = first.key.strip_prefix(prefix).unwrap_or_default();
        let (name, deeper) = match below.split_once('/') {
            Some((name, _)) => (name, true),
            None => (below, false),
        };
        // Between `t/a` and `t/a/…` come `t/a-b` and its like: only what is below is skipped.
        let after = if deeper {
            format!("{prefix}{name}/{AFTER_EVERY_KEY}")
        } else {
            first.key.clone()
        };
        names.insert(name.to_owned());
        if found.next.is_none() {
            break;
        }
        page = Some(PageToken {
            after,
            revision: found.revision,
        });
    }
    Ok(names)
}
