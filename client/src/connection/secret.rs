//! TLS of a client: loaded when the first address needs it, and looked at again for every new
//! connection, so that renewed files are used without a restart.

use std::sync::{Arc, OnceLock};

use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::net::tls::{ClientTls, ClientTlsConfig, Reloads as _};

use crate::error::{ClientError, Result};

/// See the module.
pub(crate) struct Secret {
    files: ClientTlsConfig,
    clock: SharedClock,
    loaded: OnceLock<Arc<ClientTls>>,
}

impl Secret {
    pub(crate) fn new(files: ClientTlsConfig, clock: SharedClock) -> Secret {
        Secret {
            files,
            clock,
            loaded: OnceLock::new(),
        }
    }

    /// What new connections are made with.
    pub(crate) fn get(&self) -> Result<Arc<ClientTls>> {
        if let Some(loaded) = self.loaded.get() {
            if let Err(error) = loaded.reload() {
                tracing::warn!(%error, "TLS files not reloaded; the former ones stay in use");
            }
            return Ok(Arc::clone(loaded));
        }
        let invalid = |reason: String| ClientError::Invalid(format!("TLS: {reason}"));
        self.files.validate().map_err(invalid)?;
        let loaded = ClientTls::load(&self.files, Arc::clone(&self.clock));
        let loaded = Arc::new(loaded.map_err(|error| invalid(error.to_string()))?);
        Ok(Arc::clone(self.loaded.get_or_init(|| loaded)))
    }
}
