//! What a wire protocol implements.

use std::net::SocketAddr;
use std::sync::Arc;

use aquifer_model::listener::Listeners;
use aquifer_runtime::net::tls::Reloads;
use aquifer_runtime::task::TaskGroup;
use async_trait::async_trait;

use crate::BrokerApi;
use crate::error::ApiError;

/// A wire protocol: one folder under `protocols/`, one line in `protocols/registry`.
#[async_trait]
pub trait ProtocolHandler: Send + Sync {
    /// Short name, also its configuration table `protocols.NAME`.
    fn name(&self) -> &'static str;

    /// The addresses that clients are to use, by listener; known once [`serve`](Self::serve) has
    /// bound them.
    fn advertised(&self) -> Listeners;

    /// What it has made of certificate files, to be reloaded when these change.
    fn reloads(&self) -> Vec<Arc<dyn Reloads>> {
        Vec::new()
    }

    /// Binds its listeners and begins to serve; returns the bound address of the default one. Its
    /// tasks belong to `tasks` and end with it: in-flight requests are finished, then connections
    /// closed.
    ///
    /// # Errors
    /// When the address cannot be bound.
    async fn serve(
        &self,
        broker: Arc<dyn BrokerApi>,
        tasks: TaskGroup,
    ) -> Result<SocketAddr, ApiError>;
}
