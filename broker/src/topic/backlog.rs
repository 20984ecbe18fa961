//! What policy does to a backlog: messages that are too old are acknowledged for every
//! subscription, and a backlog above its quota stops producers or loses its oldest messages.
//!
//! The size of a backlog is that of the ledgers from the first message that the slowest
//! subscription has not acknowledged, in part for the ledger that has this message; nothing is
//! read for it. Age is found by the search for a time, beside the task.

use std::time::Duration;

use aquifer_log::error::LogError;
use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::policy::bounds::BacklogAction;
use aquifer_model::policy::{EffectivePolicies, Retention};

use crate::quota::backlog::{Excess, Measure, Search};
use crate::topic::Topic;
use crate::topic::event::{Event, LocatePurpose, Reply};
use crate::traffic::Behind;
use crate::traffic::furthest::Lag;

/// How often the size of a backlog is looked at while producers are connected.
const SIZE_PERIOD: Duration = Duration::from_millis(500);

/// When backlogs are looked at, and what was found.
pub(super) struct Backlog {
    /// The next look; never while no policy needs one.
    next: Duration,
    /// The next search for old messages.
    next_search: Duration,
    /// A search runs.
    is_searching: bool,
    /// The quota is exceeded by age, as the last search found.
    too_old: Option<Excess>,
    /// Requests that want what is old to be trimmed.
    visitors: Vec<Reply<()>>,
}

impl Backlog {
    /// Looks at once.
    pub(super) fn new() -> Backlog {
        Backlog {
            next: Duration::ZERO,
            next_search: Duration::ZERO,
            is_searching: false,
            too_old: None,
            visitors: Vec::new(),
        }
    }

    /// When the next look is due, on the monotonic clock.
    pub(super) fn next(&self) -> Duration {
        self.next
    }

    /// Looks soon, as policies have changed.
    pub(super) fn look_soon(&mut self) {
        self.next = Duration::ZERO;
        self.next_search = Duration::ZERO;
    }
}

/// What is looked for, and for how old messages in ms.
fn search_of(policies: &EffectivePolicies) -> Option<(Search, u64)> {
    let quota = policies.backlog_quota;
    let evicted = quota
        .age_ms
        .filter(|_| quota.action == BacklogAction::Evict);
    let evicted = evicted.map(|ms| (Search::Expire("backlogQuota"), ms));
    let expired = policies.ttl.after_ms.map(|ms| (Search::Expire("ttl"), ms));
    let old = [evicted, expired].into_iter().flatten();
    let youngest = old.min_by_key(|(_, ms)| *ms);
    let stop = |ms| {
        let excess = Excess {
            what: Measure::AgeMs,
            used: ms,
            max: ms,
            action: quota.action,
        };
        (Search::Stop(excess), ms)
    };
    let stopped = quota
        .age_ms
        .filter(|_| quota.action != BacklogAction::Evict);
    // What expires sooner is not there to stop anything.
    let stopped = stopped.filter(|ms| youngest.as_ref().is_none_or(|(_, other)| ms < other));
    match (stopped, youngest) {
        (Some(ms), _) => Some(stop(ms)),
        (None, youngest) => youngest,
    }
}

impl Topic {
    /// How far behind its durable subscriptions are. Nothing is read for it.
    pub(super) fn behind(&self) -> Behind {
        let end = self.cx.visible_end();
        let (messages, messages_max) = self.attachments.backlog(end);
        let oldest = self.attachments.slowest(end);
        Behind {
            messages,
            messages_max,
            oldest_ms: self.cx.log.time_about(oldest).filter(|_| messages > 0),
        }
    }

    /// The durable subscriptions that are furthest behind.
    pub(super) fn lags(&self, max: usize) -> Vec<Lag> {
        let furthest = self.attachments.furthest(self.cx.visible_end(), max);
        let lag = |(name, mark, messages): (&str, Index, u64)| Lag {
            subscription: name.to_owned(),
            messages,
            oldest_ms: self.cx.log.time_about(mark),
        };
        furthest.into_iter().map(lag).collect()
    }

