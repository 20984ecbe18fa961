//! A TCP proxy that holds back what passes it, for faults that a process cannot be made to have:
//! an answer that never arrives, a request that arrives long after its sender gave up.

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
    /// What is kept of one piece passes, and then they are kept again.
    Once,
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
    pub async fn start(target: impl Into<String>) -> Result<Self> {
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
        Ok(Self {
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
        true,
    );
    let answers = pass(
        target_read,
        client_write,
        &state.answers,
        &state.answered,
        false,
    );
    // A client that gives up does not take back what is kept for the target.
    let both = async { tokio::join!(requests, answers) };
    tokio::select! {
        _ = both => {}
        _ = cuts.changed() => {}
        () = shutdown.wait() => {}
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    flow: &watch::Sender<Flow>,
    count: &watch::Sender<u64>,
    count_held_only: bool,
) {
    let mut current = flow.subscribe();
    let mut piece = vec![0; 64 << 10];
    while let Ok(read) = from.read(&mut piece).await
        && read > 0
    {
        if !count_held_only || *flow.borrow() == Flow::Hold {
            count.send_modify(|count| *count += 1);
        }
        if current.wait_for(|flow| *flow != Flow::Hold).await.is_err() {
            return;
        }
        flow.send_if_modified(|flow| {
            let once = *flow == Flow::Once;
            if once {
                *flow = Flow::Hold;
            }
            once
        });
        if to.write_all(&piece[..read]).await.is_err() {
            return;
        }
    }
    // The other side learns of the end when everything before it has arrived.
    let _ = to.shutdown().await;
}
