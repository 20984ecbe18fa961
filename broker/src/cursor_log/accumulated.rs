//! What snapshots and changes of a cursor log add up to, as far as they were read.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_model::id::Index;
use aquifer_model::topic::SubscriptionName;
use aquifer_proto::convert::subscription::properties;
use aquifer_proto::v1;
use aquifer_protocol_api::consumer::{IndexRange, Redelivered};

use crate::cursor_log::{CursorLogError, RecoveredSubscription};
use crate::subscription::cursor::state::{
    CursorError, CursorState, INDEX_MAX, decode_bitmap, decode_kind,
};

/// Snapshot and changes as far as they were seen.
#[derive(Debug, Default)]
pub(super) struct Accumulated {
    pub(super) subscriptions: BTreeMap<SubscriptionName, RecoveredSubscription>,
    /// Names whose later changes are leftovers, not orphans.
    pub(super) deleted: BTreeSet<String>,
    /// The first change of a subscription that is not there.
    pub(super) orphan: Option<(Index, String)>,
    /// Names of all such subscriptions.
    pub(super) orphans: BTreeSet<SubscriptionName>,
    /// Subscriptions whose creation was found, behind what is lost.
    pub(super) created: BTreeSet<SubscriptionName>,
    pub(super) producers: Vec<v1::ProducerState>,
    pub(super) dedup_index: Index,
}

impl Accumulated {
    pub(super) fn add_part(
        &mut self,
        index: Index,
        part: v1::CursorSnapshot,
    ) -> Result<(), CursorLogError> {
        self.dedup_index = Index(part.dedup_index);
        self.producers.extend(part.producers);
        for state in &part.subscriptions {
            let bad = |source| cursor_error(index, &state.name, source);
            let name = subscription_name(index, &state.name)?;
            match self.subscriptions.get_mut(&name) {
                // A further piece of a large bitmap.
                Some(known) => {
                    let above = decode_bitmap(&state.acknowledged).map_err(bad)?;
                    known.cursor.merge(above);
                }
                None => {
                    let recovered = recover(state).map_err(bad)?;
                    self.subscriptions.insert(name, recovered);
                }
            }
        }
        Ok(())
    }

    pub(super) fn change(
        &mut self,
        index: Index,
        delta: &v1::CursorDelta,
    ) -> Result<(), CursorLogError> {
        use v1::cursor_delta::Change;
        let name = subscription_name(index, &delta.subscription)?;
        let bad = |source| cursor_error(index, &delta.subscription, source);
        match &delta.change {
            Some(Change::Created(state)) => {
                let state = recover(state).map_err(bad)?;
                self.deleted.remove(&delta.subscription);
                self.orphans.remove(&name);
                self.created.insert(name.clone());
                self.subscriptions.insert(name, state);
            }
            Some(Change::Deleted(_)) => {
                self.subscriptions.remove(&name);
                self.orphans.remove(&name);
                self.created.remove(&name);
                self.deleted.insert(delta.subscription.clone());
            }
            Some(Change::Acknowledged(ack)) => {
                if let Some(known) = self.known(index, &name) {
                    known.cursor.apply_acknowledged(ack).map_err(bad)?;
                }
            }
            Some(Change::Seek(seek)) => {
                if let Some(known) = self.known(index, &name) {
                    known.cursor.apply_seek(seek).map_err(bad)?;
                    known.redelivered.clear();
                }
            }
            Some(Change::Updated(update)) => {
                let kind = decode_kind(update.r#type).map_err(bad)?;
                if let Some(known) = self.known(index, &name) {
                    known.kind = kind;
                    known.properties = properties(&update.properties);
                }
            }
            None => {
                return Err(CursorLogError::Damaged {
                    index,
                    reason: "a change of a kind that this version does not know".to_owned(),
                });
            }
        }
        Ok(())
    }

    fn known(
        &mut self,
        index: Index,
        name: &SubscriptionName,
    ) -> Option<&mut RecoveredSubscription> {
        let known = self.subscriptions.get_mut(name);
        if known.is_none() && !self.deleted.contains(name.as_str()) {
            self.orphan.get_or_insert((index, name.to_string()));
            self.orphans.insert(name.clone());
        }
        known
    }
}

fn recover(state: &v1::SubscriptionState) -> Result<RecoveredSubscription, CursorError> {
    Ok(RecoveredSubscription {
        kind: decode_kind(state.r#type)?,
        properties: properties(&state.properties),
        cursor: CursorState::decode(state)?,
        redelivered: decode_redelivered(&state.redelivered)?,
        created_ms: state.created_ms,
    })
}

/// Counts of ranges that ascend and do not overlap.
fn decode_redelivered(ranges: &[v1::RedeliveredRange]) -> Result<Vec<Redelivered>, CursorError> {
    let mut end = 0;
    let range = |range: &v1::RedeliveredRange| {
        let (first, last) = (range.first, range.last);
        if last >= INDEX_MAX {
            return Err(CursorError::Index(last));
        }
        if first > last || first < end {
            return Err(CursorError::Range { first, last });
        }
        end = last + 1;
        Ok(Redelivered {
            range: IndexRange {
                first: Index(first),
                last: Index(last),
            },
            count: range.count,
        })
    };
    ranges.iter().map(range).collect()
}

fn subscription_name(index: Index, name: &str) -> Result<SubscriptionName, CursorLogError> {
    SubscriptionName::new(name).map_err(|source| CursorLogError::Name { index, source })
}

fn cursor_error(index: Index, subscription: &str, source: CursorError) -> CursorLogError {
    CursorLogError::Cursor {
        index,
        subscription: subscription.to_owned(),
        source,
    }
}
