//! Where objects go and how their store is reached.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The place of objects, and the way there. Credentials are not among it: they come from files,
/// from the environment variables of the store's vendor, or from the metadata service of the
/// machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreConfig {
    /// `file:///directory`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`;
    /// empty: no ledger is offloaded.
    pub store: String,
    /// The URL of a server that speaks S3, where that is not Amazon's.
    pub endpoint: String,
    /// The region of the bucket.
    pub region: String,
    /// Speak plain HTTP to the endpoint.
    pub allow_http: bool,
    /// Certificates that the server's is checked against (PEM); those of the system without one.
    pub ca_file: PathBuf,
    /// A file with the id of the access key.
    pub access_key_file: PathBuf,
    /// A file with its secret.
    pub secret_key_file: PathBuf,
}

impl Default for StoreConfig {
    fn default() -> StoreConfig {
        StoreConfig {
            store: String::new(),
            endpoint: String::new(),
            region: "us-east-1".to_owned(),
            allow_http: false,
            ca_file: PathBuf::new(),
            access_key_file: PathBuf::new(),
            secret_key_file: PathBuf::new(),
        }
    }
}
