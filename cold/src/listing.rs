//! Listings of more than a page.
//!
//! A store lists one page at a time and keeps no state between them: an object that is there all
//! the time is shown exactly once, one that comes or goes meanwhile may be shown or not.

use crate::error::ColdResult;
use crate::store::{ColdStore, Listed};

/// Objects of one page: a few MiB. A store over files walks the whole directory for each page, so
/// pages are not small.
const PAGE_OBJECTS: usize = 10_000;

/// Shows every object below a path to `visit`, in the order of the names, a page in memory at a
/// time, and ends where `visit` fails. The inner result is what `visit` says.
///
/// # Errors
/// Those of [`ColdStore::list`]; `visit` may have seen some of the objects by then.
pub async fn each<E>(
    store: &dyn ColdStore,
    below: &str,
    mut visit: impl FnMut(Listed) -> Result<(), E>,
) -> ColdResult<Result<(), E>> {
    let mut after: Option<String> = None;
    loop {
        let page = store.list(below, after.as_deref(), PAGE_OBJECTS).await?;
        let is_last = page.len() < PAGE_OBJECTS;
        after = page.last().map(|object| object.name.clone());
        for object in page {
            if let Err(error) = visit(object) {
                return Ok(Err(error));
            }
        }
        if is_last {
            return Ok(Ok(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::error::ColdError;
    use crate::testing::{Fault, MemoryColdStore, Op};

    fn name(number: usize) -> String {
        format!("c/data/{number:06}")
    }

    async fn filled(objects: usize) -> MemoryColdStore {
        let store = MemoryColdStore::default();
        for name in (0..objects).map(name) {
            store.put_new(&name, Bytes::new()).await.unwrap();
        }
        store.put_new("c/other/x", Bytes::new()).await.unwrap();
        store
    }

    #[tokio::test]
    async fn every_object_below_a_path_is_shown_once_and_in_order() {
        for (objects, pages) in [(0, 1), (3, 1), (PAGE_OBJECTS, 2), (PAGE_OBJECTS + 1, 2)] {
            let store = filled(objects).await;
            let mut seen = Vec::new();
            let listed = each(&store, "c/data", |object| {
                seen.push(object.name);
                Ok::<_, ()>(())
            });
            assert_eq!(listed.await, Ok(Ok(())));
            assert_eq!(seen, (0..objects).map(name).collect::<Vec<_>>());
            assert_eq!(store.count(Op::List), pages, "{objects} objects");
        }
    }

    #[tokio::test]
    async fn it_ends_where_the_visitor_fails() {
        let store = filled(PAGE_OBJECTS + 1).await;
        let mut seen = 0;
        let listed = each(&store, "", |object| {
            seen += 1;
            match seen {
                3 => Err(object.name),
                _ => Ok(()),
            }
        });
        assert_eq!(listed.await, Ok(Err(name(2))));
        assert_eq!((seen, store.count(Op::List)), (3, 1));
    }

    #[tokio::test]
    async fn a_page_that_fails_is_an_error() {
        let store = filled(PAGE_OBJECTS).await;
        let mut pages = 0;
        store.judge(move |op, _| {
            pages += usize::from(op == Op::List);
            (pages == 2).then_some(Fault::Fails)
        });
        let mut seen = 0;
        let listed = each(&store, "c/data", |_| {
            seen += 1;
            Ok::<_, ()>(())
        });
        let listed = listed.await;
        assert!(
            matches!(listed, Err(ColdError::Unavailable(_))),
            "{listed:?}"
        );
        assert_eq!(seen, PAGE_OBJECTS);
    }
}
