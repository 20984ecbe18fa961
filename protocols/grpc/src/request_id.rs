//! What each request is called: by its caller, or here. Every answer has that in a header, an error
//! as well, so that a report of an error can name the lines of the log.

use std::pin::Pin;
use std::task::{Context, Poll};

use aquifer_protocol_api::context::RequestId;
use aquifer_runtime::rng::SharedRng;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tower::Service;
use tower::layer::layer_fn;

const HEADER: HeaderName = HeaderName::from_static(RequestId::HEADER);

/// Puts [`Named`] in front of a service.
pub(crate) fn layer<S>(
    rng: &SharedRng,
) -> impl tower::Layer<S, Service = Named<S>> + Clone + use<S> {
    let rng = SharedRng::clone(rng);
    layer_fn(move |inner| Named {
        inner,
        rng: SharedRng::clone(&rng),
    })
}

/// Gives requests their ids, and answers those of their requests.
#[derive(Clone)]
pub(crate) struct Named<S> {
    inner: S,
    rng: SharedRng,
}

/// The id that a request gives, if it gives one that can be written everywhere.
fn given(headers: &HeaderMap) -> Option<RequestId> {
    let mut all = headers.get_all(HEADER).iter();
    let only = all.next().filter(|_| all.next().is_none())?;
    RequestId::given(only.to_str().ok()?)
}

/// The answer to a request that has its id.
type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for Named<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Answer<S::Error> {
        let given = given(request.headers());
        let id = given.unwrap_or_else(|| RequestId::drawn(self.rng.id16()));
        let header = HeaderValue::from_str(id.as_str());
        request.extensions_mut().insert(id);
        let answered = self.inner.call(request);
        Box::pin(async move {
            let mut answer = answered.await?;
            if let Ok(header) = header {
                answer.headers_mut().insert(HEADER, header);
            }
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_plain_id_is_taken() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(HEADER, HeaderValue::from_str(value).unwrap());
            }
            given(&headers).map(|id| id.to_string())
        };
        assert_eq!(of(&["a-1"]).as_deref(), Some("a-1"));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["a b"]), None);
        assert_eq!(of(&["a", "b"]), None);
    }
}
