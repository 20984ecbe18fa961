//! Tokens of our own: `aqf_ID_SECRETCHECK`, 80 characters that scanners for leaked secrets find.
//!
//! - ID: 26 letters of lower-case base32, drawn by the broker; it names the record.
//! - SECRET: 256 random bits, base64url. The record has their SHA-256 and nothing else of them.
//! - CHECK: CRC32C of all before it, base64url, so that a mistyped token is no look-up.

use aquifer_model::checksum::crc32c;
use aquifer_proto::v1::TokenRecord;
use aquifer_protocol_api::security::TokenInfo;
use aquifer_runtime::secret::{self, NoEntropy, Secret};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::security::principal;

const PREFIX: &str = "aqf_";
const ID_LETTERS: usize = 26;
const SECRET_LETTERS: usize = 43;
const CHECK_LETTERS: usize = 6;
const TOKEN_LETTERS: usize = PREFIX.len() + ID_LETTERS + 1 + SECRET_LETTERS + CHECK_LETTERS;
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// What a caller shows, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parsed<'a> {
    pub(crate) id: &'a str,
    /// SHA-256 of the secret.
    pub(crate) digest: [u8; 32],
}

/// A secret that was drawn, and the digest that is stored of it.
pub(crate) struct Drawn {
    pub(crate) secret: Secret,
    pub(crate) digest: [u8; 32],
}

/// An id of these bytes.
pub(crate) fn id_of(bytes: [u8; 16]) -> String {
    let bits = u128::from_be_bytes(bytes);
    // 26 letters have 130 bits: the first has three of them.
    let letter = |at: usize| {
        let shift = 5 * (ID_LETTERS - 1 - at);
        let index = (bits >> shift) & 31;
        char::from(BASE32[usize::try_from(index).unwrap_or(0)])
    };
    (0..ID_LETTERS).map(letter).collect()
}

/// Whether a text may be an id.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == ID_LETTERS && text.bytes().all(|letter| BASE32.contains(&letter))
}

/// Draws the secret of a token.
///
/// # Errors
/// When the operating system gives no random bytes.
pub(crate) fn draw(id: &str) -> Result<Drawn, NoEntropy> {
    let secret = secret::draw()?;
    let mut text = format!("{PREFIX}{id}_{}", URL_SAFE_NO_PAD.encode(secret));
    let check = crc32c(text.as_bytes()).to_be_bytes();
    text.push_str(&URL_SAFE_NO_PAD.encode(check));
    Ok(Drawn {
        secret: Secret::new(text),
        digest: secret::sha256(&secret),
    })
}

/// Takes a token apart; `None` for other texts.
pub(crate) fn parse(text: &str) -> Option<Parsed<'_>> {
    if text.len() != TOKEN_LETTERS || !text.is_ascii() {
        return None;
    }
    let (before, check) = text.split_at(TOKEN_LETTERS - CHECK_LETTERS);
    let check = URL_SAFE_NO_PAD.decode(check).ok()?;
    if check != crc32c(before.as_bytes()).to_be_bytes() {
        return None;
    }
    let (id, letters) = before.strip_prefix(PREFIX)?.split_at(ID_LETTERS);
    let secret = URL_SAFE_NO_PAD.decode(letters.strip_prefix('_')?).ok()?;
    is_id(id).then(|| Parsed {
        id,
        digest: secret::sha256(&secret),
    })
}

/// A token as it is stored, with its id.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token {
    pub(crate) id: String,
    pub(crate) record: TokenRecord,
}

impl Token {
    /// Its tenant; `None`: of the cluster.
    pub(crate) fn tenant(&self) -> Option<&str> {
        let tenant = &self.record.tenant;
        (!tenant.is_empty()).then_some(tenant)
    }

    /// As whom it authenticates.
    pub(crate) fn principal(&self) -> String {
        principal::of_token(self.tenant(), &self.record.name)
    }

    /// Until when a secret with this digest authenticates, if it does now: `None` within for ever.
    pub(crate) fn valid(&self, digest: &[u8; 32], now_ms: u64) -> Option<Option<u64>> {
        let record = &self.record;
        // Both are always compared, so that the time tells nothing.
        let current = secret::same(&record.secret_sha256, digest);
        let previous = secret::same(&record.previous_sha256, digest);
        let end = match (current, previous) {
            (true, _) => record.expires_ms,
            (false, true) => {
                let until = record.previous_until_ms;
                Some(record.expires_ms.map_or(until, |end| end.min(until)))
            }
            (false, false) => return None,
        };
        let is_live = record.revoked_ms.is_none() && end.is_none_or(|end| now_ms < end);
        is_live.then_some(end)
    }

    /// When it was revoked or expires, whichever is first.
    pub(crate) fn ends_ms(&self) -> Option<u64> {
        let ends = [self.record.revoked_ms, self.record.expires_ms];
        ends.into_iter().flatten().min()
    }

    /// It without its secret.
    pub(crate) fn info(&self) -> TokenInfo {
        let record = &self.record;
        TokenInfo {
            id: self.id.clone(),
            name: record.name.clone(),
            tenant: self.tenant().map(str::to_owned),
            principal: self.principal(),
            created_ms: record.created_ms,
            expires_ms: record.expires_ms,
            created_by: record.created_by.clone(),
            revoked: record.revoked_ms.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ids_differ_as_their_bytes_do(a in any::<[u8; 16]>(), b in any::<[u8; 16]>()) {
            prop_assert!(is_id(&id_of(a)));
            prop_assert_eq!(a == b, id_of(a) == id_of(b));
        }

        #[test]
        fn no_text_panics_and_one_changed_letter_is_no_token(
            bytes in any::<[u8; 16]>(),
            at in 0_usize..TOKEN_LETTERS,
            letter in "[a-zA-Z0-9_-]",
            garbage in ".{0,100}",
        ) {
            let id = id_of(bytes);
            let drawn = draw(&id).unwrap();
            let text = drawn.secret.expose();
            let parsed = parse(text).unwrap();
            prop_assert_eq!(&parsed, &Parsed { id: &id, digest: drawn.digest });
            let mut changed = text.to_owned();
            changed.replace_range(at..=at, &letter);
            prop_assert!(changed == text || parse(&changed) != Some(parsed));
            let _ = parse(&garbage);
        }
    }

    #[test]
    fn a_rotated_secret_authenticates_for_its_grace_period() {
        let mut token = Token {
            id: "x".to_owned(),
            record: TokenRecord {
                secret_sha256: vec![1; 32].into(),
                previous_sha256: vec![2; 32].into(),
                previous_until_ms: 10,
                expires_ms: Some(20),
                ..TokenRecord::default()
            },
        };
        assert_eq!(token.valid(&[1; 32], 19), Some(Some(20)));
        assert_eq!(token.valid(&[1; 32], 20), None);
        assert_eq!(token.valid(&[2; 32], 9), Some(Some(10)));
        assert_eq!(token.valid(&[2; 32], 10), None);
        assert_eq!(token.valid(&[3; 32], 1), None);
        token.record.revoked_ms = Some(1);
        assert_eq!(token.valid(&[1; 32], 5), None);
        let record = TokenRecord::default();
        let empty = Token { record, ..token };
        assert_eq!(
            empty.valid(&[0; 32], 5),
            None,
            "an empty digest is not that of a secret"
        );
    }
}
