//! Keys that a server rotates under a broker.

use std::sync::Arc;

use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::net::{ListenAddress, bind};
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::security::jwt::Issuers;

const NOW_MS: u64 = 1_500_000;

/// A server of keys: what it answers, and how often it was asked.
struct Server {
    answer: Arc<Mutex<(String, String)>>,
    asked: Arc<Mutex<u32>>,
    issuers: Arc<Issuers>,
    tasks: TaskGroup,
}

fn pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

fn key(seed: u8) -> Value {
    let x = URL_SAFE_NO_PAD.encode(pair(seed).public_key());
    json!({"kty": "OKP", "crv": "Ed25519", "kid": format!("k{seed}"), "x": x})
}

fn set(seeds: &[u8]) -> String {
    let keys: Vec<Value> = seeds.iter().map(|seed| key(*seed)).collect();
    json!({ "keys": keys }).to_string()
}

fn token(seed: u8) -> String {
    let header = json!({"alg": "EdDSA", "kid": format!("k{seed}")});
    let claims = json!({
        "iss": "https://sso.example", "sub": "alice", "aud": "aquifer", "iat": 1_000, "exp": 2_000,
    });
    let message = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let message = message.join(".");
    let signed = pair(seed).sign(message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signed))
}

impl Server {
    async fn start(answer: String) -> Server {
        let (listener, at) = bind(ListenAddress::loopback_any_port()).await.unwrap();
        let config = JwtIssuer {
            alias: "sso".to_owned(),
            issuer: "https://sso.example".to_owned(),
            audiences: vec!["aquifer".to_owned()],
            jwks_url: format!("http://{at}/keys"),
            ..JwtIssuer::default()
        };
        let clock = SystemClock::shared();
        let server = Server {
            answer: Arc::new(Mutex::new(("200 OK".to_owned(), answer))),
            asked: Arc::default(),
            issuers: Arc::new(Issuers::load(&[config], &clock).unwrap()),
            tasks: TaskGroup::new("keys"),
        };
        let (answer, asked) = (Arc::clone(&server.answer), Arc::clone(&server.asked));
        server.tasks.spawn("server", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await.unwrap_or_default() == 0 {
                        break;
                    }
                }
                *asked.lock() += 1;
                let (status, body) = answer.lock().clone();
                let length = body.len();
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        server
    }

    /// Fetches at this pace until the test ends.
    fn follow(&self, refresh_ms: u64) {
        let issuers = Arc::clone(&self.issuers);
        self.tasks.spawn("follow", async move {
            let metrics = KeyFetches::new(&Telemetry::for_tests().meter("broker"));
            let pace = Pace {
                refresh: Duration::from_millis(refresh_ms),
                between: Duration::from_millis(5),
            };
            issuers.0[0]
                .follow(pace, &SystemClock::shared(), &metrics)
                .await;
        });
    }

    fn answers(&self, status: &str, body: String) {
        *self.answer.lock() = (status.to_owned(), body);
    }

    /// At the time when keys were fetched: the claims have times of their own.
    fn accepts(&self, seed: u8) -> bool {
        let keys = &self.issuers.0[0].keys;
        let fetched_ms = keys.read().fetched_ms;
        keys.write().fetched_ms = fetched_ms.map(|_| NOW_MS);
        self.issuers.verify(&token(seed), NOW_MS).is_some()
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waits = async {
        while !holds() {
            clock::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = clock::timeout(Duration::from_secs(20), waits).await;
    assert!(waited.is_ok(), "{what}");
}

/// No refresh is due in the life of a test.
const NEVER_MS: u64 = 3_600_000;

#[tokio::test]
async fn an_unknown_key_is_fetched_and_one_that_is_gone_counts_no_more() {
    let server = Server::start(set(&[1])).await;
    assert!(!server.accepts(1), "nothing was fetched yet");
    server.follow(NEVER_MS);
    until("the first key", || server.accepts(1)).await;
    assert!(!server.accepts(2));
    server.answers("200 OK", set(&[1, 2]));
    until("the next key", || server.accepts(2)).await;
    assert!(server.accepts(1), "the former one is there still");
    server.answers("200 OK", set(&[2, 3]));
    until("a third key", || server.accepts(3)).await;
    assert!(!server.accepts(1));
}

#[tokio::test]
async fn what_is_no_set_of_keys_leaves_the_former_ones() {
    let server = Server::start(set(&[1])).await;
    server.follow(10);
    until("the first key", || server.accepts(1)).await;
    let mac = json!({"keys": [{"kty": "oct", "kid": "m", "k": URL_SAFE_NO_PAD.encode([1; 32])}]});
    for (status, body) in [
        ("503 Service Unavailable", set(&[2])),
        ("302 Found", set(&[2])),
        ("200 OK", "no keys".to_owned()),
        ("200 OK", mac.to_string()),
        ("200 OK", " ".repeat(300 << 10)),
    ] {
        server.answers(status, body);
        let before = *server.asked.lock();
        until("it is asked twice", || *server.asked.lock() >= before + 2).await;
        assert!(server.accepts(1) && !server.accepts(2), "{status}");
    }
    server.answers("200 OK", set(&[2]));
    until("it answers again", || server.accepts(2)).await;
}

#[tokio::test]
async fn keys_that_were_fetched_too_long_ago_verify_nothing() {
    let server = Server::start(set(&[1])).await;
    server.follow(NEVER_MS);
    until("the first key", || server.accepts(1)).await;
    let issuer = &server.issuers.0[0];
    let lasts = |now_ms: u64| {
        issuer.keys.write().fetched_ms = Some(1_000);
        issuer.are_current(now_ms)
    };
    assert!(lasts(1_000 + KEPT_MS - 1) && !lasts(1_000 + KEPT_MS));
}

#[test]
fn urls_are_https_or_of_this_machine_and_hold_no_secret() {
    for good in ["https://sso.example/keys", "http://127.0.0.1:8080/keys?x=y"] {
        assert!(check(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "keys",
        "/keys",
        "http://sso.example/keys",
        "ftp://127.0.0.1/keys",
        "https://user:secret@sso.example/keys",
    ] {
        assert!(check(bad).is_err(), "{bad}");
    }
}
