//! Tokens of an issuer: those that count, and everything that must not.

use aquifer_runtime::clock::SystemClock;
use proptest::prelude::*;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use serde_json::{Value, json};

use super::*;

const NOW_MS: u64 = 1_500_000;
const SECRET: [u8; 32] = [9; 32];

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// An issuer with one key of each kind, and what signs with them.
struct World {
    issuers: Issuers,
    ed25519: Ed25519KeyPair,
    p256: EcdsaKeyPair,
    _dir: tempfile::TempDir,
}

fn rsa() -> Vec<&'static str> {
    include_str!("rsa.txt").lines().collect()
}

impl World {
    fn new() -> World {
        let ed25519 = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let rng = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &rng).unwrap();
        let p256 = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &rng).unwrap();
        let point = p256.public_key().as_ref().to_vec();
        let rsa = rsa();
        let keys = json!({"keys": [
            {"kty": "OKP", "crv": "Ed25519", "kid": "o", "x": encoded(ed25519.public_key())},
            {"kty": "EC", "crv": "P-256", "kid": "e", "x": encoded(&point[1..33]), "y": encoded(&point[33..])},
            {"kty": "RSA", "kid": "r", "use": "sig", "n": rsa[0], "e": rsa[1]},
            {"kty": "oct", "kid": "m", "alg": "HS256", "k": encoded(SECRET)},
            {"kty": "RSA", "kid": "x", "use": "enc", "n": rsa[0], "e": rsa[1]},
            {"kty": "new", "kid": "n"},
        ]});
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jwks.json");
        std::fs::write(&path, keys.to_string()).unwrap();
        let issuer = JwtIssuer {
            alias: "sso".to_owned(),
            issuer: "https://sso.example".to_owned(),
            audiences: vec!["aquifer".to_owned()],
            jwks_file: path,
            ..JwtIssuer::default()
        };
        World {
            issuers: Issuers::load(&[issuer], &SystemClock::shared()).unwrap(),
            ed25519,
            p256,
            _dir: dir,
        }
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let message = format!(
            "{}.{}",
            encoded(header.to_string()),
            encoded(claims.to_string())
        );
        self.signed(header, &message)
    }

    fn signed(&self, header: &Value, message: &str) -> String {
        let bytes = message.as_bytes();
        let signature = match header["kid"].as_str() {
            Some("e") => {
                let signed = self.p256.sign(&SystemRandom::new(), bytes);
                signed.unwrap().as_ref().to_vec()
            }
            Some("m") => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, &SECRET);
                hmac::sign(&key, bytes).as_ref().to_vec()
            }
            _ => self.ed25519.sign(bytes).as_ref().to_vec(),
        };
        format!("{message}.{}", encoded(signature))
    }

    fn verify(&self, token: &str) -> Option<Verified> {
        self.issuers.verify(token, NOW_MS)
    }
}

fn claims() -> Value {
    json!({
        "iss": "https://sso.example", "sub": "alice", "aud": ["other", "aquifer"],
        "iat": 1_000, "exp": 2_000, "jti": "t-1", "groups": ["ops", "a b", 7],
    })
}

fn header(kid: &str) -> Value {
    let algorithm = match kid {
        "e" => "ES256",
        "m" => "HS256",
        "r" => "RS256",
        _ => "EdDSA",
    };
    json!({"alg": algorithm, "kid": kid, "typ": "JWT"})
}

#[test]
fn tokens_of_every_kind_of_key_count() {
    let world = World::new();
    let expected = Verified {
        principal: "jwt:sso:alice".to_owned(),
        groups: vec!["group:sso:ops".to_owned()],
        id: Some("sso:t-1".to_owned()),
        issued_ms: 1_000_000,
        expires_ms: 2_000_000,
    };
    for kid in ["o", "e", "m"] {
        let token = world.token(&header(kid), &claims());
        assert_eq!(world.verify(&token), Some(expected.clone()), "{kid}");
    }
    for token in &rsa()[2..] {
        let found = world.verify(token).unwrap();
        assert_eq!(found.principal, "jwt:sso:alice");
    }
    let unnamed = json!({"alg": "EdDSA"});
    assert!(world.verify(&world.token(&unnamed, &claims())).is_some());
}

