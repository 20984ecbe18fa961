//! From places to indexes.

use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::position::Position;

use crate::error::LogError;
use crate::source::Before;
use crate::state::LogInner;

impl LogInner {
    pub(crate) async fn locate(&self, place: Place) -> Result<Index, LogError> {
        let found = match place {
            Place::Earliest => self.first(),
            Place::Latest => self.end(),
            Place::Index(index) => index,
            Place::Position(position) => self.locate_position(position).await?,
            Place::TimeMs(ms) => self.locate_time(ms).await?,
        };
        Ok(found.max(self.first()).min(self.end()))
    }

    async fn locate_position(&self, position: Position) -> Result<Index, LogError> {
        let invalid = |what: &str| Err(LogError::Invalid(format!("position {position}: {what}")));
        let segment = {
            let state = self.state.lock();
            let mut segments = state.segments.iter();
            segments.find(|s| s.ledger == position.ledger).cloned()
        };
        let Some(segment) = segment else {
            return invalid("this topic has no such ledger, or has trimmed it");
        };
        if position.entry.0 >= segment.entries {
            return invalid("its ledger has no such entry");
        }
        let head = self.head_at(segment.ledger, position.entry).await?;
        if position.batch_index >= head.message_count {
            return invalid("its entry has fewer messages");
        }
        Ok(head.base_index.plus(u64::from(position.batch_index)))
    }

    /// The first message whose broker time is not before `ms`; times never go back (H13).
    async fn locate_time(&self, ms: u64) -> Result<Index, LogError> {
        loop {
            let first = self.first();
            match self.try_locate_time(ms).await {
                // A trim took away what was looked into: the log begins behind it now.
                Err(_) if self.first() > first => {}
                located => return located,
            }
        }
    }

    async fn try_locate_time(&self, ms: u64) -> Result<Index, LogError> {
        let segment = {
            let state = self.state.lock();
            let mut segments = state.segments.iter();
            segments
                .find(|s| s.entries > 0 && s.last_time_ms >= ms)
                .cloned()
        };
        let Some(segment) = segment else {
            return Ok(self.end());
        };
        if segment.first_time_ms >= ms {
            return Ok(segment.first_index);
        }
        let last_before = self.search_segment(&segment, Before::TimeMs(ms)).await?;
        let head = self.head_at(segment.ledger, last_before).await?;
        Ok(head.end_index())
    }
}
