//! Tokens of pages: where the next page begins, and of which list, in a form that clients do not
//! take apart. A token is no permission: the list is asked for again with it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Of the tokens' form.
const VERSION: u8 = 1;
/// Bytes of the digest of the list.
const DIGEST_BYTES: usize = 8;

/// A token for the page after `next` of a list; empty at the end of it.
pub(crate) fn token<'t>(list: impl Iterator<Item = &'t str>, next: &str) -> String {
    if next.is_empty() {
        return String::new();
    }
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&digest(list));
    bytes.extend_from_slice(next.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Where the page of a token begins; `None` for one of another list, and for anything else.
pub(crate) fn open<'t>(list: impl Iterator<Item = &'t str>, token: &str) -> Option<String> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let rest = bytes.strip_prefix(&[VERSION])?;
    let (of, next) = rest.split_at_checked(DIGEST_BYTES)?;
    if of != digest(list) || next.is_empty() {
        return None;
    }
    String::from_utf8(next.to_vec()).ok()
}

/// FNV-1a over the parts: it tells lists apart by mistake, not by malice.
fn digest<'t>(list: impl Iterator<Item = &'t str>) -> [u8; DIGEST_BYTES] {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in list {
        // No part contains this byte: they are UTF-8.
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_for_its_list_alone() {
        let list = || ["rpc", "acme"].into_iter();
        let made = token(list(), "acme/shop");
        assert_eq!(open(list(), &made).as_deref(), Some("acme/shop"));
        assert_eq!(open(["rpc", "other"].into_iter(), &made), None);
        assert_eq!(open(["rpca", "cme"].into_iter(), &made), None);
        assert_eq!(token(list(), ""), "");
        let cut = &made[..made.len() - 1];
        for bad in ["", "acme/shop", "AA", "_____", cut, "AQAAAAAAAAAA", "é"] {
            assert_ne!(open(list(), bad).as_deref(), Some("acme/shop"), "{bad}");
        }
        assert_eq!(open(list(), ""), None);
    }
}
