//! What a broker says about itself to its cluster, under the lease of its process.
//!
//! It only says which brokers live and where: which broker owns a bundle is decided by its epoch
//! (I4).

use aquifer_model::listener::Listeners;

use crate::broker::Broker;

impl Broker {
    /// Announces where this broker is reached, for as long as the lease of its cluster is held. One
    /// of the listeners is the default one, through which the other brokers reach it. Without a
    /// cluster nothing is announced.
    pub fn announce(&self, listeners: &Listeners) {
        if let Some(cluster) = self.shared.ownership.cluster() {
            cluster.members.announce(listeners);
        }
    }
}
