//! A collector of traces: a real OTLP receiver over gRPC, in this process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aquifer_runtime::net::{ListenAddress, bind};
use aquifer_runtime::task::{TaskGroup, TaskHandle};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::wait::within;

/// Spans that wait to be looked at; exporters do not wait for a test that looks at no span.
const WAITING_MAX: usize = 10_000;

/// The service that is exported to.
struct Receiver {
    spans: mpsc::Sender<ResourceSpans>,
    count: Arc<AtomicU64>,
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for spans in request.into_inner().resource_spans {
            let count: usize = spans
                .scope_spans
                .iter()
                .map(|scope| scope.spans.len())
                .sum();
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            self.count.fetch_add(count, Ordering::Relaxed);
            // What does not fit is only counted.
            let _ = self.spans.try_send(spans);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A span, and the process that made it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The span as it was exported.
    pub span: Span,
    /// The name of its service.
    pub service: String,
    /// The id of its process.
    pub process: i64,
}

/// A collector at work.
pub struct Collector {
    /// Where processes export to.
    pub endpoint: String,
    spans: mpsc::Receiver<ResourceSpans>,
    count: Arc<AtomicU64>,
    serving: TaskHandle<Result<(), tonic::transport::Error>>,
    tasks: TaskGroup,
    /// Spans by their trace.
    traces: BTreeMap<Vec<u8>, Vec<Seen>>,
}

impl Collector {
    /// Starts it on a free port.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start() -> Result<Collector> {
        let (listener, address) = bind(ListenAddress::loopback_any_port()).await?;
        let (sender, spans) = mpsc::channel(WAITING_MAX);
        let count = Arc::new(AtomicU64::new(0));
        let receiver = Receiver {
            spans: sender,
            count: Arc::clone(&count),
        };
        let tasks = TaskGroup::new("collector");
        let serve = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(receiver))
            .serve_with_incoming(TcpListenerStream::new(listener));
        Ok(Collector {
            endpoint: format!("http://{address}"),
            spans,
            count,
            serving: tasks.spawn("collector", serve),
            tasks,
            traces: BTreeMap::new(),
        })
    }

    /// How many spans it was sent.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The traces of the spans that were taken in.
    #[must_use]
    pub fn traces(&self) -> &BTreeMap<Vec<u8>, Vec<Seen>> {
        &self.traces
    }

    /// Takes in what comes until a trace has this many spans of each name; answers that trace.
    ///
    /// # Errors
    /// When none has them in time.
    pub async fn trace_with(&mut self, wanted: &[(&str, usize)]) -> Result<Vec<Seen>> {
        within("the spans of a trace", async {
            loop {
                let complete = self.traces.values().find(|trace| {
                    let has = |(name, count): &(&str, usize)| {
                        let named = trace.iter().filter(|seen| seen.span.name == *name);
                        named.count() >= *count
                    };
                    wanted.iter().all(has)
                });
                if let Some(trace) = complete {
                    return Ok(trace.clone());
                }
                let some = self.spans.recv().await.context("the collector serves")?;
                self.take(some)?;
            }
        })
        .await
    }

    fn take(&mut self, some: ResourceSpans) -> Result<()> {
        let service = match attribute(&some, "service.name") {
            Some(Value::StringValue(name)) => name,
            other => bail!("spans of no service: {other:?}"),
        };
        let process = match attribute(&some, "process.pid") {
            Some(Value::IntValue(id)) => id,
            other => bail!("spans of no process: {other:?}"),
        };
        for span in some.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let seen = Seen {
                service: service.clone(),
                process,
                span,
            };
            let trace = self.traces.entry(seen.span.trace_id.clone()).or_default();
            trace.push(seen);
        }
        Ok(())
    }

    /// Ends it.
    pub async fn end(self) {
        self.serving.abort();
        self.tasks.drain(Duration::from_secs(5)).await;
    }
}

fn attribute(spans: &ResourceSpans, key: &str) -> Option<Value> {
    let resource = spans.resource.as_ref()?;
    let mut all = resource.attributes.iter();
    let found = all.find(|attribute| attribute.key == key)?;
    found.value.as_ref()?.value.clone()
}

/// The span of a name in a trace.
///
/// # Errors
/// When it has none.
pub fn one<'a>(trace: &'a [Seen], name: &str) -> Result<&'a Seen> {
    let found = trace.iter().find(|seen| seen.span.name == name);
    found.with_context(|| format!("no span {name} in {trace:?}"))
}
