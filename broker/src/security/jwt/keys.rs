//! Keys of an issuer, from a JWK set (RFC 7517), and what each of them verifies.
//!
//! Invariant: the key decides which algorithms count, never the token: a public key is no secret of
//! a MAC, and `none` is the algorithm of no key.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;

/// Keys of a set.
const KEYS_MAX: usize = 100;
/// Shortest RSA modulus, and shortest secret of a MAC, in bytes.
const RSA_BYTES_MIN: usize = 256;
const MAC_BYTES_MIN: usize = 32;
/// The first byte of a point that is not compressed.
const UNCOMPRESSED: u8 = 4;

/// A key that verifies tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) id: Option<String>,
    /// The only algorithm it is for, where its set says so.
    algorithm: Option<String>,
    material: Material,
}

#[derive(Clone, PartialEq, Eq)]
enum Material {
    Rsa { modulus: Vec<u8>, exponent: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
    Mac(Vec<u8>),
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Material::Rsa { .. } => "RSA",
            Material::P256(_) => "P-256",
            Material::P384(_) => "P-384",
            Material::Ed25519(_) => "Ed25519",
            Material::Mac(_) => "MAC",
        })
    }
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

/// The members of a key that matter; others are passed over.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
}

/// The keys of a set. Those for other purposes and of kinds that are not known are passed over.
pub(super) fn parse(text: &str) -> Result<Vec<Key>, String> {
    let set: Set = serde_json::from_str(text).map_err(|error| format!("no JWK set: {error}"))?;
    if set.keys.len() > KEYS_MAX {
        return Err(format!("it has more than {KEYS_MAX} keys"));
    }
    let mut keys = Vec::new();
    for value in set.keys {
        let jwk: Jwk = serde_json::from_value(value).map_err(|error| format!("a key: {error}"))?;
        if jwk
            .purpose
            .as_deref()
            .is_some_and(|purpose| purpose != "sig")
        {
            continue;
        }
        if let Some(material) = material(&jwk)? {
            keys.push(Key {
                id: jwk.kid,
                algorithm: jwk.alg,
                material,
            });
        }
    }
    match keys.is_empty() {
        true => Err("it has no key that verifies tokens".to_owned()),
        false => Ok(keys),
    }
}

fn material(jwk: &Jwk) -> Result<Option<Material>, String> {
    let member = |name: &str, given: &Option<String>| {
        let given = given
            .as_ref()
            .ok_or_else(|| format!("a key has no {name}"))?;
        let decoded = URL_SAFE_NO_PAD.decode(given);
        decoded.map_err(|_| format!("the {name} of a key is not base64url"))
    };
    let sized = |name: &str, given: &Option<String>, bytes: usize| {
        let found = member(name, given)?;
        match found.len() == bytes {
            true => Ok(found),
            false => Err(format!("the {name} of a key has not {bytes} bytes")),
        }
    };
    let point = |bytes: usize| {
        let (x, y) = (sized("x", &jwk.x, bytes)?, sized("y", &jwk.y, bytes)?);
        Ok::<_, String>([&[UNCOMPRESSED], &*x, &*y].concat())
    };
    Ok(match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => {
            let modulus = member("n", &jwk.n)?;
            if modulus.len() < RSA_BYTES_MIN {
                return Err("an RSA key has at least 2,048 bits".to_owned());
            }
            let exponent = member("e", &jwk.e)?;
            Some(Material::Rsa { modulus, exponent })
        }
        ("EC", Some("P-256")) => Some(Material::P256(point(32)?)),
        ("EC", Some("P-384")) => Some(Material::P384(point(48)?)),
        ("OKP", Some("Ed25519")) => Some(Material::Ed25519(sized("x", &jwk.x, 32)?)),
        ("oct", _) => {
            let secret = member("k", &jwk.k)?;
            if secret.len() < MAC_BYTES_MIN {
                return Err(format!(
                    "the secret of a MAC has at least {MAC_BYTES_MIN} bytes"
                ));
            }
            Some(Material::Mac(secret))
        }
        _ => None,
    })
}

impl Key {
    /// Whether it signs as well as it verifies.
    pub(super) fn is_secret(&self) -> bool {
        matches!(self.material, Material::Mac(_))
    }

    /// Whether this key has signed a message with an algorithm.
    pub(super) fn verifies(&self, algorithm: &str, message: &[u8], signed: &[u8]) -> bool {
        let only = self.algorithm.as_deref();
        if only.is_some_and(|only| only != algorithm) {
            return false;
        }
        match &self.material {
            Material::Rsa { modulus, exponent } => rsa(algorithm).is_some_and(|parameters| {
                let key = RsaPublicKeyComponents {
                    n: modulus,
                    e: exponent,
                };
                key.verify(parameters, message, signed).is_ok()
            }),
            Material::P256(point) => {
                let key = UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point);
                algorithm == "ES256" && key.verify(message, signed).is_ok()
            }
            Material::P384(point) => {
                let key = UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point);
                algorithm == "ES384" && key.verify(message, signed).is_ok()
            }
            Material::Ed25519(point) => {
                let key = UnparsedPublicKey::new(&signature::ED25519, point);
                algorithm == "EdDSA" && key.verify(message, signed).is_ok()
            }
            Material::Mac(secret) => mac(algorithm).is_some_and(|algorithm| {
                let key = hmac::Key::new(algorithm, secret);
                hmac::verify(&key, message, signed).is_ok()
            }),
        }
    }
}

fn rsa(algorithm: &str) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
        "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
        "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
        "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
        "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
        "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

fn mac(algorithm: &str) -> Option<hmac::Algorithm> {
    Some(match algorithm {
        "HS256" => hmac::HMAC_SHA256,
        "HS384" => hmac::HMAC_SHA384,
        "HS512" => hmac::HMAC_SHA512,
        _ => return None,
    })
}
