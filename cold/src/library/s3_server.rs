//! A server that speaks as much S3 as the library asks for, with the faults that a store has over
//! HTTP. Each connection serves one request.
#![allow(
    clippy::disallowed_methods,
    reason = "a server of tests, over real sockets"
)]

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::clock;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Head,
    Get,
    Put,
    Begin,
    Part,
    Complete,
    Abort,
    Delete,
    List,
}

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    /// It is refused with this status and code, and has no effect.
    Refused(u16, &'static str),
    /// It has its effect, and the connection ends without an answer.
    AnswerLost,
    /// The answer stands behind a status of success.
    ErrorBehindSuccess,
    /// Half of the body comes, then the connection ends.
    Cut,
    /// The answer has fewer bytes than were asked for, and says so.
    Short,
    /// The body comes byte by byte, slower than anyone waits.
    Drips,
    /// The whole object comes instead of a part.
    Whole,
    /// A part is kept under another tag than the one that is answered.
    OtherTag,
    /// A part is answered as kept, and is not.
    PartLost,
    /// The object is made without its last part.
    MadeWithoutPart,
    /// The object has another tag from now on: it is another one.
    Replaced,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, (Vec<u8>, u64)>,
    uploads: BTreeMap<String, BTreeMap<usize, (Vec<u8>, u64)>>,
    next: u64,
    wrong: VecDeque<(Kind, Wrong)>,
    seen: Vec<Kind>,
}

impl State {
    fn draw(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// See the module. It lives as long as the runtime of its test.
#[derive(Clone)]
pub(super) struct S3Server {
    state: Arc<Mutex<State>>,
    port: u16,
}

struct Request {
    kind: Kind,
    key: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// For answers to HEAD: what the body would have.
    length: usize,
}

fn answer(status: u16, body: impl Into<Vec<u8>>) -> Answer {
    let body = body.into();
    Answer {
        status,
        headers: Vec::new(),
        length: body.len(),
        body,
    }
}

fn refusal(status: u16, code: &str) -> Answer {
    let text = format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>");
    answer(status, text)
}

impl S3Server {
    pub(super) async fn start() -> S3Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = S3Server {
            port: listener.local_addr().unwrap().port(),
            state: Arc::default(),
        };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = serving.clone();
                // What a client gives up ends with its connection.
                tokio::spawn(async move { server.serve(stream).await.ok() });
            }
        });
        server
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The next requests of a kind go wrong, one after the other.
    pub(super) fn next(&self, kind: Kind, wrong: &[Wrong]) {
        let mut state = self.state.lock();
        state.wrong.extend(wrong.iter().map(|wrong| (kind, *wrong)));
    }

    /// Nothing goes wrong any more.
    pub(super) fn heal(&self) {
        self.state.lock().wrong.clear();
    }

    /// Requests of a kind since that was asked last.
    pub(super) fn count(&self, kind: Kind) -> usize {
        let mut state = self.state.lock();
        let before = state.seen.len();
        state.seen.retain(|seen| *seen != kind);
        before - state.seen.len()
    }

    pub(super) fn object(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state.lock();
        state.objects.get(name).map(|(bytes, _)| bytes.clone())
    }

    pub(super) fn unfinished(&self) -> usize {
        self.state.lock().uploads.len()
    }

    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let request = read(&mut stream).await?;
        let wrong = {
            let mut state = self.state.lock();
            state.seen.push(request.kind);
            let at = state
                .wrong
                .iter()
                .position(|(kind, _)| *kind == request.kind);
            at.and_then(|at| state.wrong.remove(at))
                .map(|(_, wrong)| wrong)
        };
        let answer = match wrong {
            Some(Wrong::Refused(status, code)) => refusal(status, code),
            _ => self.state.lock().work(&request, wrong),
        };
        match wrong {
            Some(Wrong::AnswerLost) => return Ok(()),
            Some(Wrong::ErrorBehindSuccess) => {
                return send(&mut stream, &refusal(200, "InternalError"), None).await;
            }
            _ => {}
        }
        send(&mut stream, &answer, wrong).await
    }
}

