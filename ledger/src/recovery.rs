//! Closing the ledger of another writer: the [`machine`] decides, without I/O, threads or clocks;
//! the [`driver`] asks bookies and changes metadata.

pub mod driver;
pub mod machine;
