//! An issuer of JSON Web Tokens: its keys in a file, and tokens that it signs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use aquifer_runtime::clock::{Clock as _, SystemClock};
use aquifer_runtime::signing::SigningKey;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

/// The alias of the issuer: principals are `jwt:test:SUBJECT`.
pub const ALIAS: &str = "test";
const ISSUER: &str = "https://issuer.test";
const AUDIENCE: &str = "aquifer";

/// See the module.
pub struct Issuer {
    key: SigningKey,
    keys: PathBuf,
}

impl Issuer {
    /// An issuer whose public key is in a file of this directory.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(directory: &Path) -> Result<Issuer> {
        let key = SigningKey::from_seed(&[5; 32]);
        let keys = directory.join("issuer.jwks.json");
        let x = URL_SAFE_NO_PAD.encode(key.public());
        let set = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": x}]});
        fs::write(&keys, set.to_string())?;
        Ok(Issuer { key, keys })
    }

    /// The settings of a server that accepts its tokens.
    #[must_use]
    pub fn settings(&self) -> String {
        format!(
            "[[auth.jwt]]\nalias = \"{ALIAS}\"\nissuer = \"{ISSUER}\"\n\
             audiences = [\"{AUDIENCE}\"]\njwks_file = \"{}\"\n",
            self.keys.display()
        )
    }

    /// A token of a subject that is good for a time.
    #[must_use]
    pub fn token(&self, subject: &str, lifetime: Duration) -> String {
        let now_s = SystemClock.wall_ms() / 1_000;
        let header = json!({"alg": "EdDSA", "kid": "k"});
        let claims = json!({
            "iss": ISSUER, "sub": subject, "aud": AUDIENCE,
            "iat": now_s, "exp": now_s + lifetime.as_secs(),
        });
        let parts = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let message = parts.join(".");
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    /// Puts a token into a file, in place of the one that is there.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_token(&self, file: &Path, subject: &str, lifetime: Duration) -> Result<()> {
        let next = file.with_extension("next");
        fs::write(&next, self.token(subject, lifetime))?;
        fs::set_permissions(&next, fs::Permissions::from_mode(0o600))?;
        // Whole, so that no reader finds a part of it.
        fs::rename(&next, file)?;
        Ok(())
    }
}
