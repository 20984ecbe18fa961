//! One HTTP/1.1 request over a connection of its own, for the few that a process makes: bounded in
//! what it reads, and to addresses that its caller allows. Redirects are not followed.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};

use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode, Uri};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::http1::Builder;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};

use crate::net::tls::ClientTls;

/// What a connection holds of an answer's head.
const HEAD_BYTES_MAX: usize = 64 * 1024;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Whether a URL's host is this machine, by its own text.
#[must_use]
pub fn is_local(uri: &Uri) -> bool {
    let host = bare(uri);
    let is_loopback = |ip: IpAddr| ip.is_loopback();
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(is_loopback)
}

/// Whether an address may be that of a server in a network: neither this machine nor what only its
/// own network segment has, where clouds keep the credentials of machines.
#[must_use]
pub fn is_routed(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            !(ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_broadcast())
        }
        IpAddr::V6(ip) => {
            !(ip.is_loopback()
                || ip.is_unicast_link_local()
                || ip.is_unspecified()
                || ip.is_multicast())
        }
    }
}

/// Sends a request to the host of a URL and reads the answer, up to a number of bytes. Needs TLS
/// for `https`. The addresses of the host are looked up once, and only those are connected to that
/// `may_reach` allows.
///
/// # Errors
/// When no address is allowed or reached, when the handshake fails, and when the answer is longer
/// or no HTTP.
pub async fn exchange<B>(
    uri: &Uri,
    request: Request<B>,
    tls: Option<&ClientTls>,
    may_reach: impl Fn(IpAddr) -> bool,
    bytes_max: usize,
) -> Result<(StatusCode, Bytes), Failure>
where
    B: Body + 'static,
    B::Data: Send,
    B::Error: Into<Failure>,
{
    let is_secret = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_secret { 443 } else { 80 });
    let stream = connect(bare(uri), port, may_reach).await?;
    if !is_secret {
        return send(stream, request, bytes_max).await;
    }
    let tls = tls.ok_or("https needs authorities")?;
    let stream = tls.connect(stream, bare(uri)).await?;
    send(stream, request, bytes_max).await
}

fn bare(uri: &Uri) -> &str {
    let host = uri.host().unwrap_or_default();
    host.trim_start_matches('[').trim_end_matches(']')
}

async fn connect(
    host: &str,
    port: u16,
    may_reach: impl Fn(IpAddr) -> bool,
) -> io::Result<TcpStream> {
    let mut failed = None;
    for address in lookup_host((host, port)).await? {
        if !may_reach(address.ip()) {
            let text = format!(
                "{host} is {}, which is no address of a server",
                address.ip()
            );
            failed = Some(io::Error::new(io::ErrorKind::PermissionDenied, text));
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it has no address")))
}

async fn send<S, B>(
    stream: S,
    request: Request<B>,
    bytes_max: usize,
) -> Result<(StatusCode, Bytes), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: Body + 'static,
    B::Data: Send,
    B::Error: Into<Failure>,
{
    let mut builder = Builder::new();
    builder.max_buf_size(HEAD_BYTES_MAX);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let mut connection = pin!(connection);
    let answer = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok::<_, Failure>((status, read(response.into_body(), bytes_max).await?))
    };
    let mut answer = pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        // It may end before what it has read is taken.
        _ = &mut connection => answer.await,
    }
}

async fn read(mut body: Incoming, bytes_max: usize) -> Result<Bytes, Failure> {
    let mut all = BytesMut::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        if all.len().saturating_add(data.len()) > bytes_max {
            return Err(format!("it answers more than {bytes_max} bytes").into());
        }
        all.extend_from_slice(&data);
    }
    Ok(all.freeze())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::net::{ListenAddress, bind};

    /// What a server that answers these bytes is understood to say.
    async fn answered(answer: &[u8], bytes_max: usize) -> Result<(StatusCode, Bytes), Failure> {
        let (listener, at) = bind(ListenAddress::loopback_any_port()).await.unwrap();
        let uri: Uri = format!("http://{at}/keys").parse().unwrap();
        let request = Request::get("/keys").body(String::new()).unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut asked).await.unwrap(), 0);
            }
            // A client that has read enough closes.
            let _ = stream.write_all(answer).await;
        };
        let fetched = exchange(&uri, request, None, |_| true, bytes_max);
        futures::join!(fetched, serve).0
    }

    #[tokio::test]
    async fn an_answer_is_read_up_to_its_bound() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        let (status, body) = answered(answer, 5).await.unwrap();
        assert_eq!((status, &body[..]), (StatusCode::OK, &b"hello"[..]));
        assert!(answered(answer, 4).await.is_err());
        let chunked =
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n";
        assert_eq!(&answered(chunked, 6).await.unwrap().1[..], b"abcdef");
        assert!(answered(chunked, 5).await.is_err());
        assert!(answered(b"nothing of HTTP\r\n\r\n", 99).await.is_err());
        let short = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello";
        assert!(answered(short, 99).await.is_err(), "it was cut off");
    }

    #[tokio::test]
    async fn addresses_that_are_not_allowed_are_not_connected_to() {
        let (listener, at) = bind(ListenAddress::loopback_any_port()).await.unwrap();
        let uri: Uri = format!("http://localhost:{}/", at.port()).parse().unwrap();
        let request = Request::get("/").body(String::new()).unwrap();
        let refused = exchange(&uri, request, None, is_routed, 9)
            .await
            .unwrap_err();
        assert!(
            refused.to_string().contains("no address of a server"),
            "{refused}"
        );
        drop(listener);
    }

    #[test]
    fn this_machine_and_the_next_one_are_no_servers() {
        for no in [
            "127.0.0.1",
            "::1",
            "169.254.169.254",
            "fe80::1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:127.0.0.1",
            "255.255.255.255",
            "ff02::1",
        ] {
            assert!(!is_routed(no.parse().unwrap()), "{no}");
        }
        for yes in ["10.0.0.1", "192.168.1.1", "203.0.113.9", "2001:db8::1"] {
            assert!(is_routed(yes.parse().unwrap()), "{yes}");
        }
        for (text, expected) in [
            ("http://127.0.0.1:1/x", true),
            ("http://[::1]/x", true),
            ("http://localhost/x", true),
            ("https://sso.example/x", false),
            ("https://127.0.0.1.example/x", false),
        ] {
            assert_eq!(is_local(&text.parse().unwrap()), expected, "{text}");
        }
    }
}
