//! What a broker says about itself to its cluster, under the lease of its process.
//!
//! It only says who lives and where: who owns a bundle is decided by its epoch (I4).

use crate::broker::Broker;

impl Broker {
    /// Announces where clients reach this broker, for as long as the lease of its cluster is held.
    /// Without a cluster nothing is announced.
    pub fn announce(&self, url: &str) {
        if let Some(cluster) = self.shared.ownership.cluster() {
            cluster.members.announce(url);
        }
    }
}