#[test]
fn the_key_decides_the_algorithm() {
    let world = World::new();
    let claims = claims();
    let message = |header: &Value| {
        format!(
            "{}.{}",
            encoded(header.to_string()),
            encoded(claims.to_string())
        )
    };
    for header in [
        json!({"alg": "none"}),
        json!({"alg": "None", "kid": "o"}),
        json!({"alg": "ES256", "kid": "o"}),
        json!({"alg": "EdDSA", "kid": "unknown"}),
        json!({"alg": "EdDSA", "kid": "e"}),
        json!({"alg": "HS512", "kid": "m"}),
        json!({"alg": "EdDSA", "kid": "o", "crit": ["x"]}),
        json!({"kid": "o"}),
    ] {
        assert_eq!(
            world.verify(&world.token(&header, &claims)),
            None,
            "{header}"
        );
        assert_eq!(
            world.verify(&format!("{}.", message(&header))),
            None,
            "{header}"
        );
    }
    // The public key of RSA as the secret of a MAC.
    let swapped = message(&json!({"alg": "HS256", "kid": "r"}));
    let key = hmac::Key::new(hmac::HMAC_SHA256, rsa()[0].as_bytes());
    let signed = hmac::sign(&key, swapped.as_bytes());
    assert_eq!(
        world.verify(&format!("{swapped}.{}", encoded(signed))),
        None
    );
    let twice = format!(
        "{}.{}",
        encoded(r#"{"alg":"EdDSA","alg":"EdDSA","kid":"o"}"#),
        encoded(claims.to_string())
    );
    assert_eq!(world.verify(&world.signed(&header("o"), &twice)), None);
    let foreign = Ed25519KeyPair::from_seed_unchecked(&[8; 32]).unwrap();
    let text = message(&header("o"));
    let forged = format!("{text}.{}", encoded(foreign.sign(text.as_bytes())));
    assert_eq!(world.verify(&forged), None);
}

#[test]
fn claims_are_required_and_bounded() {
    let world = World::new();
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        world.verify(&world.token(&header("o"), &claims))
    };
    for required in ["iss", "sub", "aud", "exp", "iat"] {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(required);
        let found = world.verify(&world.token(&header("o"), &claims));
        assert_eq!(found, None, "without {required}");
    }
    for (name, value) in [
        ("iss", json!("https://other.example")),
        ("aud", json!("other")),
        ("aud", json!(7)),
        ("sub", json!("")),
        ("sub", json!("a b")),
        ("sub", json!("x".repeat(600))),
        ("exp", json!(1_470)),
        ("exp", json!("2000")),
        ("exp", json!(2_000.5)),
        ("exp", json!(u64::MAX)),
        ("exp", json!(253_402_300_799_u64)),
        ("exp", json!(999)),
        ("iat", json!(1_531)),
        ("nbf", json!(1_531)),
    ] {
        assert_eq!(with(name, value.clone()), None, "{name}: {value}");
    }
    for (name, value) in [
        ("exp", json!(1_471)),
        ("nbf", json!(1_530)),
        ("iat", json!(1_530)),
        ("aud", json!("aquifer")),
        ("groups", json!("ops")),
        ("jti", json!(7)),
    ] {
        assert!(with(name, value.clone()).is_some(), "{name}: {value}");
    }
}

#[test]
fn keys_that_are_damaged_leave_the_former_ones() {
    let world = World::new();
    let token = world.token(&header("o"), &claims());
    let path = world.issuers.0[0].config.jwks_file.clone();
    let kept = std::fs::read_to_string(&path).unwrap();
    let short = format!(r#"{{"keys":[{{"kty":"oct","k":"{}"}}]}}"#, encoded([1; 8]));
    for bad in [
        "",
        "{}",
        r#"{"keys":[]}"#,
        r#"{"keys":[{"kty":"RSA"}]}"#,
        &short,
    ] {
        std::fs::write(&path, bad).unwrap();
        world.issuers.reload();
        assert!(world.verify(&token).is_some(), "{bad}");
    }
    std::fs::write(&path, kept.replace("\"o\"", "\"renamed\"")).unwrap();
    world.issuers.reload();
    assert_eq!(
        world.verify(&token),
        None,
        "a key that is gone counts no more"
    );
}

proptest! {
    #[test]
    fn no_text_panics(text in "[A-Za-z0-9_.-]{0,200}", other in ".{0,50}") {
        let world = Issuers::default();
        prop_assert_eq!(world.verify(&text, 1), None);
        prop_assert_eq!(world.verify(&other, 1), None);
    }
}
