//! A proxy for HTTP/2 that holds back what passes it, for faults that a process cannot be made to
//! have: an answer that never arrives, a request that arrives long after its sender gave up.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use aquifer_runtime::net::{ListenAddress, bind};
use aquifer_runtime::task::{ShutdownToken, TaskGroup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// They pass.
    Pass,
    /// They are kept, in order.
    Hold,
    /// They pass, but the receiver does not learn what the sender has given up: as if that had
    /// overtaken nothing. For requests only.
    Uncancelled,
}

#[derive(Debug)]
struct State {
    target: String,
    requests: watch::Sender<Flow>,
    answers: watch::Sender<Flow>,
    /// Pieces of answers that came from the target.
    answered: watch::Sender<u64>,
    /// Pieces of requests that are kept.
    held: watch::Sender<u64>,
    /// Counts how often all connections were cut.
    cuts: watch::Sender<u64>,
}

/// A proxy; dropping it closes it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
    tasks: TaskGroup,
}

impl Proxy {
    /// Listens on a loopback port and passes everything on to `target`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(target: impl Into<String>) -> Result<Proxy> {
        let (listener, address) = bind(ListenAddress::loopback_any_port()).await?;
        let state = Arc::new(State {
            target: target.into(),
            requests: watch::Sender::new(Flow::Pass),
            answers: watch::Sender::new(Flow::Pass),
            answered: watch::Sender::new(0),
            held: watch::Sender::new(0),
            cuts: watch::Sender::new(0),
        });
        let tasks = TaskGroup::new("proxy");
        let accept = accept(listener, Arc::clone(&state), tasks.clone());
        drop(tasks.spawn("proxy-accept", accept));
        Ok(Proxy {
            address,
            state,
            tasks,
        })
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What happens to requests from now on.
    pub fn requests(&self, flow: Flow) {
        self.state.requests.send_replace(flow);
    }

    /// What happens to answers from now on.
    pub fn answers(&self, flow: Flow) {
        self.state.answers.send_replace(flow);
    }

    /// Closes all connections; new ones may come.
    pub fn cut(&self) {
        self.state.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Changes with each piece of an answer that the target gives.
    pub fn answered(&self) -> watch::Receiver<u64> {
        self.state.answered.subscribe()
    }

    /// Changes with each piece of a request that is kept.
    pub fn held(&self) -> watch::Receiver<u64> {
        self.state.held.subscribe()
    }

    /// Closes the proxy.
    pub async fn close(self) {
        self.tasks.drain(Duration::from_secs(5)).await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.shutdown();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>, tasks: TaskGroup) {
    let shutdown = tasks.shutdown_token();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.wait() => return,
        };
        let Ok((client, _)) = accepted else { continue };
        let connection = connection(client, Arc::clone(&state), tasks.shutdown_token());
        drop(tasks.spawn("proxy-connection", connection));
    }
}

async fn connection(client: TcpStream, state: Arc<State>, shutdown: ShutdownToken) {
    let mut cuts = state.cuts.subscribe();
    let Ok(target) = TcpStream::connect(&state.target).await else {
        return;
    };
    let (client_read, client_write) = client.into_split();
    let (target_read, target_write) = target.into_split();
    let requests = pass(
        client_read,
        target_write,
        &state.requests,
        &state.held,
        Some(Frames::default()),
    );
    let answers = pass(
        target_read,
        client_write,
        &state.answers,
        &state.answered,
        None,
    );
    // A client that gives up does not take back what is kept for the target.
    let both = async { tokio::join!(requests, answers) };
    tokio::select! {
        _ = both => {}
        _ = cuts.changed() => {}
        () = shutdown.wait() => {}
    }
}

/// Passes bytes on, and counts pieces: of requests those that are kept, of answers all.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    flow: &watch::Sender<Flow>,
    count: &watch::Sender<u64>,
    mut frames: Option<Frames>,
) {
    let mut current = flow.subscribe();
    let mut piece = vec![0; 64 << 10];
    while let Ok(read) = from.read(&mut piece).await
        && read > 0
    {
        if frames.is_none() || *flow.borrow() == Flow::Hold {
            count.send_modify(|count| *count += 1);
        }
        if current.wait_for(|flow| *flow != Flow::Hold).await.is_err() {
            return;
        }
        let passed = match &mut frames {
            None => piece[..read].to_vec(),
            Some(frames) => frames.read(&piece[..read], *flow.borrow() == Flow::Uncancelled),
        };
        if to.write_all(&passed).await.is_err() {
            return;
        }
    }
    // The other side learns of the end when everything before it has arrived.
    let _ = to.shutdown().await;
}

/// What a client says first on a connection.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADER_BYTES: usize = 9;
/// The type of a frame that cancels a stream.
const RST_STREAM: u8 = 3;

/// Finds the frames in what a client sends.
#[derive(Debug, Default)]
struct Frames {
    preface_seen: usize,
    /// The start of a frame's header.
    header: Vec<u8>,
    /// Bytes that are left of the frame, and whether they pass.
    left: usize,
    dropped: bool,
}

impl Frames {
    /// What passes of a piece.
    fn read(&mut self, mut piece: &[u8], drop_cancels: bool) -> Vec<u8> {
        let mut passed = Vec::with_capacity(piece.len());
        let preface = piece.len().min(PREFACE.len() - self.preface_seen);
        passed.extend_from_slice(&piece[..preface]);
        self.preface_seen += preface;
        piece = &piece[preface..];
        while !piece.is_empty() {
            if self.left > 0 {
                let (part, rest) = piece.split_at(self.left.min(piece.len()));
                self.left -= part.len();
                piece = rest;
                if !self.dropped {
                    passed.extend_from_slice(part);
                }
                continue;
            }
            let missing = HEADER_BYTES - self.header.len();
            let (part, rest) = piece.split_at(missing.min(piece.len()));
            self.header.extend_from_slice(part);
            piece = rest;
            if self.header.len() == HEADER_BYTES {
                let header = std::mem::take(&mut self.header);
                let length = [0, header[0], header[1], header[2]];
                self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                self.dropped = drop_cancels && header[3] == RST_STREAM;
                if !self.dropped {
                    passed.extend_from_slice(&header);
                }
            }
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cancels_are_dropped_however_the_bytes_are_cut() {
        let frame = |kind: u8, body: &[u8]| {
            let length = u8::try_from(body.len()).unwrap();
            [&[0, 0, length, kind, 0, 0, 0, 0, 1], body].concat()
        };
        let request = [PREFACE, &frame(4, b""), &frame(1, b"headers")].concat();
        let cancel = frame(RST_STREAM, b"\0\0\0\x08");
        let rest = frame(0, b"data");
        let all = [request.as_slice(), &cancel, &rest].concat();
        for size in [1, 2, 7, 1000] {
            let read = |drop_cancels: bool| {
                let mut frames = Frames::default();
                let pieces = all.chunks(size);
                let passed = pieces.flat_map(|piece| frames.read(piece, drop_cancels));
                passed.collect::<Vec<u8>>()
            };
            assert_eq!(read(false), all);
            assert_eq!(read(true), [request.as_slice(), &rest].concat());
        }
    }
}
