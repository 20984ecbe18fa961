//! The metadata store on real etcd processes: the contract on one member and on three, and what
//! only etcd has: lost answers, dying leaders, compaction, users and certificates.

mod access;
mod contract;
mod outcomes;
mod sessions;
mod space;
mod support;
mod watches;
