//! Places that backups name. One of another cluster that was not known is noted, and only read from
//! then on; its record follows it when it moves.
//!
//! Invariant: a record gets another URL only after the marker of the place was seen there, and was
//! not found at the URL that it has: a copy of the place does not take over from it. Places
//! of this cluster are followed by [`Locations::primary`] alone.

use aquifer_model::id::LocationId;

use crate::error::{ColdError, ColdResult};
use crate::location::{Known, Locations, PlaceOfObjects};

impl Locations {
    /// The number of a place that a backup names, and whether what is there is another cluster's. A
    /// place that was not known is noted, once its marker was seen: it is only read from then on.
    ///
    /// Its URL is where it was opened just now, or what the backup says, which may be older than
    /// what metadata says. A copy of a place has its marker too: so the record gets another URL
    /// only when the place is not found any more where it was.
    ///
    /// # Errors
    /// `WrongPlace` when it is not what the backup means; those of the store.
    pub async fn number_of(&self, place: &PlaceOfObjects) -> ColdResult<(u32, bool)> {
        let seen = self.known().await?;
        if let Some(known) = seen.into_iter().find(|known| known.id == place.id) {
            let found = (known.number, known.is_foreign());
            self.follow(&known, place).await?;
            return Ok(found);
        }
        let (found, _) = self.visit(&place.url, &place.owner).await?;
        if found != place.id {
            return Err(ColdError::WrongPlace {
                url: place.url.clone(),
                reason: format!("its marker says {found}, not {}", place.id),
            });
        }
        let new = Known {
            number: 0,
            id: place.id,
            url: place.url.clone(),
            marked: true,
            created_ms: self.clock.wall_ms(),
            owner: place.owner.clone(),
        };
        let known = self.add(|known| known.id == place.id, new).await?;
        Ok((known.number, known.is_foreign()))
    }

    /// Whether another cluster owns a place; its store is not asked.
    ///
    /// # Errors
    /// `Config` when metadata knows none of the number.
    pub async fn is_foreign(&self, number: u32) -> ColdResult<bool> {
        if let Some(location) = self.all.lock().await.get(&number) {
            return Ok(location.is_foreign);
        }
        Ok(self.record_of(number).await?.is_foreign())
    }

    /// Looks whether metadata has another URL of a place than the one under which it is open, and
    /// opens it there next time: another process may have seen that it moved.
    ///
    /// # Errors
    /// When metadata cannot be read.
    pub async fn look_again(&self, number: u32) -> ColdResult<()> {
        let opened = {
            let all = self.all.lock().await;
            let open = all.get(&number).filter(|open| open.is_foreign);
            open.map(|open| open.url.clone())
        };
        // Records of places of this cluster follow what this process has open.
        let Some(opened) = opened else { return Ok(()) };
        let known = self.record_of(number).await?;
        if known.is_foreign() && known.url != opened {
            self.all.lock().await.remove(&number);
        }
        Ok(())
    }

    /// Notes that a place of another cluster has moved.
    async fn follow(&self, known: &Known, place: &PlaceOfObjects) -> ColdResult<()> {
        if !known.is_foreign() || known.url == place.url {
            return Ok(());
        }
        let is_still_there = self.is_at(known.id, &known.url, &known.owner).await;
        if is_still_there || !self.is_at(known.id, &place.url, &known.owner).await {
            return Ok(());
        }
        let moved = |known: &mut Known| known.url.clone_from(&place.url);
        self.rewrite(known.number, moved).await?;
        self.all.lock().await.remove(&known.number);
        tracing::info!(
            location = known.number,
            from = known.url,
            to = place.url,
            "objects of another cluster have moved"
        );
        Ok(())
    }

    /// Whether a place is found under a URL.
    async fn is_at(&self, id: LocationId, url: &str, owner: &str) -> bool {
        match self.visit(url, owner).await {
            Ok((found, _)) => found == id,
            Err(error) => {
                tracing::debug!(url, %error, "a place of objects is not there");
                false
            }
        }
    }
}
