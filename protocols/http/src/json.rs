//! proto3 JSON, strictly: what could be meant in two ways is refused. The library's own reading
//! takes the last of a field that is given twice, a number beyond 64 bits as the largest one, and
//! null for what is not given.

mod read;
mod strict;
mod write;

pub(crate) use read::{Reader, from_text, lacks_form};
pub(crate) use strict::parse;
pub(crate) use write::{Renamed, write};
