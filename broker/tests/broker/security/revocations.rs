//! JSON Web Tokens that are refused before they expire.

use std::path::Path;

use aquifer_broker::{AuthConfig, BrokerConfig, JwtIssuer};
use aquifer_protocol_api::access::Action;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::data_plane::DataPlane;
use aquifer_protocol_api::error::ErrorKind;
use aquifer_protocol_api::security::{Refuses, Revoke, Security};
use aquifer_runtime::clock::Clock as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::FutureExt as _;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::json;

use crate::security::{Secured, auth_config, authenticate, page};
use crate::support::{kind, open, soon};

const TOPIC: &str = "acme/shop/orders";

fn pair() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap()
}

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Settings with an issuer whose keys are in this folder.
pub fn trusting(folder: &Path) -> BrokerConfig {
    let keys = json!({"keys": [
        {"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": encoded(pair().public_key())},
    ]});
    let jwks_file = folder.join("jwks.json");
    std::fs::write(&jwks_file, keys.to_string()).unwrap();
    let issuer = JwtIssuer {
        alias: "sso".to_owned(),
        issuer: "https://sso.example".to_owned(),
        audiences: vec!["aquifer".to_owned()],
        jwks_file,
        lifetime_ms_max: 200_000,
        ..JwtIssuer::default()
    };
    let config = auth_config();
    BrokerConfig {
        auth: AuthConfig {
            jwt: vec![issuer],
            ..config.auth
        },
        ..config
    }
}

/// A token that was issued this long ago.
pub fn token(secured: &Secured, sub: &str, jti: &str, ago_s: u64) -> String {
    let now_s = secured.clock.wall_ms() / 1_000;
    let claims = json!({
        "iss": "https://sso.example", "sub": sub, "aud": "aquifer", "jti": jti,
        "iat": now_s - ago_s, "exp": now_s - ago_s + 150,
    });
    let header = json!({"alg": "EdDSA", "kid": "k"});
    let message = format!(
        "{}.{}",
        encoded(header.to_string()),
        encoded(claims.to_string())
    );
    let signed = pair().sign(message.as_bytes());
    format!("{message}.{}", encoded(signed))
}

async fn start() -> (Secured, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let secured = Secured::start_as(trusting(folder.path()), None).await;
    // Metadata is not older than it was: only the wall clock moves.
    secured.clock.set_wall_ms(1_700_000_000_000);
    secured.tenants().await;
    for sub in ["alice", "bob"] {
        secured
            .grant(&format!("jwt:sso:{sub}"), &[Action::Produce], "acme")
            .await;
    }
    (secured, folder)
}

#[tokio::test]
async fn a_token_is_refused_by_its_id_and_its_sessions_end_at_every_broker() {
    let (secured, _folder) = start().await;
    let another = secured.another().await;
    let (one, other, last) = (
        token(&secured, "alice", "t-1", 5),
        token(&secured, "alice", "t-2", 5),
        token(&secured, "alice", "t-3", 5),
    );
    let caller = |text: &str| {
        let principal = authenticate(secured.broker(), Some(text)).unwrap();
        RequestContext::of(principal, "test")
    };
    let broker = secured.broker();
    let ends = broker
        .open_producer(&caller(&one), open(TOPIC, "p"))
        .await
        .unwrap();
    let stays = broker
        .open_producer(&caller(&other), open(TOPIC, "q"))
        .await
        .unwrap();
    let marks = broker
        .open_producer(&caller(&last), open(TOPIC, "r"))
        .await
        .unwrap();
    let admin = secured.admin();
    let revoke = Revoke::Token("sso:t-1".to_owned());
    let made = another.broker.add_revocation(&admin, revoke).await.unwrap();
    let ended = soon("the session to end", ends.end.wait()).await;
    assert_eq!(ended.kind, ErrorKind::Unauthenticated);
    for broker in [broker, &another.broker] {
        let refused = authenticate(broker, Some(&one));
        assert_eq!(kind(&refused), Some(ErrorKind::Unauthenticated));
        assert!(authenticate(broker, Some(&other)).is_ok());
    }
    // Sessions are judged in the order in which they were opened, all of them after a change: when
    // a later one ends of a later change, the one before it has been judged with both.
    let revoke = Revoke::Token("sso:t-3".to_owned());
    let marker = broker.add_revocation(&admin, revoke).await.unwrap();
    soon("the last session to end", marks.end.wait()).await;
    let ended = stays.end.wait().now_or_never();
    assert_eq!(ended, None, "another token's session goes on");
    broker.remove_revocation(&admin, marker.id).await.unwrap();

    let listed = broker.list_revocations(&admin, page()).await.unwrap().items;
    assert_eq!(listed, std::slice::from_ref(&made));
    broker
        .remove_revocation(&admin, made.id.clone())
        .await
        .unwrap();
    assert!(
        authenticate(broker, Some(&one)).is_ok(),
        "it was taken back"
    );
    let again = broker.remove_revocation(&admin, made.id).await;
    assert_eq!(kind(&again), Some(ErrorKind::NotFound));
}