async fn read(stream: &mut TcpStream) -> std::io::Result<Request> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let first: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_owned()))
    };
    let headers: BTreeMap<String, String> = lines.filter_map(header).collect();
    let length = headers
        .get("content-length")
        .map_or(0, |n| n.parse().unwrap());
    while bytes.len() < end + length {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let (path, query) = first[1].split_once('?').unwrap_or((first[1], ""));
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name.to_owned(), value.replace("%2F", "/"))
    };
    let query: BTreeMap<String, String> = query.split('&').map(pair).collect();
    let of_upload = query.contains_key("uploadId");
    let kind = match first[0] {
        "HEAD" => Kind::Head,
        "GET" if query.contains_key("list-type") => Kind::List,
        "GET" => Kind::Get,
        "PUT" if of_upload => Kind::Part,
        "PUT" => Kind::Put,
        "POST" if of_upload => Kind::Complete,
        "POST" => Kind::Begin,
        "DELETE" if of_upload => Kind::Abort,
        "DELETE" => Kind::Delete,
        other => panic!("{other} is nothing that S3 does"),
    };
    // Behind the bucket.
    let key = path.trim_start_matches('/').split_once('/');
    Ok(Request {
        kind,
        key: key.map(|(_, key)| key.to_owned()).unwrap_or_default(),
        query,
        headers,
        body: bytes[end..end + length].to_vec(),
    })
}

/// Sends an answer, or as much of it as comes.
async fn send(
    stream: &mut TcpStream,
    answer: &Answer,
    wrong: Option<Wrong>,
) -> std::io::Result<()> {
    let mut head = format!(
        "HTTP/1.1 {} X\r\nContent-Length: {}\r\nConnection: close\r\n",
        answer.status, answer.length
    );
    for (name, value) in &answer.headers {
        head += &[name, ": ", value.as_str(), "\r\n"].concat();
    }
    head.push_str("Last-Modified: Mon, 30 Nov 2026 01:00:00 GMT\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    match wrong {
        Some(Wrong::Cut) => {
            stream
                .write_all(&answer.body[..answer.body.len() / 2])
                .await?
        }
        Some(Wrong::Drips) => {
            for byte in &answer.body {
                stream.write_all(&[*byte]).await?;
                stream.flush().await?;
                clock::sleep(Duration::from_millis(50)).await;
            }
        }
        _ => stream.write_all(&answer.body).await?,
    }
    stream.flush().await?;
    stream.shutdown().await
}

fn tag(number: u64) -> String {
    format!("\"{number}\"")
}

impl State {
    fn work(&mut self, request: &Request, wrong: Option<Wrong>) -> Answer {
        let key = &request.key;
        let upload = || request.query.get("uploadId").cloned().unwrap_or_default();
        match request.kind {
            Kind::Head | Kind::Get => self.get(request, wrong),
            Kind::Put => {
                let is_new = request.headers.contains_key("if-none-match");
                if is_new && self.objects.contains_key(key) {
                    return refusal(412, "PreconditionFailed");
                }
                self.put(key, request.body.clone())
            }
            Kind::Begin => {
                let id = format!("u{}", self.draw());
                self.uploads.insert(id.clone(), BTreeMap::new());
                answer(
                    200,
                    format!(
                        "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>{key}</Key>\
                         <UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
                    ),
                )
            }
            Kind::Part => {
                let number = self.draw();
                let Some(parts) = self.uploads.get_mut(&upload()) else {
                    return refusal(404, "NoSuchUpload");
                };
                let at = request.query["partNumber"].parse().unwrap();
                let kept = match wrong {
                    Some(Wrong::OtherTag) => number + 1_000_000,
                    _ => number,
                };
                if wrong != Some(Wrong::PartLost) {
                    parts.insert(at, (request.body.clone(), kept));
                }
                let mut done = answer(200, "");
                done.headers.push(("ETag", tag(number)));
                done
            }
            Kind::Complete => self.complete(request, &upload(), wrong),
            Kind::Abort => match self.uploads.remove(&upload()) {
                Some(_) => answer(204, ""),
                None => refusal(404, "NoSuchUpload"),
            },
            Kind::Delete => {
                self.objects.remove(key);
                answer(204, "")
            }
            Kind::List => self.list(request),
        }
    }

