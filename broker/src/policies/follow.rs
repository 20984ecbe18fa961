//! The watch over all policies of the cluster: what scopes in use say is kept current.
//!
//! Invariant: a record that cannot be decoded concerns its own scope alone.

use std::collections::HashMap;

use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::scan;
use aquifer_metadata::store::{Revision, Versioned, WatchEvent};
use aquifer_model::policy::{Policies, PolicyScope};
use aquifer_runtime::clock;

use crate::error::BrokerError;
use crate::policies::{Inner, Said, WATCH_RETRY, decode};

impl Inner {
    pub(super) async fn watch(&self) {
        loop {
            if let Err(error) = self.follow_changes().await {
                tracing::warn!(%error, "policy watch begins again");
            }
            clock::sleep(WATCH_RETRY).await;
        }
    }

    /// Reads all records again, and takes in what changes after that.
    async fn follow_changes(&self) -> Result<(), BrokerError> {
        loop {
            let revision = self.catch_up().await?;
            let mut watch = self.store.watch(keys::POLICIES_PREFIX, revision).await?;
            loop {
                match watch.next().await {
                    Some(WatchEvent::Put(stored)) => drop(self.changed(&stored)),
                    Some(WatchEvent::Delete { key, revision }) => {
                        if let Ok(Key::Policies(scope)) = key.parse() {
                            self.learn(&scope, Said::at(Policies::default(), revision), None);
                        }
                    }
                    Some(WatchEvent::Resync) => break,
                    None => return Ok(()),
                }
            }
        }
    }

    /// Takes in what all scopes in use say, page by page: the records are few, as most scopes set
    /// nothing. Answers as of which revision.
    pub(super) async fn catch_up(&self) -> Result<Revision, BrokerError> {
        // A scope that is registered later is read when it is registered.
        let in_use = || -> HashMap<PolicyScope, u64> {
            let state = self.state.lock();
            let known = state.said.iter();
            known
                .map(|(scope, known)| (scope.clone(), known.registration))
                .collect()
        };
        // What was taken in before the scan began again is right: the newest record counts.
        let take_in = |without: &mut HashMap<PolicyScope, u64>, stored: &Versioned| {
            if let Some(scope) = self.changed(stored) {
                without.remove(&scope);
            }
            Ok::<(), BrokerError>(())
        };
        let scanned = scan::each(&*self.store, keys::POLICIES_PREFIX, in_use, take_in);
        let (without, revision) = scanned.await?;
        for (scope, registration) in &without {
            let nothing = Said::at(Policies::default(), revision);
            self.learn(scope, nothing, Some(*registration));
        }
        Ok(revision)
    }

    /// Takes in a record; answers its scope.
    fn changed(&self, stored: &Versioned) -> Option<PolicyScope> {
        let Ok(Key::Policies(scope)) = stored.key.parse() else {
            return None;
        };
        match decode(stored) {
            Ok(said) => self.learn(&scope, said, None),
            // What was in force stays so.
            Err(error) => tracing::warn!(%scope, %error, "policies cannot be read"),
        }
        Some(scope)
    }
}