    /// Notes that for the metrics, for which no topic is loaded.
    pub(super) fn note_backlog(&self) {
        let counters = &self.cx.counters;
        counters.set_backlog(self.behind());
        let shown = self.cx.shared.config.subscriptions_shown;
        if shown > 0 {
            counters.set_lags(self.lags(shown));
        }
    }

    /// Whether the topic was restored so lately that nothing of it is deleted yet.
    fn is_kept(&self) -> bool {
        self.cell.kept_until_ms() > self.cx.wall_ms()
    }

    /// The policies, without those by which messages are deleted as long as none may be.
    pub(super) fn policies_now(&self) -> EffectivePolicies {
        let mut policies = *self.cx.policies.borrow();
        if self.is_kept() {
            policies.retention = Retention {
                time_ms: None,
                size_bytes: None,
            };
            policies.ttl.after_ms = None;
            if policies.backlog_quota.action == BacklogAction::Evict {
                policies.backlog_quota.bytes = None;
                policies.backlog_quota.age_ms = None;
            }
        }
        policies
    }

    /// Looks at the backlog as policy wants it.
    pub(super) fn look_at_backlog(&mut self) {
        let (now, policies) = (self.cx.now(), self.policies_now());
        let housekeeping = Duration::from_millis(self.cx.shared.config.housekeeping_ms);
        if policies.backlog_quota.is_unlimited() && policies.ttl.after_ms.is_none() {
            self.backlog.next = match self.is_kept() {
                true => now + housekeeping,
                false => Duration::MAX,
            };
            self.backlog.too_old = None;
            return self.cx.rates.set_over(None, &self.cx.shared);
        }
        let is_watched = !policies.backlog_quota.is_unlimited() && self.publishing.is_used();
        self.backlog.next = now
            + match is_watched {
                true => SIZE_PERIOD.min(housekeeping),
                false => housekeeping,
            };
        if self.cx.life.is_ending() || !self.attachments.is_whole() {
            return;
        }
        let excess = self.size_excess(&policies);
        if let Some(excess) = excess.filter(|excess| excess.action == BacklogAction::Evict) {
            let index = self.cx.log.place_of_newest(excess.max);
            self.expire("backlogQuota", index);
        }
        if now >= self.backlog.next_search {
            // Producers that are stopped go on soon after what was old is acknowledged.
            self.backlog.next_search = now
                + match self.backlog.too_old {
                    Some(_) => SIZE_PERIOD.min(housekeeping),
                    None => housekeeping,
                };
            self.search(&policies);
        }
        let excess = excess.or(self.backlog.too_old);
        self.cx.rates.set_over(excess, &self.cx.shared);
    }

    /// By how much the backlog is too large.
    fn size_excess(&self, policies: &EffectivePolicies) -> Option<Excess> {
        let quota = policies.backlog_quota;
        let max = quota.bytes?;
        let mark = self.attachments.slowest(self.cx.visible_end());
        let used = self.cx.log.bytes_from(mark);
        // At the quota producers stop; what is there may stay.
        let is_over = match quota.action {
            BacklogAction::Evict => used > max,
            BacklogAction::Hold | BacklogAction::Refuse => used >= max,
        };
        is_over.then_some(Excess {
            what: Measure::Bytes,
            used,
            max,
            action: quota.action,
        })
    }

    /// Looks for old messages, if a subscription may have some.
    fn search(&mut self, policies: &EffectivePolicies) {
        let Some((search, age_ms)) = search_of(policies) else {
            self.backlog.too_old = None;
            return;
        };
        let end = self.cx.visible_end();
        if self.backlog.is_searching {
            return;
        }
        if self.attachments.slowest(end) >= end {
            self.backlog.too_old = None;
            return self.expired();
        }
        self.backlog.is_searching = true;
        let before = self.cx.wall_ms().saturating_sub(age_ms);
        let (log, mailbox) = (self.cx.log.clone(), self.cx.mailbox.clone());
        self.cx.shared.tasks.spawn("backlog-search", async move {
            let result = log.locate(Place::TimeMs(before)).await;
            let purpose = Box::new(LocatePurpose::Backlog(search));
            // A topic that has ended needs no answer.
            let _ = mailbox.send(Event::Located(purpose, result)).await;
        });
    }

