//! A reader that keeps its place while the log goes on and is trimmed behind it, as a subscription
//! does: it gets every message that is still there, in order, and does not stop (H19).

use std::sync::Arc;
use std::time::Duration;

use aquifer_log::error::LogError;
use aquifer_log::{LogEntry, ReadLimits, ReadPoint, TopicLog};
use aquifer_model::id::{Index, LedgerId};
use aquifer_model::policy::Retention;
use aquifer_runtime::clock::{sleep, timeout};

use crate::cluster::context::Cluster;
use crate::defect::Defect;

/// What one read returns at most.
pub(super) const LIMITS: ReadLimits = ReadLimits {
    bytes_max: 1024,
    entries_max: 16,
};
/// Nothing is kept that was read.
const NOTHING: Retention = Retention {
    time_ms: Some(0),
    size_bytes: Some(0),
};
/// How often in a row a kept place may fail where one without memory can be read: faults may hit
/// the one and spare the other now and then.
const STUCK_MAX: u32 = 5;

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The reader.
pub(super) struct Follower {
    cluster: Arc<Cluster>,
    topic: u8,
    log: TopicLog,
    at: ReadPoint,
    /// Set while it was moved and has not read yet: the first entry may begin before.
    moved: bool,
    /// The ledger that it read last, and the index behind.
    kept: Option<(LedgerId, Index)>,
}

impl Follower {
    pub(super) fn new(cluster: &Arc<Cluster>, topic: u8, log: &TopicLog) -> Follower {
        Follower {
            cluster: Arc::clone(cluster),
            topic,
            log: log.clone(),
            at: ReadPoint::from(log.first()),
            moved: false,
            kept: None,
        }
    }

    /// Reads, trims and seeks until its process ends.
    pub(super) async fn run(mut self) {
        loop {
            sleep(self.cluster.between(5, 250)).await;
            if self.cluster.chance(20) {
                self.seek();
            }
            // What cannot be read or trimmed now is so later.
            drop(self.read_on().await);
            if self.cluster.chance(3) {
                drop(timeout(PATIENCE, self.trim()).await);
            }
        }
    }

    /// Goes on until there is nothing more.
    ///
    /// # Errors
    /// What reading failed with.
    pub(super) async fn read_to_end(&mut self) -> Result<(), LogError> {
        while self.read_on().await? > 0 {}
        Ok(())
    }

    /// Reads once; what fails for another reader too is an error, what fails only here is tried
    /// again.
    async fn read_on(&mut self) -> Result<usize, LogError> {
        let late = || LogError::Unavailable("no answer in time".to_owned());
        for _ in 0..STUCK_MAX {
            match timeout(PATIENCE, self.read()).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(_)) if self.can_be_read().await => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(late()),
            }
            sleep(self.cluster.between(1, 50)).await;
        }
        let (topic, index) = (self.topic, self.at.index);
        let what = format!("H19: topic {topic}, a reader stops at {index}, others go on");
        self.cluster.history.violation(what);
        Err(late())
    }

    /// Lets go what it has read.
    ///
    /// # Errors
    /// When metadata does not take the change.
    pub(super) async fn trim(&mut self) -> Result<(), LogError> {
        if self.cluster.shape.trims && self.log.trim_due(self.at.index, NOTHING).is_some() {
            self.cluster.history.spares(self.topic, self.at.index);
            self.log.trim(self.at.index, NOTHING).await?;
        }
        Ok(())
    }

    fn seek(&mut self) {
        let (first, end) = (self.log.first().0, self.log.end().0);
        self.at.index = Index(first + self.cluster.rng.below(1 + end.saturating_sub(first)));
        self.moved = true;
    }

    /// Whether a reader without memory gets anything where this one is.
    async fn can_be_read(&self) -> bool {
        let mut fresh = ReadPoint::from(self.at.index);
        let read = timeout(PATIENCE, self.log.read(&mut fresh, LIMITS)).await;
        matches!(read, Ok(Ok(_)))
    }

    async fn read(&mut self) -> Result<usize, LogError> {
        let limits = ReadLimits {
            entries_max: 1 + usize::try_from(self.cluster.rng.below(8)).unwrap_or(0),
            ..LIMITS
        };
        let wanted = self.at.index;
        let found = match self.log.read_cached(&mut self.at, limits) {
            Some(found) => found,
            None if self.outlives_ledger() => {
                return Err(LogError::Unavailable(format!("index {wanted} was trimmed")));
            }
            None => self.log.read(&mut self.at, limits).await?,
        };
        let mut next = wanted;
        for entry in &found {
            self.check(next, entry);
            self.moved = false;
            next = entry.head.end_index();
            self.kept = Some((entry.ledger, next));
        }
        if next > wanted {
            self.cluster.history.followed(found.len());
        }
        Ok(found.len())
    }

    /// The defect: a place is worth nothing without its ledger, and is not forgotten with it.
    fn outlives_ledger(&self) -> bool {
        let kept = self.kept.filter(|(_, index)| *index == self.at.index);
        let is_gone = |ledger| {
            let ledgers = self.log.stats().ledgers;
            ledgers.iter().all(|stat| stat.ledger != ledger)
        };
        self.cluster.defect == Some(Defect::PlaceOutlivesLedger)
            && kept.is_some_and(|(ledger, _)| is_gone(ledger))
    }

    /// Nothing is left out that is still there, and nothing comes twice.
    fn check(&self, next: Index, entry: &LogEntry) {
        let (begins, ends) = (entry.head.base_index, entry.head.end_index());
        let is_next = match self.moved {
            true => begins <= next && next < ends,
            false => begins == next,
        };
        let was_trimmed = next < begins && begins <= self.log.first();
        if !is_next && !was_trimmed {
            let (topic, ledger, number) = (self.topic, entry.ledger, entry.entry);
            self.cluster.history.violation(format!(
                "H19: topic {topic}, a reader wants {next} and gets {ledger}:{number} with {begins} to {ends}"
            ));
        }
    }
}
