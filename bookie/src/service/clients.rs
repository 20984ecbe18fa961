//! One ordered stream per client at a time.
//!
//! A client whose connection broke opens another while requests of the former may still be on
//! their way through this process. The new stream ends the former and waits for it, so that
//! nothing that was sent earlier takes effect later.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedMutexGuard, watch};

/// The clients with an ordered stream.
#[derive(Debug, Default)]
pub(super) struct Clients {
    current: Mutex<HashMap<Bytes, Current>>,
}

#[derive(Debug)]
struct Current {
    /// Held by the stream that takes requests.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Tells the newest stream that it is not any more.
    over: watch::Sender<bool>,
}

/// The right of a stream to take requests.
#[derive(Debug)]
pub(super) struct Turn {
    clients: Arc<Clients>,
    client: Bytes,
    over: watch::Receiver<bool>,
    turn: Arc<tokio::sync::Mutex<()>>,
    held: Option<OwnedMutexGuard<()>>,
}

impl Clients {
    /// Ends the former stream of the client, if there is one, and waits until it is over. Clients
    /// without an id are not told apart, and have as many streams as they like.
    pub(super) async fn enter(self: &Arc<Self>, client: Bytes) -> Option<Turn> {
        if client.is_empty() {
            return None;
        }
        let mut turn = {
            let mut current = self.current.lock();
            let (over, is_over) = watch::channel(false);
            let turn = match current.get_mut(&client) {
                Some(former) => {
                    former.over.send_replace(true);
                    former.over = over;
                    Arc::clone(&former.turn)
                }
                None => {
                    let turn = Arc::default();
                    let entry = Current {
                        turn: Arc::clone(&turn),
                        over,
                    };
                    current.insert(client.clone(), entry);
                    turn
                }
            };
            Turn {
                clients: Arc::clone(self),
                client,
                over: is_over,
                turn,
                held: None,
            }
        };
        turn.held = Some(Arc::clone(&turn.turn).lock_owned().await);
        Some(turn)
    }
}

/// Waits until a newer stream wants the turn; for ever without one.
pub(super) async fn is_over(turn: &mut Option<Turn>) {
    match turn {
        // An error means that the sender was replaced, which is the same.
        Some(turn) => drop(turn.over.wait_for(|over| *over).await),
        None => std::future::pending().await,
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut current = self.clients.current.lock();
        // The entry goes with the last stream; a newer one has marked this as over.
        if !*self.over.borrow() {
            current.remove(&self.client);
        }
        drop(self.held.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn a_newer_stream_ends_the_former_and_waits_for_it() {
        let clients = Arc::new(Clients::default());
        let client = Bytes::from_static(b"client");
        let mut first = clients.enter(client.clone()).await;
        assert!(is_over(&mut first).now_or_never().is_none());
        let mut second = Box::pin(clients.enter(client.clone()));
        assert!(second.as_mut().now_or_never().is_none(), "the first runs");
        is_over(&mut first).await;
        let other = clients.enter(Bytes::from_static(b"other")).await;
        drop(first);
        let mut second = second.await;
        assert!(is_over(&mut second).now_or_never().is_none());
        assert!(clients.enter(Bytes::new()).await.is_none());
        drop((second, other));
        assert!(clients.current.lock().is_empty());
    }
}
