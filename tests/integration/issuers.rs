//! Tokens of an issuer whose keys are fetched, roles that are made, and revocations, as users meet
//! them; and that no such token shows where it does not belong.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use aquifer_harness::wait::until;
use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::net::{ListenAddress, bind};
use aquifer_runtime::task::TaskGroup;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::security::support::{Secured, Tool, metrics, text};

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// An issuer: it signs tokens, and answers its public key.
struct Issuer {
    pair: Ed25519KeyPair,
    url: String,
    _tasks: TaskGroup,
}

impl Issuer {
    async fn start() -> Result<Issuer> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[5; 32]);
        let pair = pair.ok().context("a key")?;
        let x = encoded(pair.public_key());
        let keys = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": x}]});
        let body = keys.to_string();
        let (listener, at) = bind(ListenAddress::loopback_any_port()).await?;
        let tasks = TaskGroup::new("issuer");
        tasks.spawn("issuer", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await.unwrap_or_default() == 0 {
                        break;
                    }
                }
                let length = body.len();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Ok(Issuer {
            pair,
            url: format!("http://{at}/keys"),
            _tasks: tasks,
        })
    }

    fn settings(&self) -> String {
        format!(
            "[[auth.jwt]]\nalias = \"sso\"\nissuer = \"https://sso.example\"\n\
             audiences = [\"aquifer\"]\njwks_url = \"{}\"\n",
            self.url
        )
    }

    /// A file with a token of alice.
    fn token(&self, secured: &Secured, jti: &str) -> Result<PathBuf> {
        let now_s = SystemClock::shared().wall_ms() / 1_000;
        let claims = json!({
            "iss": "https://sso.example", "sub": "alice", "aud": "aquifer", "jti": jti,
            "iat": now_s, "exp": now_s + 3_600,
        });
        let header = json!({"alg": "EdDSA", "kid": "k"});
        let message = [header, claims].map(|part| encoded(part.to_string()));
        let message = message.join(".");
        let signed = encoded(self.pair.sign(message.as_bytes()));
        let file = secured.path(&format!("{jti}.jwt"));
        fs::write(&file, format!("{message}.{signed}"))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        Ok(file)
    }
}

async fn accepted(secured: &Secured, token: &Path) -> Result<()> {
    let words = ["access", "whoami"];
    until("the keys of the issuer are fetched", async || {
        let output = secured.run(Some(token), &words)?;
        Ok(output.status.success().then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_an_issuer_has_an_own_role_and_is_revoked() -> Result<()> {
    let issuer = Issuer::start().await?;
    let secured = Secured::start_with(&issuer.settings()).await?;
    secured.tenant("acme")?;
    let (first, second) = (
        issuer.token(&secured, "t-1")?,
        issuer.token(&secured, "t-2")?,
    );
    accepted(&secured, &first).await?;
    let topic = "acme/shop/orders";
    let of_acme = ["--tenant", "acme"];
    let create = ["role", "create", "clerk", "--actions", "describe,produce"];
    let said = secured.as_admin(&[&create[..], &of_acme].concat())?;
    ensure!(
        said == "role clerk, of tenant acme: describe, produce\n",
        "{said}"
    );
    let grant = ["grant", "add", "jwt:sso:alice", "clerk"];
    secured.as_admin(&[&grant[..], &of_acme].concat())?;
    secured.succeeded(&first, &["produce", topic, "one"])?;
    secured.refused(Some(&first), &["consume", topic, "-s", "s"])?;
    let update = [
        "role",
        "update",
        "clerk",
        "--actions",
        "describe,produce,consume",
    ];
    secured.as_admin(&[&update[..], &of_acme].concat())?;
    let follow = ["consume", topic, "-s", "s", "--follow"];
    let consume = Tool::start(&secured, "consume", &first, &follow)?;
    consume.prints("one").await?;
    let delete = [&["role", "delete", "clerk"][..], &of_acme].concat();
    let output = secured.run(Some(&secured.admin()), &delete)?;
    let why = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && why.contains("is in use by grants: "),
        "{why}"
    );

    secured.as_admin(&["token", "revoke", "--jti", "sso:t-1"])?;
    until("the session to end", async || consume.status()).await?;
    secured.refused(Some(&first), &["produce", topic, "two"])?;
    secured.succeeded(&second, &["produce", topic, "three"])?;
    let listed = secured.as_admin(&["token", "revocations", "--output", "json"])?;
    let listed: serde_json::Value = serde_json::from_str(&listed)?;
    ensure!(listed["jti"] == "sso:t-1", "{listed}");
    let id = listed["id"].as_str().context("an id")?;
    secured.as_admin(&["token", "unrevoke", id])?;
    secured.succeeded(&first, &["produce", topic, "four"])?;
    let subject = [
        "token",
        "revoke",
        "--subject",
        "jwt:sso:alice",
        "--issued-before",
    ];
    secured.as_admin(&[&subject[..], &["2020-01-01T00:00:00Z"]].concat())?;
    secured.succeeded(&first, &["produce", topic, "five"])?;
    // Times of tokens are whole seconds, and this one was issued in the past.
    secured.as_admin(&subject[..4])?;
    secured.refused(Some(&second), &["produce", topic, "six"])?;

    shows_nowhere(&issuer, &secured, &[&first, &second]).await?;
    secured.server.check_logs()
}

/// Every place that a token could leak to is searched for its signature.
async fn shows_nowhere(issuer: &Issuer, secured: &Secured, tokens: &[&Path]) -> Result<()> {
    let config = secured.path("check.toml");
    fs::write(&config, issuer.settings())?;
    let check = [
        "standalone",
        "--auth",
        "--check-config",
        "--config",
        &text(&config),
    ];
    let check = secured.run(None, &check)?;
    ensure!(check.status.success(), "{check:?}");
    let admin = fs::read_to_string(secured.admin())?;
    let log = secured.server.log();
    ensure!(log.contains("DEBUG"), "the canary needs debug logs");
    let metrics = metrics(&secured.server, admin.trim()).await?;
    let fetched = "aquifer_broker_issuer_key_fetches_total{issuer=\"sso\",outcome=\"done\"";
    ensure!(metrics.contains(fetched), "{metrics}");
    let places = [
        ("log", log),
        ("metrics", metrics),
        (
            "configuration",
            String::from_utf8_lossy(&check.stdout).into_owned(),
        ),
        (
            "audit",
            secured.as_admin(&["audit", "tail", "--lines", "200"])?,
        ),
        ("revocations", secured.as_admin(&["token", "revocations"])?),
    ];
    for token in tokens {
        let token = fs::read_to_string(token)?;
        for part in token.split('.').skip(1) {
            for (place, text) in &places {
                ensure!(!text.contains(part), "the {place} show a token:\n{text}");
            }
        }
    }
    Ok(())
}
