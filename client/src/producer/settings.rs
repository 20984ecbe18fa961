//! What the application asks of a producer. Plain data; depends on no other part of the producer.

use std::time::Duration;

use aquifer_model::batch::Compression;
use aquifer_model::limits::{BATCH_MESSAGES_MAX, MESSAGE_BYTES_MAX};
use aquifer_model::topic::ProducerName;

use crate::error::{ClientError, Result};

/// Default bound of messages in flight.
pub const DEFAULT_MESSAGES_IN_FLIGHT_MAX: usize = 50_000;
/// Default bound of bytes in flight.
pub const DEFAULT_BYTES_IN_FLIGHT_MAX: usize = 32 * 1024 * 1024;
/// Default time for a message to be stored.
pub const DEFAULT_SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// Shortest time for a message to be stored: timers are no finer, and with zero the session would
/// look for expired messages without a pause.
const SEND_TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// When a batch is complete. The default is adaptive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// A batch is sent when it has this many bytes before compression.
    pub bytes_max: usize,
    /// A batch is sent when it has this many messages.
    pub messages_max: u32,
    /// A batch is sent when its first message has waited this long.
    pub delay_max: Duration,
    /// Send at once when nothing is in flight, and whenever an acknowledgement returns: low
    /// latency when quiet, full batches when busy. Without it only the three bounds count.
    pub adaptive: bool,
}

impl Default for Batching {
    /// Adaptive, up to 128 KiB, 65,536 messages and 1 ms.
    fn default() -> Batching {
        Batching {
            bytes_max: 128 * 1024,
            messages_max: BATCH_MESSAGES_MAX,
            delay_max: Duration::from_millis(1),
            adaptive: true,
        }
    }
}

impl Batching {
    /// Every message alone in its batch.
    #[must_use]
    pub fn disabled() -> Batching {
        Batching {
            messages_max: 1,
            ..Batching::default()
        }
    }

    /// Only the bounds count: a batch waits until one of them is reached, even when nothing is in
    /// flight.
    #[must_use]
    pub fn explicit(bytes_max: usize, messages_max: u32, delay_max: Duration) -> Batching {
        Batching {
            bytes_max,
            messages_max,
            delay_max,
            adaptive: false,
        }
    }
}

/// What the application asked for.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) name: Option<String>,
    pub(crate) batching: Batching,
    pub(crate) compression: Compression,
    pub(crate) messages_in_flight_max: usize,
    pub(crate) bytes_in_flight_max: usize,
    pub(crate) send_timeout: Option<Duration>,
    pub(crate) take_over: bool,
    pub(crate) initial_sequence_id: Option<u64>,
    pub(crate) skip_stored: bool,
    /// A trace is begun for one of this many messages; 0: for no message.
    pub(crate) trace_one_in: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            name: None,
            batching: Batching::default(),
            compression: Compression::None,
            messages_in_flight_max: DEFAULT_MESSAGES_IN_FLIGHT_MAX,
            bytes_in_flight_max: DEFAULT_BYTES_IN_FLIGHT_MAX,
            send_timeout: Some(DEFAULT_SEND_TIMEOUT),
            take_over: false,
            initial_sequence_id: None,
            skip_stored: false,
            trace_one_in: 0,
        }
    }
}

impl Settings {
    /// Whether every setting is within its bounds.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(name) = &self.name {
            ProducerName::new(name)?;
        }
        let batching = &self.batching;
        let invalid = |text: String| Err(ClientError::Invalid(text));
        if batching.messages_max == 0 || batching.messages_max > BATCH_MESSAGES_MAX {
            return invalid(format!(
                "a batch must have 1 to {BATCH_MESSAGES_MAX} messages"
            ));
        }
        if batching.bytes_max == 0 || batching.bytes_max > MESSAGE_BYTES_MAX {
            return invalid(format!("a batch must have 1 to {MESSAGE_BYTES_MAX} bytes"));
        }
        if self.messages_in_flight_max == 0 || self.bytes_in_flight_max == 0 {
            return invalid("the bounds of what is in flight must be above zero".to_owned());
        }
        if self
            .send_timeout
            .is_some_and(|timeout| timeout < SEND_TIMEOUT_MIN)
        {
            return invalid(format!(
                "the send timeout must be at least {SEND_TIMEOUT_MIN:?}; None waits without limit"
            ));
        }
        Ok(())
    }
}
