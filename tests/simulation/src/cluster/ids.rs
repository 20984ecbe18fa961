//! Ids of bookies: a simulation numbers them from zero.

use aquifer_model::id::BookieId;

/// The id of a bookie.
pub(super) fn id_of(number: u8) -> BookieId {
    BookieId([number + 1; 16])
}

/// The number of a bookie, from its id.
pub(super) fn number_of(id: BookieId) -> u8 {
    id.0[0].wrapping_sub(1)
}
