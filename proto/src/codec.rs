//! The codec of every method: that of prost, which here makes room for a whole message before it
//! writes the first byte. A reply that carries several batches would otherwise be copied each time
//! its buffer turns out too small.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::{ProstDecoder, ProstEncoder};

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
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = RoomyEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> RoomyEncoder<T> {
        RoomyEncoder {
            inner: ProstEncoder::default(),
        }
    }

    fn decoder(&mut self) -> ProstDecoder<U> {
        ProstDecoder::default()
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
