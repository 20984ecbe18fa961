//! The codec of every method: that of prost, which here makes room for a whole message before it
//! writes the first byte. A reply that carries several batches would otherwise be copied each time
//! its buffer turns out too small. What comes in is decoded only after it is known what that
//! costs (I13, shape.rs).

use std::marker::PhantomData;

use bytes::Buf;
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic_prost::{ProstDecoder, ProstEncoder};

use crate::shape::{self, ShapeError, Shaped};

/// What an idle stream holds to receive into: most streams are idle, and messages make room for
/// themselves.
const RECEIVE_BUFFER_BYTES: usize = 1024;
/// Where encoded messages that are ready leave together.
const YIELD_BYTES: usize = 32 * 1024;

/// Encodes messages `T` and decodes messages `U`.
#[derive(Debug, Clone, Copy)]
pub struct RoomyCodec<T, U> {
    messages: PhantomData<(T, U)>,
}

/// Encodes messages `T`.
#[derive(Debug)]
pub struct RoomyEncoder<T> {
    inner: ProstEncoder<T>,
}

/// Decodes messages `T` that keep to their bounds.
#[derive(Debug)]
pub struct BoundedDecoder<T> {
    inner: ProstDecoder<T>,
}

impl<T, U> Default for RoomyCodec<T, U> {
    fn default() -> RoomyCodec<T, U> {
        RoomyCodec {
            messages: PhantomData,
        }
    }
}

impl<T, U> Codec for RoomyCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Shaped + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = RoomyEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> RoomyEncoder<T> {
        RoomyEncoder {
            inner: ProstEncoder::default(),
        }
    }

    fn decoder(&mut self) -> BoundedDecoder<U> {
        let settings = BufferSettings::new(RECEIVE_BUFFER_BYTES, YIELD_BYTES);
        BoundedDecoder {
            inner: ProstDecoder::new(settings),
        }
    }
}

impl<T: Message + Default + Shaped> Decoder for BoundedDecoder<T> {
    type Item = T;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<T>, Status> {
        // A message lies in one piece by the time it is decoded.
        if buf.chunk().len() != buf.remaining() {
            return Err(Status::internal("the message is in pieces"));
        }
        shape::check::<T>(buf.chunk()).map_err(|error| match error {
            ShapeError::TooLarge { .. } => Status::out_of_range(error.to_string()),
            ShapeError::Malformed => Status::internal(error.to_string()),
        })?;
        self.inner.decode(buf)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.inner.buffer_settings()
    }
}

impl<T: Message> Encoder for RoomyEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(item.encoded_len());
        self.inner.encode(item, buf)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.inner.buffer_settings()
    }
}
