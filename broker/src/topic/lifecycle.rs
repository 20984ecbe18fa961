//! Whether a topic leaves for another broker, and why and how it ends. Once a topic ends it never
//! serves again: the next request loads another object.

use std::sync::Arc;
use std::time::Duration;

use aquifer_log::TopicRecordCell;
use aquifer_model::topic::TopicName;

use crate::error::BrokerError;
use crate::topic::event::Departure;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lifecycle {
    /// Where the topic goes, once another broker owns the bundle.
    departure: Option<Arc<Departure>>,
    ending: Option<Ending>,
}

/// Why and until when a topic is ending.
#[derive(Debug)]
pub(super) struct Ending {
    /// What clients are told.
    pub(super) error: BrokerError,
    /// Finish what is in flight and seal the ledgers; a broken topic does neither.
    pub(super) graceful: bool,
    /// Whether ownership itself was lost.
    pub(super) fenced: bool,
    deadline: Duration,
}

/// Whether a topic takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Termination {
    /// It does.
    Open,
    /// It takes no more; some are in flight.
    Closing,
    /// It has all that it will ever have.
    Ended,
}

impl Termination {
    /// Of a topic that is loaded: nothing is in flight.
    pub(super) fn of(cell: &TopicRecordCell) -> Termination {
        match cell.is_terminated() {
            true => Termination::Ended,
            false => Termination::Open,
        }
    }
}

impl Lifecycle {
    /// Another broker owns the bundle.
    pub(super) fn depart(&mut self, departure: Arc<Departure>) {
        self.departure = Some(departure);
    }

    /// Whether another broker owns the bundle.
    pub(super) fn is_departing(&self) -> bool {
        self.departure.is_some()
    }

    /// What clients are told when another broker owns the bundle.
    pub(super) fn departed(&self, name: &TopicName) -> Option<BrokerError> {
        self.departure.as_ref().map(|d| d.error(name))
    }

    /// Begins to end; false when the topic is ending already. An end that is not graceful stays so.
    pub(super) fn end(&mut self, error: &BrokerError, graceful: bool, deadline: Duration) -> bool {
        if let Some(ending) = &mut self.ending {
            ending.graceful &= graceful;
            return false;
        }
        self.ending = Some(Ending {
            error: error.clone(),
            graceful,
            fenced: false,
            deadline,
        });
        true
    }

    /// Ownership was lost, which is why the topic ends.
    pub(super) fn fenced(&mut self) {
        if let Some(ending) = &mut self.ending {
            ending.fenced = true;
        }
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Whether the topic ends without finishing what is in flight.
    pub(super) fn is_broken(&self) -> bool {
        self.ending.as_ref().is_some_and(|ending| !ending.graceful)
    }

    /// Whether an ending topic may stop now. `is_quiet` says that nothing is in flight.
    pub(super) fn is_over(&self, now: Duration, is_quiet: impl FnOnce() -> bool) -> bool {
        let is_over = |ending: &Ending| !ending.graceful || is_quiet() || now >= ending.deadline;
        self.ending.as_ref().is_some_and(is_over)
    }

    /// What clients are told about the end, if there is one.
    pub(super) fn ended(&self) -> Option<BrokerError> {
        self.ending.as_ref().map(|ending| ending.error.clone())
    }

    /// Why no session begins here, if none does.
    pub(super) fn refusal(&self, name: &TopicName) -> Option<BrokerError> {
        self.ended().or_else(|| self.departed(name))
    }

    /// The end, at the end.
    pub(super) fn take(&mut self) -> Option<Ending> {
        self.ending.take()
    }
}

#[cfg(test)]
mod tests {
    use aquifer_model::listener::Listeners;

    use super::*;

    fn stop() -> BrokerError {
        BrokerError::Unloading("stop".to_owned())
    }

    #[test]
    fn a_topic_ends_once_and_a_broken_one_at_once() {
        let mut life = Lifecycle::default();
        let at = Duration::from_secs;
        assert!(!life.is_over(at(100), || true));
        assert!(life.end(&stop(), true, at(10)));
        assert!(!life.is_over(at(9), || false) && life.is_over(at(9), || true));
        assert!(life.is_over(at(10), || false), "the deadline has passed");
        let other = BrokerError::Deleted("t".to_owned());
        assert!(!life.end(&other, true, at(20)));
        assert!(!life.is_broken() && life.ended() == Some(stop()));
        assert!(!life.end(&other, false, at(20)));
        assert!(life.is_broken() && life.is_over(at(0), || false));
        assert!(!life.end(&other, true, at(20)));
        assert!(life.is_broken(), "it does not become graceful again");
    }

    #[test]
    fn sessions_are_refused_with_the_end_or_the_departure() {
        let name: TopicName = "public/default/t".parse().unwrap();
        let mut life = Lifecycle::default();
        assert_eq!(life.refusal(&name), None);
        let departure = |url: &str| Departure {
            sealing: None,
            at: match url.is_empty() {
                true => Listeners::default(),
                false => Listeners::only_default(url),
            },
        };
        life.depart(Arc::new(departure("")));
        assert!(matches!(
            life.refusal(&name),
            Some(BrokerError::Unloading(_))
        ));
        life.depart(Arc::new(departure("b:1")));
        assert!(matches!(
            life.refusal(&name),
            Some(BrokerError::Elsewhere { .. })
        ));
        life.end(&stop(), true, Duration::ZERO);
        assert_eq!(life.refusal(&name), Some(stop()));
    }
}
