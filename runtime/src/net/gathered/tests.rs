use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// A socket that says what each write was, and of which a read takes all that there is.
#[derive(Debug, Default)]
struct Socket {
    incoming: BytesMut,
    reads: usize,
    writes: Vec<Vec<u8>>,
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.incoming.is_empty() {
            return Poll::Pending;
        }
        self.reads += 1;
        let count = self.incoming.len().min(buffer.remaining());
        buffer.put_slice(&self.incoming.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writes.push(bytes.to_vec());
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Woken>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection and its task.
struct Case {
    connection: Gathered<Socket>,
    woken: Arc<Woken>,
}

impl Case {
    /// A connection that has just sent something.
    fn busy() -> Case {
        let mut case = Case::new();
        case.write(&[b"settings"]);
        assert!(!case.flush(), "nothing is waited for");
        assert_eq!(case.writes(), [b"settings".to_vec()]);
        case
    }

    fn new() -> Case {
        Case {
            connection: Gathered::new(Socket::default()),
            woken: Arc::default(),
        }
    }

    fn read(&mut self, bytes: usize) -> Option<Vec<u8>> {
        let mut memory = vec![0; bytes];
        let mut buffer = ReadBuf::new(&mut memory);
        let mut context = Context::from_waker(Waker::noop());
        let read = Pin::new(&mut self.connection).poll_read(&mut context, &mut buffer);
        let filled = buffer.filled().to_vec();
        matches!(read, Poll::Ready(Ok(()))).then_some(filled)
    }

    fn write(&mut self, slices: &[&[u8]]) {
        let slices: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut context = Context::from_waker(Waker::noop());
        let written = Pin::new(&mut self.connection).poll_write_vectored(&mut context, &slices);
        assert!(matches!(written, Poll::Ready(Ok(count)) if count == bytes || bytes > 40_000));
    }

    /// Flushes, and says whether that wakes the task.
    fn flush(&mut self) -> bool {
        let waker = Waker::from(Arc::clone(&self.woken));
        let mut context = Context::from_waker(&waker);
        let flushed = Pin::new(&mut self.connection).poll_flush(&mut context);
        assert!(matches!(flushed, Poll::Ready(Ok(()))));
        self.woken.0.swap(0, Ordering::Relaxed) > 0
    }

    fn writes(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.connection.stream.writes)
    }

    fn held_bytes(&self) -> usize {
        self.connection.ahead.capacity() + self.connection.gathered.capacity()
    }
}

#[test]
fn a_read_takes_what_has_come_and_an_idle_connection_holds_nothing() {
    let mut case = Case::new();
    let sent: Vec<u8> = (0..30_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    case.connection.stream.incoming.extend_from_slice(&sent);
    let mut got = Vec::new();
    while let Some(part) = case.read(1_000) {
        got.extend(part);
    }
    assert!(got == sent);
    assert_eq!(case.connection.stream.reads, 1);
    assert_eq!(case.held_bytes(), 0);
    case.connection.stream.incoming.extend_from_slice(&sent);
    assert_eq!(case.read(40_000).map(|part| part.len()), Some(30_000));
    assert_eq!(case.held_bytes(), 0, "a large read needs no buffer");
    case.connection.stream.incoming.extend_from_slice(&sent);
    assert_eq!(case.read(1_000), Some(sent[..1_000].to_vec()));
    assert_eq!(case.held_bytes(), 0, "nor what comes right behind one");
    assert_eq!(case.read(1_000), Some(sent[1_000..2_000].to_vec()));
    assert!(
        case.held_bytes() > 0,
        "small reads take what has come again"
    );
}

/// HTTP/2 flushes behind each large frame, and once more at the end of a turn.
#[tokio::test(start_paused = true)]
async fn frames_of_two_turns_are_one_write() {
    let mut case = Case::busy();
    for turn in 0..2 {
        for frame in [b"a", b"b"] {
            case.write(&[b"head", frame]);
            assert!(case.flush(), "the task comes back");
        }
        assert_eq!(case.flush(), turn == 0, "what waited for one turn is sent");
    }
    assert_eq!(case.writes(), [b"headaheadbheadaheadb".to_vec()]);
    assert!(!case.flush());
    assert_eq!(case.held_bytes(), 0);
}

/// A task that is woken flushes, whether it has written or not.
#[tokio::test(start_paused = true)]
async fn what_is_put_off_is_sent_by_the_turns_that_follow() {
    let mut case = Case::busy();
    case.write(&[b"ping"]);
    let turns = (0..10).take_while(|_| case.flush()).count();
    assert_eq!(turns, 2);
    assert_eq!(case.writes(), [b"ping".to_vec()]);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_connection_sends_at_once() {
    let mut case = Case::busy();
    tokio::time::advance(QUIET).await;
    case.write(&[b"message"]);
    assert!(!case.flush());
    assert_eq!(case.writes(), [b"message".to_vec()]);
}

#[tokio::test(start_paused = true)]
async fn large_writes_go_through_behind_what_was_gathered_which_is_bounded() {
    let mut case = Case::busy();
    let (small, large) = (vec![1; 20_000], vec![2; 50_000]);
    case.write(&[&small]);
    assert!(case.flush());
    case.write(&[&large]);
    assert_eq!(case.writes(), [small.clone(), large]);
    for _ in 0..4 {
        case.write(&[&small]);
        assert!(case.flush());
    }
    assert_eq!(case.writes(), [small.repeat(3)]);
    assert!(case.held_bytes() <= GATHERED_BYTES);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every byte arrives, in order, over a pipe that takes little at once.
    #[test]
    fn bytes_arrive_in_order(
        sizes in prop::collection::vec(0_usize..90_000, 1..12),
        flushes in prop::collection::vec(any::<bool>(), 12),
        pipe in 1_usize..70_000,
        part in 1_usize..50_000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let sent: Vec<u8> = (0..sizes.iter().sum::<usize>())
            .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
            .collect();
        let got = runtime.block_on(async {
            let (near, far) = tokio::io::duplex(pipe);
            let (mut near, mut far) = (Gathered::new(near), Gathered::new(far));
            let send = async {
                let mut rest = &sent[..];
                for (size, flush) in sizes.iter().zip(&flushes) {
                    let (piece, behind) = rest.split_at(*size);
                    near.write_all(piece).await.unwrap();
                    if *flush {
                        near.flush().await.unwrap();
                    }
                    rest = behind;
                }
                near.shutdown().await.unwrap();
            };
            let receive = async {
                let mut got = Vec::new();
                let mut memory = vec![0; part];
                loop {
                    match far.read(&mut memory).await.unwrap() {
                        0 => return got,
                        count => got.extend_from_slice(&memory[..count]),
                    }
                }
            };
            futures::join!(send, receive).1
        });
        prop_assert!(got == sent);
    }
}
