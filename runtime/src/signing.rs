//! Signatures: Ed25519.

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

/// Bytes of the secret that a key is made of.
pub const SEED_BYTES: usize = 32;

/// A key that signs. Nothing prints it.
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// The key of a secret.
    ///
    /// # Panics
    /// Never: every 32 bytes are the secret of a key.
    #[must_use]
    pub fn from_seed(seed: &[u8; SEED_BYTES]) -> SigningKey {
        let key = Ed25519KeyPair::from_seed_unchecked(seed);
        SigningKey(key.expect("a secret of 32 bytes makes a key"))
    }

    /// By which others know its signatures.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    /// Signs a text.
    #[must_use]
    pub fn sign(&self, text: &[u8]) -> Vec<u8> {
        self.0.sign(text).as_ref().to_vec()
    }
}

/// Whether a text was signed with the key of this public key.
#[must_use]
pub fn is_signed(public: &[u8], text: &[u8], signature: &[u8]) -> bool {
    let public = UnparsedPublicKey::new(&ED25519, public);
    public.verify(text, signature).is_ok()
}

/// Bytes as hexadecimal digits.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of hexadecimal digits; `None` for any other text.
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let pairs = (0..text.len()).step_by(2).map(|at| &text[at..at + 2]);
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_signed_with_the_key_is_taken() {
        let (key, other) = (
            SigningKey::from_seed(&[7; 32]),
            SigningKey::from_seed(&[8; 32]),
        );
        let signature = key.sign(b"text");
        assert!(is_signed(key.public(), b"text", &signature));
        assert!(!is_signed(key.public(), b"Text", &signature));
        assert!(!is_signed(other.public(), b"text", &signature));
        assert!(!is_signed(key.public(), b"text", &signature[1..]));
        assert!(!is_signed(b"", b"text", &signature));
    }

    /// The first vector of RFC 8032, section 7.1.
    #[test]
    fn keys_and_signatures_are_those_of_the_standard() {
        let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let seed: [u8; 32] = from_hex(seed).unwrap().try_into().unwrap();
        let key = SigningKey::from_seed(&seed);
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(to_hex(key.public()), public);
        let signature = to_hex(&key.sign(b""));
        assert!(
            signature.starts_with("e5564300c360ac729086e2cc806e828a"),
            "{signature}"
        );
    }

    #[test]
    fn texts_that_are_not_hexadecimal_are_refused() {
        assert_eq!(from_hex("00fF"), Some(vec![0, 255]));
        for text in ["0", "0g", "+1", "é0", "0é"] {
            assert_eq!(from_hex(text), None, "{text}");
        }
    }
}
