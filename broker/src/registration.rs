//! What a broker says about itself to its cluster, under the lease of its process.
//!
//! It only says who lives and where: who owns a bundle is decided by its epoch (I4).

use aquifer_metadata::lease::Lease;
use aquifer_metadata::{keys, record};
use aquifer_proto::v1::BrokerRecord;

use crate::broker::Broker;

impl Broker {
    /// Announces where clients reach this broker, for as long as the lease is held.
    pub fn announce(&self, url: &str, lease: &Lease) {
        let announced = BrokerRecord {
            url: url.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        lease.set(&keys::broker(self.id()), record::encode(announced));
    }
}
