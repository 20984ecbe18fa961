//! What a hostile peer does below the level of messages: beginnings without ends, and messages
//! that are small on the wire and large in memory.

use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Result;
use bytes::Bytes;
use http_body::{Body, Frame};
use tonic::body::Body as TonicBody;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::transport::Channel;

/// The path of produce streams.
pub const PRODUCE: &str = "/aquifer.v1.Broker/Produce";
/// The path of a call.
pub const CREATE_TOPIC: &str = "/aquifer.v1.Admin/CreateTopic";

/// A request body as a peer likes it.
struct Wild {
    bytes: Bytes,
    /// After its bytes it neither ends nor goes on.
    stays: bool,
}

impl Body for Wild {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        const PIECE: usize = 16 * 1024;
        let piece = self.bytes.len().min(PIECE);
        if piece > 0 {
            return Poll::Ready(Some(Ok(Frame::data(self.bytes.split_to(piece)))));
        }
        match self.stays {
            true => Poll::Pending,
            false => Poll::Ready(None),
        }
    }
}

/// A message header that announces `announced` bytes, and `content`.
#[must_use]
pub fn message(announced: usize, content: &[u8]) -> Bytes {
    let announced = u32::try_from(announced).unwrap_or(u32::MAX);
    let mut bytes = vec![0];
    bytes.extend(announced.to_be_bytes());
    bytes.extend(content);
    bytes.into()
}

/// A `ProduceRequest` of this many frames without number and batch, two bytes each.
#[must_use]
pub fn empty_frames(count: usize) -> Bytes {
    let frames = [0x0a, 0x00].repeat(count);
    // Field 2, of a length in four bytes of a varint.
    let mut content = vec![0x12];
    let mut length = frames.len();
    for _ in 0..3 {
        content.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
        length >>= 7;
    }
    content.push(u8::try_from(length & 0x7f).unwrap_or(0));
    content.extend(frames);
    message(content.len(), &content)
}

/// Sends these bytes as the body of a request, and returns when the server answers. With `stays`
/// the body does not end.
///
/// # Errors
/// When the connection fails.
pub async fn request(
    channel: &Channel,
    path: &'static str,
    bytes: Bytes,
    stays: bool,
) -> Result<Response<TonicBody>> {
    let mut channel = channel.clone();
    std::future::poll_fn(|context| {
        Service::<Request<TonicBody>>::poll_ready(&mut channel, context)
    })
    .await?;
    let request = Request::post(format!("http://server{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(TonicBody::new(Wild { bytes, stays }))?;
    Ok(channel.call(request).await?)
}

/// The same, and reads the answer to its end; says its length.
///
/// # Errors
/// When the connection fails.
pub async fn exchange(
    channel: &Channel,
    path: &'static str,
    bytes: Bytes,
    stays: bool,
) -> Result<usize> {
    let mut body = request(channel, path, bytes, stays).await?.into_body();
    let mut length = 0;
    loop {
        let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        match frame {
            None => return Ok(length),
            Some(frame) => length += frame?.data_ref().map_or(0, Bytes::len),
        }
    }
}
