//! Writing one ledger: the [`machine`] decides, without I/O, threads or clocks; the [`driver`]
//! sends to bookies, waits, and changes metadata.

pub mod driver;
pub mod machine;
