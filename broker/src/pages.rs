//! Where lists go on: sealed, so that a caller learns nothing from it and can make none.
//!
//! A list stops behind a key, which may be that of something that its caller must not see. The text
//! that says so is encrypted and authenticated with a secret of the cluster, together with the
//! list, its arguments and its caller: it means something in that list alone, at every broker. It
//! is no permission.
//!
//! Form: base64url of `version (1)`, `nonce (12)`, AES-256-GCM of the place, tag (16). The nonce is
//! a MAC of what is sealed and of what it is bound to, so that the same page has the same text, and
//! no two have one nonce.

use aquifer_metadata::store::MetadataStore;
use aquifer_protocol_api::admin::{Page, PageRequest};
use aquifer_protocol_api::context::RequestContext;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;

use crate::cluster_key;
use crate::error::BrokerError;

/// The name of the secret.
const KEY: &str = "pages";
/// Bytes of the secret.
const SECRET_BYTES: usize = 32;
const VERSION: u8 = 1;

/// Seals and opens the places of lists.
pub(crate) struct Pages {
    seals: LessSafeKey,
    draws: hmac::Key,
}

/// One list of one caller.
pub(crate) struct List<'a> {
    pages: &'a Pages,
    bound: Vec<u8>,
}

impl Pages {
    /// With the secret of the cluster, which the first broker makes.
    ///
    /// # Errors
    /// When the metadata store does not answer.
    pub(crate) async fn start(
        store: &dyn MetadataStore,
        now_ms: u64,
    ) -> Result<Pages, BrokerError> {
        let secret = cluster_key::shared(store, KEY, now_ms).await?;
        Pages::new(&secret).ok_or_else(|| BrokerError::Internal("no key to seal with".to_owned()))
    }

    fn new(secret: &[u8]) -> Option<Pages> {
        if secret.len() != SECRET_BYTES {
            return None;
        }
        let root = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let seals = hmac::sign(&root, b"aquifer pages: seal");
        let draws = hmac::sign(&root, b"aquifer pages: nonce");
        let seals = UnboundKey::new(&AES_256_GCM, seals.as_ref()).ok()?;
        Some(Pages {
            seals: LessSafeKey::new(seals),
            draws: hmac::Key::new(hmac::HMAC_SHA256, draws.as_ref()),
        })
    }

    /// A list, with all that it depends on but the size of its pages.
    pub(crate) fn list(&self, ctx: &RequestContext, request: &str, arguments: &[&str]) -> List<'_> {
        let mut bound = Vec::new();
        for part in [request, ctx.principal.name()].iter().chain(arguments) {
            bound.extend((part.len() as u64).to_be_bytes());
            bound.extend(part.as_bytes());
        }
        List { pages: self, bound }
    }
}

impl List<'_> {
    /// The request for a page, with the place that the page before has sealed.
    ///
    /// # Errors
    /// `InvalidArgument` for a place of another list or caller, and for one that was made up.
    pub(crate) fn open(&self, request: PageRequest) -> Result<PageRequest, BrokerError> {
        let Some(text) = &request.after else {
            return Ok(request);
        };
        let after = self.opened(text).ok_or_else(|| {
            BrokerError::invalid(
                "the place to go on from is not one of this list, its arguments and its caller",
                "pass the `next` of the page before unchanged, or begin the list again",
            )
        })?;
        Ok(PageRequest {
            after: Some(after),
            ..request
        })
    }

    fn opened(&self, text: &str) -> Option<String> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (&version, rest) = bytes.split_first()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        if version != VERSION {
            return None;
        }
        let mut sealed = sealed.to_vec();
        let aad = Aad::from(&self.bound);
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self
            .pages
            .seals
            .open_in_place(nonce, aad, &mut sealed)
            .ok()?;
        std::str::from_utf8(opened).ok().map(str::to_owned)
    }

    /// A page with the place where it goes on sealed.
    ///
    /// # Errors
    /// None that can happen: a place is far shorter than what can be sealed.
    pub(crate) fn seal<T>(&self, page: Page<T>) -> Result<Page<T>, BrokerError> {
        let Some(next) = page.next else {
            return Ok(page);
        };
        let next = self.sealed(&next);
        let next = next.ok_or_else(|| BrokerError::Internal("a page is not sealed".to_owned()))?;
        Ok(Page {
            next: Some(next),
            ..page
        })
    }

    fn sealed(&self, place: &str) -> Option<String> {
        let mut mac = hmac::Context::with_key(&self.pages.draws);
        mac.update(&(self.bound.len() as u64).to_be_bytes());
        mac.update(&self.bound);
        mac.update(place.as_bytes());
        let mac = mac.sign();
        let nonce = mac.as_ref().first_chunk::<NONCE_LEN>()?;
        let mut sealed = place.as_bytes().to_vec();
        let (aad, once) = (Aad::from(&self.bound), Nonce::assume_unique_for_key(*nonce));
        let seals = &self.pages.seals;
        seals
            .seal_in_place_append_tag(once, aad, &mut sealed)
            .ok()?;
        Some(URL_SAFE_NO_PAD.encode([&[VERSION][..], &nonce[..], &sealed[..]].concat()))
    }
}

#[cfg(test)]
mod tests;
