use std::net::SocketAddr;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::server::TcpConnectInfo;

use super::*;
use crate::clock::timeout;
use crate::net::{ListenAddress, bind};

const HANG: Duration = Duration::from_secs(30);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

/// Answers with the address of the peer.
#[derive(Clone)]
struct Echo;

struct Text(Option<Bytes>);

impl From<&'static str> for Text {
    fn from(text: &'static str) -> Text {
        Text(Some(text.into()))
    }
}

impl Body for Text {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let bytes = self.0.as_ref().map_or(0, Bytes::len);
        SizeHint::with_exact(u64::try_from(bytes).unwrap())
    }
}

type Echoed = Pin<Box<dyn Future<Output = Result<Response<Text>, Infallible>> + Send>>;

impl Service<Request<Incoming>> for Echo {
    type Response = Response<Text>;
    type Error = Infallible;
    type Future = Echoed;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Echoed {
        let info = request.extensions().get::<TcpConnectInfo>().unwrap();
        let text = format!("{}", info.remote_addr().unwrap());
        let is_for_ever = request.uri().path() == "/for-ever";
        Box::pin(async move {
            if is_for_ever {
                std::future::pending::<()>().await;
            }
            Ok(Response::new(Text(Some(text.into()))))
        })
    }
}

async fn served(head: Duration, silence: Duration) -> (SocketAddr, TaskGroup) {
    let (listener, address) = bind(ListenAddress::loopback_any_port()).await.unwrap();
    let tasks = TaskGroup::new("test");
    let deadlines = Deadlines { head, silence };
    serve_within(deadlines, (listener, None), &["/probe"], Echo, &tasks);
    (address, tasks)
}

/// What the server says until it closes the connection.
async fn to_the_end(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    // A connection that is closed with bytes unread is reset.
    let _ = timeout(HANG, stream.read_to_end(&mut text)).await.unwrap();
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn requests_know_their_peer() {
    let (address, tasks) = served(HEAD_MAX, SILENCE).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(REQUEST).await.unwrap();
    let local = stream.local_addr().unwrap().to_string();
    let answer = to_the_end(&mut stream).await;
    assert!(answer.ends_with(&local), "{answer}");
    assert_eq!(tasks.failed(), None);
}

#[tokio::test]
async fn silent_connections_are_closed_and_so_are_too_many() {
    let long = Duration::from_secs(3600);
    let short = Duration::from_millis(300);
    // Either limit alone closes them.
    for (head, silence) in [(short, long), (long, short)] {
        let (address, tasks) = served(head, silence).await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX + 8 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        // Those beyond the bound are closed at once, the others when their time is over.
        for stream in &mut silent {
            assert_eq!(to_the_end(stream).await, "");
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(REQUEST).await.unwrap();
        assert!(to_the_end(&mut stream).await.contains("200 OK"));
        assert_eq!(tasks.failed(), None);
    }
}

/// Whatever others hold, idle or not, a probe is answered.
#[tokio::test]
async fn many_connections_keep_no_probe_out() {
    let (address, tasks) = served(HEAD_MAX, SILENCE).await;
    for request in [&b""[..], b"GET /for-ever HTTP/1.1\r\nhost: x\r\n\r\n"] {
        let mut held = Vec::new();
        for _ in 0..2 * CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // Those that have no place are closed meanwhile.
            let _ = stream.write_all(request).await;
            held.push(stream);
        }
        let mut answers = Vec::new();
        for path in ["/probe", "/other"] {
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            answers.push(to_the_end(&mut stream).await);
        }
        assert!(answers[0].contains("200 OK"), "{answers:?}");
        let other = match request.is_empty() {
            true => "200 OK",
            false => "503 Service Unavailable",
        };
        assert!(answers[1].contains(other), "{answers:?}");
    }
    assert_eq!(tasks.failed(), None);
}

#[tokio::test]
async fn a_head_without_end_is_given_up() {
    let (address, _tasks) = served(Duration::from_millis(300), SILENCE).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nx: ").await.unwrap();
    assert!(!to_the_end(&mut stream).await.contains("200"));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let large = vec![b'x'; BUFFER_BYTES_MAX * 2];
    let mut head = b"GET / HTTP/1.1\r\nx: ".to_vec();
    head.extend_from_slice(&large);
    // The server may hang up meanwhile.
    let _ = stream.write_all(&head).await;
    assert!(!to_the_end(&mut stream).await.contains("200"));
}

#[tokio::test]
async fn a_shutdown_closes_idle_connections() {
    let (address, tasks) = served(HEAD_MAX, SILENCE).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut status = [0; 15];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200 OK");
    assert_eq!(timeout(HANG, tasks.drain(HANG)).await.unwrap(), 0);
    to_the_end(&mut stream).await;
}
