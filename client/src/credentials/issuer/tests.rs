//! An issuer that answers what a test tells it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::net::{ListenAddress, bind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// Fetches from an issuer that answers with this status and body; also what it was asked.
async fn fetch(status: &str, body: &str) -> (Result<Fetched>, String) {
    let folder = tempfile::tempdir().unwrap();
    let secret_file = folder.path().join("secret");
    fs::write(&secret_file, "s3/cret\n").unwrap();
    fs::set_permissions(&secret_file, fs::Permissions::from_mode(0o600)).unwrap();
    let (listener, address) = bind(ListenAddress::loopback_any_port()).await.unwrap();
    let issuer = ClientCredentials {
        token_url: format!("http://{address}/oauth/token"),
        client_id: "app 1".to_owned(),
        secret_file,
        scope: Some("a b".to_owned()),
        audience: Some("aquifer".to_owned()),
        ca_file: None,
    };
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = Vec::new();
        while !asked.ends_with(b"audience=aquifer") {
            assert_ne!(stream.read_buf(&mut asked).await.unwrap(), 0, "it ended");
        }
        let length = body.len();
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(asked).unwrap()
    };
    let clock: SharedClock = SystemClock::shared();
    futures::join!(issuer.fetch(&clock), serve)
}

#[tokio::test]
async fn a_token_is_issued_for_the_clients_secret() {
    let body = r#"{"access_token": "abc.def", "token_type": "Bearer", "expires_in": 300}"#;
    let (fetched, asked) = fetch("200 OK", body).await;
    let fetched = fetched.unwrap();
    assert_eq!(fetched.token.expose(), "abc.def");
    assert_eq!(fetched.lifetime, Some(Duration::from_secs(300)));
    assert!(
        asked.starts_with("POST /oauth/token HTTP/1.1\r\n"),
        "{asked}"
    );
    let basic = STANDARD.encode("app%201:s3%2Fcret");
    assert!(
        asked.contains(&format!("authorization: Basic {basic}\r\n")),
        "{asked}"
    );
    let form = "grant_type=client_credentials&scope=a%20b&audience=aquifer";
    assert!(asked.ends_with(form), "{asked}");
}

#[tokio::test]
async fn refusals_of_an_issuer_are_told_and_its_redirects_not_followed() {
    let body = r#"{"error": "invalid_client", "error_description": "no\nsuch client"}"#;
    let refused = fetch("401 Unauthorized", body)
        .await
        .0
        .map(|_| ())
        .unwrap_err();
    let text = refused.to_string();
    assert!(!refused.is_retryable());
    assert!(text.contains(r"invalid_client: no\nsuch client"), "{text}");
    let moved = fetch("302 Found", "").await.0.map(|_| ()).unwrap_err();
    assert!(moved.to_string().contains("not followed"), "{moved}");
    for (status, body) in [
        ("503 Service Unavailable", ""),
        ("429 Too Many Requests", "x"),
    ] {
        assert!(
            fetch(status, body)
                .await
                .0
                .map(|_| ())
                .unwrap_err()
                .is_retryable()
        );
    }
    let empty = fetch("200 OK", "{}").await.0.map(|_| ()).unwrap_err();
    assert!(!empty.is_retryable(), "{empty}");
}

#[tokio::test]
async fn the_secret_goes_to_https_alone() {
    let issuer = ClientCredentials {
        token_url: "http://issuer.example.org/token".to_owned(),
        client_id: "app".to_owned(),
        secret_file: "/no/such/file".into(),
        scope: None,
        audience: None,
        ca_file: None,
    };
    let error = issuer
        .fetch(&SystemClock::shared())
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(error.to_string().contains("https"), "{error}");
}