    fn put(&mut self, key: &str, bytes: Vec<u8>) -> Answer {
        let number = self.draw();
        self.objects.insert(key.to_owned(), (bytes, number));
        let mut done = answer(200, "");
        done.headers.push(("ETag", tag(number)));
        done
    }

    fn complete(&mut self, request: &Request, upload: &str, wrong: Option<Wrong>) -> Answer {
        let Some(parts) = self.uploads.get(upload) else {
            return refusal(404, "NoSuchUpload");
        };
        let wanted = String::from_utf8_lossy(&request.body).replace("&quot;", "\"");
        let is_kept = |number: &u64| wanted.contains(&format!("{}<", tag(*number)));
        let asked = wanted.matches("<PartNumber>").count();
        let kept = parts.values().filter(|(_, number)| is_kept(number)).count();
        if kept != asked {
            return refusal(400, "InvalidPart");
        }
        let taken = match wrong {
            Some(Wrong::MadeWithoutPart) => parts.len() - 1,
            _ => parts.len(),
        };
        let parts = parts.values().take(taken);
        let bytes = parts.flat_map(|(bytes, _)| bytes.clone()).collect();
        self.uploads.remove(upload);
        let key = &request.key;
        self.put(key, bytes);
        answer(
            200,
            format!(
                "<CompleteMultipartUploadResult><Bucket>b</Bucket><Key>{key}</Key>\
                 <ETag>\"1\"</ETag></CompleteMultipartUploadResult>"
            ),
        )
    }

    fn get(&mut self, request: &Request, wrong: Option<Wrong>) -> Answer {
        let next = self.draw();
        let Some((bytes, number)) = self.objects.get_mut(&request.key) else {
            return refusal(404, "NoSuchKey");
        };
        if wrong == Some(Wrong::Replaced) {
            *number = next;
        }
        let is_other = |wanted: &String| *wanted != tag(*number);
        if request.headers.get("if-match").is_some_and(is_other) {
            return refusal(412, "PreconditionFailed");
        }
        let range = request.headers.get("range").map(|range| {
            let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
            let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
            from..(to + 1).min(bytes.len())
        });
        let range = range.filter(|_| wrong != Some(Wrong::Whole));
        let mut found = match range {
            Some(range) if range.start >= bytes.len() => return refusal(416, "InvalidRange"),
            Some(mut range) => {
                if wrong == Some(Wrong::Short) {
                    range.end = range.start + range.len() / 2;
                }
                let of = format!("bytes {}-{}/{}", range.start, range.end - 1, bytes.len());
                let mut part = answer(206, &bytes[range]);
                part.headers.push(("Content-Range", of));
                part
            }
            None => answer(200, bytes.as_slice()),
        };
        found.headers.push(("ETag", tag(*number)));
        if request.kind == Kind::Head {
            found.body.clear();
        }
        found
    }

    fn list(&self, request: &Request) -> Answer {
        let asked = |name: &str| request.query.get(name).cloned().unwrap_or_default();
        let (prefix, after) = (asked("prefix"), asked("start-after"));
        let mut text = "<ListBucketResult><IsTruncated>false</IsTruncated>".to_owned();
        for (name, (bytes, number)) in &self.objects {
            if name.starts_with(&prefix) && *name > after {
                let _ = write!(
                    text,
                    "<Contents><Key>{name}</Key><Size>{}</Size><ETag>{number}</ETag>\
                     <LastModified>2026-11-30T01:00:00.000Z</LastModified></Contents>",
                    bytes.len()
                );
            }
        }
        text.push_str("</ListBucketResult>");
        answer(200, text)
    }
}

/// Bytes of some length that no two offsets share.
pub(super) fn some_bytes(count: u32) -> Bytes {
    (0..count / 4)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect()
}