#[tokio::test]
async fn tokens_of_a_principal_are_refused_that_were_issued_before_a_time() {
    let (secured, _folder) = start().await;
    let (broker, admin) = (secured.broker(), secured.admin());
    let accepted = |text: &str| authenticate(broker, Some(text)).is_ok();
    let (old, bob) = (
        token(&secured, "alice", "1", 100),
        token(&secured, "bob", "2", 100),
    );
    let fresh = token(&secured, "alice", "3", 10);
    let before = secured.clock.wall_ms() - 50_000;
    let alice = "jwt:sso:alice".to_owned();
    let revoke = Revoke::Principal(alice.clone(), Some(before));
    let made = broker.add_revocation(&admin, revoke).await.unwrap();
    assert_eq!(made.refuses, Refuses::IssuedBefore(alice.clone(), before));
    assert!(!accepted(&old) && accepted(&fresh) && accepted(&bob));
    // Without a time: all until now. A later one is accepted.
    let made = broker
        .add_revocation(&admin, Revoke::Principal(alice, None))
        .await
        .unwrap();
    assert!(!accepted(&fresh) && accepted(&bob));
    secured.clock.advance(std::time::Duration::from_secs(2));
    assert!(accepted(&token(&secured, "alice", "4", 0)));
    // What cannot refuse anything any more goes with the next one.
    let lasts = made.ends_ms - secured.clock.wall_ms() + 1;
    secured
        .clock
        .advance(std::time::Duration::from_millis(lasts));
    let revoke = Revoke::Token("sso:5".to_owned());
    let last = broker.add_revocation(&admin, revoke).await.unwrap();
    let listed = broker.list_revocations(&admin, page()).await.unwrap().items;
    assert_eq!(listed, [last]);
}

#[tokio::test]
async fn only_what_an_issuer_can_issue_is_revoked() {
    let (secured, _folder) = start().await;
    let (broker, admin) = (secured.broker(), secured.admin());
    let ahead = secured.clock.wall_ms() + 25 * 3_600 * 1_000;
    for bad in [
        Revoke::Token("t-1".to_owned()),
        Revoke::Token("other:t-1".to_owned()),
        Revoke::Token("sso:".to_owned()),
        Revoke::Token("sso:a b".to_owned()),
        Revoke::Token(format!("sso:{}", "x".repeat(2_000))),
        Revoke::Principal("token:admin".to_owned(), None),
        Revoke::Principal("jwt:other:alice".to_owned(), None),
        Revoke::Principal("jwt:sso:alice".to_owned(), Some(ahead)),
    ] {
        let refused = broker.add_revocation(&admin, bad.clone()).await;
        assert_eq!(kind(&refused), Some(ErrorKind::InvalidArgument), "{bad:?}");
    }
}
