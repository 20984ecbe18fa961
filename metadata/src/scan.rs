//! Scans of more than a page. They are for starts, audits and listings on demand; nothing on the
//! path of a message may wait for one.
//!
//! A store serves the snapshot of a scan for a while only (etcd until it is compacted, embedded
//! until the scan has paused for too long). There are three answers to that, and every scan of more
//! than a page is one of them:
//! - [`each`] shows one state: it begins again, and so does what it has collected.
//! - [`Pages`] is for work on keys that have nothing to do with each other: it goes on behind the
//!   last key, in a newer snapshot.
//! - [`page_behind`] is for lists whose reader comes back for the next page, and for walks that
//!   jump: each page is of the newest state.

use std::collections::BTreeSet;

use aquifer_model::limits::METADATA_PAGE_KEYS_MAX;

use crate::error::{MetadataError, MetadataResult};
use crate::store::{MetadataStore, PageToken, Revision, ScanPage, Versioned};

/// How often a scan may lose its snapshot.
const RESTARTS_MAX: usize = 5;
/// Sorts after every character of a key.
const AFTER_EVERY_KEY: char = '\x7f';

/// Shows every key below a prefix, at one revision and in order, to `visit`, a page in memory at a
/// time. When the snapshot is gone it begins again with what `start` gives; so `visit` must change
/// nothing else, but for what may be done again with the same key or a newer one.
///
/// # Errors
/// What `visit` says; those of [`MetadataStore::scan`], also after the snapshot was lost a few
/// times.
pub async fn each<S, E: From<MetadataError>>(
    store: &dyn MetadataStore,
    prefix: &str,
    start: impl Fn() -> S,
    mut visit: impl FnMut(&mut S, &Versioned) -> Result<(), E>,
) -> Result<(S, Revision), E> {
    let mut restarts = 0;
    'restart: loop {
        let mut seen = start();
        let mut page = None;
        loop {
            let goes_on = page.is_some();
            let found = match store.scan(prefix, page, METADATA_PAGE_KEYS_MAX).await {
                // The first page needs no snapshot of before: then the store itself is away.
                Err(MetadataError::Unavailable(reason)) if goes_on && restarts < RESTARTS_MAX => {
                    tracing::debug!(prefix, reason, "a scan starts again");
                    restarts += 1;
                    continue 'restart;
                }
                found => found?,
            };
            for item in &found.items {
                visit(&mut seen, item)?;
            }
            page = found.next;
            if page.is_none() {
                return Ok((seen, found.revision));
            }
        }
    }
}

/// All keys below a prefix at one revision, but at most `keys_max`.
///
/// # Errors
/// `Invalid` when there are more; otherwise those of [`each`].
pub async fn all(
    store: &dyn MetadataStore,
    prefix: &str,
    keys_max: usize,
) -> MetadataResult<(Vec<Versioned>, Revision)> {
    each(store, prefix, Vec::new, |items, item| {
        if items.len() == keys_max {
            return Err(MetadataError::Invalid(format!(
                "there are more than {keys_max} keys below {prefix:?}"
            )));
        }
        items.push(item.clone());
        Ok(())
    })
    .await
}

/// The pages below a prefix, in order, for work that takes its time between them. Each page is of
/// one state, but later ones may be of a later state than the first: a key that is there all the
/// time is shown exactly once.
pub struct Pages<'a> {
    store: &'a dyn MetadataStore,
    prefix: &'a str,
    next: Next,
}

enum Next {
    First,
    After(PageToken),
    End,
}

impl<'a> Pages<'a> {
    /// Begins before the first key.
    #[must_use]
    pub fn new(store: &'a dyn MetadataStore, prefix: &'a str) -> Pages<'a> {
        Pages {
            store,
            prefix,
            next: Next::First,
        }
    }

    /// Whether all pages were read.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        matches!(self.next, Next::End)
    }

    /// The keys of the next page; `None` behind the last. After an error the same page is next.
    ///
    /// # Errors
    /// Those of [`MetadataStore::scan`], also after the snapshot was lost a few times.
    pub async fn next(&mut self) -> MetadataResult<Option<Vec<Versioned>>> {
        let found = match &self.next {
            Next::First => self.page(None).await?,
            Next::After(token) => match self.page(Some(token.clone())).await {
                Err(MetadataError::Unavailable(reason)) => {
                    tracing::debug!(
                        prefix = self.prefix,
                        reason,
                        "a scan goes on in a newer snapshot"
                    );
                    let limit = METADATA_PAGE_KEYS_MAX;
                    page_behind(self.store, self.prefix, Some(&token.after), limit).await?
                }
                found => found?,
            },
            Next::End => return Ok(None),
        };
        self.next = found.next.map_or(Next::End, Next::After);
        Ok(Some(found.items))
    }

    async fn page(&self, token: Option<PageToken>) -> MetadataResult<ScanPage> {
        let limit = METADATA_PAGE_KEYS_MAX;
        self.store.scan(self.prefix, token, limit).await
    }
}

/// A page of the newest state: the keys below a prefix that come behind a place, which need not be
/// a key.
///
/// # Errors
/// Those of [`MetadataStore::scan`], also after the snapshot was lost a few times.
pub async fn page_behind(
    store: &dyn MetadataStore,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> MetadataResult<ScanPage> {
    let Some(after) = after else {
        return store.scan(prefix, None, limit).await;
    };
    let mut restarts = 0;
    loop {
        // A scan begins at a place only within a snapshot: a first page tells its revision.
        let newest = store.scan(prefix, None, 1).await?.revision;
        let token = PageToken {
            after: after.to_owned(),
            revision: newest,
        };
        match store.scan(prefix, Some(token), limit).await {
            // The store changes so fast that the snapshot is gone again.
            Err(MetadataError::Unavailable(_)) if restarts < RESTARTS_MAX => restarts += 1,
            found => return found,
        }
    }
}

/// The distinct names that follow a prefix, up to the next `/`, still escaped, in order: the
/// tenants below `t/`, the namespaces below `t/T/`. Returns at most `names_max`. What is below a
/// name is skipped, not read: the cost depends on the names alone.
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

#[cfg(test)]
mod tests;
