//! Secrets: values that no log shows, where new ones come from, and how they are compared.
//!
//! Invariants:
//! - A [`Secret`] is printed nowhere but by the one place that exposes it, and its memory is
//!   overwritten when it goes.
//! - How long a comparison takes does not depend on where two secrets differ.

use std::fmt;
use std::hint::black_box;

use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize, Serializer};
use thiserror::Error;
use zeroize::Zeroize;

pub(crate) const REDACTED: &str = "<redacted>";

/// A value that logs and dumps must not show.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    #[must_use]
    pub fn new(value: impl Into<String>) -> Secret {
        Secret(value.into())
    }

    /// The value itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        same(self.0.as_bytes(), other.0.as_bytes())
    }
}

impl Eq for Secret {}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

/// Whether two values are the same, in a time that depends on their lengths alone.
#[must_use]
pub fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let differences = a.iter().zip(b).map(|(a, b)| a ^ b);
    // Without this the compiler may stop at the first difference.
    black_box(differences.fold(0, |all, bits| black_box(all | bits))) == 0
}

/// SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, bytes);
    let mut found = [0; 32];
    found.copy_from_slice(digest.as_ref());
    found
}

/// SHA-256 as 64 hexadecimal digits.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    crate::signing::to_hex(&sha256(bytes))
}

/// The operating system gives no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the operating system gives no random bytes")]
pub struct NoEntropy;

/// Random bytes that cannot be guessed, for keys and tokens.
///
/// # Errors
/// When the operating system has none.
pub fn draw() -> Result<[u8; 32], NoEntropy> {
    let mut bytes = [0; 32];
    let drawn = SystemRandom::new().fill(&mut bytes);
    drawn.map(|()| bytes).map_err(|_| NoEntropy)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn comparisons_are_right(
            a in prop::collection::vec(any::<u8>(), 0..40),
            b in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            prop_assert_eq!(same(&a, &b), a == b);
            prop_assert!(same(&a, &a.clone()));
        }
    }

    #[test]
    fn nothing_prints_a_secret() {
        let secret = Secret::new("hunter2");
        let printed = format!("{secret:?} {}", serde_json::to_string(&secret).unwrap());
        assert!(!printed.contains("hunter2"), "{printed}");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn the_digest_is_sha_256() {
        let empty = sha256(b"");
        assert_eq!(&empty[..4], [0xe3, 0xb0, 0xc4, 0x42]);
        assert_ne!(draw().unwrap(), draw().unwrap());
    }
}
