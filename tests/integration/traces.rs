//! Traces: what a server does for a request reaches a collector, under one trace.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_harness::server::{Server, ServerOptions, aquifer};
use aquifer_harness::wait::within;
use aquifer_runtime::net::{ListenAddress, bind};
use aquifer_runtime::task::TaskGroup;
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

/// A collector that keeps what it is sent.
struct Collector {
    received: mpsc::Sender<ResourceSpans>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for spans in request.into_inner().resource_spans {
            let kept = self.received.send(spans).await;
            kept.map_err(|_| Status::unavailable("the test is over"))?;
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_spans_of_a_publish_reach_a_collector_under_one_trace() -> Result<()> {
    let (listener, address) = bind(ListenAddress::loopback_any_port()).await?;
    let (received, mut spans) = mpsc::channel(1_000);
    let tasks = TaskGroup::new("collector");
    let collector = TraceServiceServer::new(Collector { received });
    let serve = tonic::transport::Server::builder()
        .add_service(collector)
        .serve_with_incoming(TcpListenerStream::new(listener));
    let collector = tasks.spawn("collector", serve);

    let folder = tempfile::tempdir()?;
    let endpoint = format!("http://{address}");
    let options = ServerOptions {
        environment: vec![("AQUIFER_TELEMETRY_OTLP_ENDPOINT".to_owned(), endpoint)],
        ..ServerOptions::default()
    };
    let mut server = Server::start(&folder.path().join("data"), options).await?;
    let published = aquifer(&server.url(), &["produce", "traced", "a message"])?;
    ensure!(published.status.success(), "{published:?}");
    // What is batched is sent by then.
    server.stop()?;

    let mut traces: BTreeMap<Vec<u8>, Vec<Span>> = BTreeMap::new();
    let request = within("the spans of the publish", async {
        loop {
            let some = spans.recv().await.context("the collector serves")?;
            ensure!(service_of(&some) == Some("aquifer"), "{:?}", some.resource);
            for span in some.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                traces.entry(span.trace_id.clone()).or_default().push(span);
            }
            let found = traces.values().find(|trace| {
                let names: Vec<&str> = trace.iter().map(|span| &*span.name).collect();
                names.contains(&"request") && names.contains(&"open_producer")
            });
            if let Some(trace) = found {
                return Ok(trace.clone());
            }
        }
    })
    .await?;
    let root = request.iter().find(|span| span.name == "request");
    let root = root.context("a request has a span")?;
    let inner = request.iter().find(|span| span.name == "open_producer");
    let inner = inner.context("so has what it asks for")?;
    ensure!(
        inner.parent_span_id == root.span_id,
        "{inner:?} in {root:?}"
    );
    ensure!(root.end_time_unix_nano >= root.start_time_unix_nano);
    collector.abort();
    tasks.drain(Duration::from_secs(5)).await;
    Ok(())
}

fn service_of(spans: &ResourceSpans) -> Option<&str> {
    let resource = spans.resource.as_ref()?;
    let mut all = resource.attributes.iter();
    let name = all.find(|attribute| attribute.key == "service.name")?;
    match name.value.as_ref()?.value.as_ref()? {
        Value::StringValue(name) => Some(name),
        _ => None,
    }
}