    /// The first message that is not old was found, or could not be.
    pub(super) fn searched(&mut self, search: Search, result: Result<Index, LogError>) {
        self.backlog.is_searching = false;
        let index = match result {
            Ok(index) => index.min(self.cx.visible_end()),
            Err(error) => {
                tracing::debug!(topic = %self.cx.name, %error, "old messages were not found, looking again later");
                return self.expired();
            }
        };
        match search {
            Search::Expire(policy) => {
                self.backlog.too_old = None;
                if !self.expire(policy, index) {
                    self.expired();
                }
            }
            Search::Stop(excess) => {
                let mark = self.attachments.slowest(self.cx.visible_end());
                self.backlog.too_old = (mark < index).then_some(excess);
                self.backlog.next = Duration::ZERO;
                self.expired();
            }
        }
    }

    /// Acknowledges what lies before `index` for every subscription. Answers whether something is
    /// being recorded.
    fn expire(&mut self, policy: &'static str, index: Index) -> bool {
        let (cx, cursors) = (&self.cx, &mut self.cursors);
        match self.attachments.expire(cx, cursors, index) {
            0 => false,
            messages => {
                self.cx.shared.metrics.expired(policy, messages);
                let topic = &self.cx.name;
                tracing::info!(%topic, policy, messages, "messages are acknowledged by policy");
                true
            }
        }
    }

    /// What has expired is acknowledged durably, or nothing has: it can be trimmed.
    pub(super) fn expired(&mut self) {
        let visitors = std::mem::take(&mut self.backlog.visitors);
        if visitors.is_empty() {
            return;
        }
        for visitor in visitors {
            self.trimming.visit(visitor);
        }
        self.trim();
    }

    /// A request wants the topic to be trimmed, after what is old has been acknowledged.
    pub(super) fn trim_visit(&mut self, reply: Reply<()>) {
        if let Some(error) = self.cx.life.ended() {
            let _ = reply.send(Err(error));
            return;
        }
        let policies = self.policies_now();
        self.backlog.visitors.push(reply);
        match search_of(&policies) {
            Some(_) if self.attachments.is_whole() => self.search(&policies),
            Some(_) | None => self.expired(),
        }
    }
}

#[cfg(test)]
mod tests {
    use aquifer_model::policy::bounds::{BacklogQuota, TimeToLive};

    use super::*;

    fn found(ttl: Option<u64>, age: Option<u64>, action: BacklogAction) -> Option<(bool, u64)> {
        let policies = EffectivePolicies {
            ttl: TimeToLive { after_ms: ttl },
            backlog_quota: BacklogQuota {
                bytes: Some(1),
                age_ms: age,
                action,
            },
            ..EffectivePolicies::default()
        };
        let found = search_of(&policies);
        found.map(|(search, ms)| (matches!(search, Search::Stop(_)), ms))
    }

    #[test]
    fn the_younger_bound_is_looked_for() {
        use BacklogAction::{Evict, Hold, Refuse};
        assert_eq!(found(None, None, Hold), None);
        assert_eq!(found(Some(5), None, Hold), Some((false, 5)));
        assert_eq!(found(Some(5), Some(3), Evict), Some((false, 3)));
        assert_eq!(found(Some(5), Some(9), Evict), Some((false, 5)));
        assert_eq!(found(None, Some(9), Refuse), Some((true, 9)));
        assert_eq!(found(Some(9), Some(3), Hold), Some((true, 3)));
        // What is acknowledged before that age cannot reach it.
        assert_eq!(found(Some(3), Some(9), Hold), Some((false, 3)));
    }
}
