use std::sync::Arc;

use aquifer_protocol_api::context::{AuthMethod, Identity, Principal};
use proptest::prelude::*;

use super::*;

fn caller(name: &str) -> RequestContext {
    let identity = Identity {
        name: name.to_owned(),
        groups: Vec::new(),
        method: AuthMethod::Certificate,
        expires_ms: None,
    };
    RequestContext::of(Principal::Named(Arc::new(identity)), "test")
}

fn request(after: &str) -> PageRequest {
    PageRequest {
        after: Some(after.to_owned()),
        limit: 1,
    }
}

fn sealed(list: &List<'_>, place: &str) -> String {
    let page = Page {
        items: vec![()],
        next: Some(place.to_owned()),
    };
    list.seal(page).unwrap().next.unwrap()
}

fn is_refused(list: &List<'_>, text: &str) -> bool {
    matches!(list.open(request(text)), Err(BrokerError::Invalid { .. }))
}

proptest! {
    /// A place is opened by its own list, and no change of it by any list.
    #[test]
    fn a_place_is_of_its_list_and_cannot_be_changed(
        place in ".{0,600}",
        arguments in prop::collection::vec("[a-z/]{0,4}", 0..3),
        others in prop::collection::vec("[a-z/]{0,4}", 0..3),
        at in any::<prop::sample::Index>(),
        letter in "[A-Za-z0-9_=.-]",
    ) {
        let pages = Pages::new(&[7; 32]).unwrap();
        let ctx = caller("token:a");
        let texts: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let list = pages.list(&ctx, "list_topics", &texts);
        let text = sealed(&list, &place);
        prop_assert!(place.is_empty() || !text.contains(&place) || place.len() < 4);
        prop_assert_eq!(&sealed(&list, &place), &text, "the same page has the same text");
        let opened = list.open(request(&text)).unwrap();
        prop_assert_eq!(opened.after.as_deref(), Some(place.as_str()));
        let mut changed = text.clone();
        let at = at.index(changed.len());
        changed.replace_range(at..=at, &letter);
        prop_assert!(changed == text || is_refused(&list, &changed), "{}", changed);
        prop_assert!(is_refused(&list, &text[..at]));
        let other_texts: Vec<&str> = others.iter().map(String::as_str).collect();
        if others != arguments {
            prop_assert!(is_refused(&pages.list(&ctx, "list_topics", &other_texts), &text));
        }
        prop_assert!(is_refused(&pages.list(&ctx, "list_tokens", &texts), &text));
        prop_assert!(is_refused(&pages.list(&caller("token:b"), "list_topics", &texts), &text));
        let foreign = Pages::new(&[8; 32]).unwrap();
        prop_assert!(is_refused(&foreign.list(&ctx, "list_topics", &texts), &text));
    }

    #[test]
    fn no_text_panics(text in ".{0,80}", letters in "[A-Za-z0-9_-]{0,200}") {
        let pages = Pages::new(&[7; 32]).unwrap();
        let ctx = caller("token:a");
        let list = pages.list(&ctx, "list_topics", &[]);
        prop_assert!(is_refused(&list, &text));
        prop_assert!(is_refused(&list, &letters));
    }
}

#[test]
fn arguments_are_not_run_together() {
    let pages = Pages::new(&[7; 32]).unwrap();
    let ctx = caller("token:a");
    let text = sealed(&pages.list(&ctx, "list_grants", &["a", "bc"]), "x");
    assert!(is_refused(
        &pages.list(&ctx, "list_grants", &["ab", "c"]),
        &text
    ));
    assert!(is_refused(
        &pages.list(&ctx, "list_grants", &["a", "bc", ""]),
        &text
    ));
    assert!(
        Pages::new(&[7; 31]).is_none(),
        "a damaged secret seals nothing"
    );
}
