//! A loaded topic: one owner task, one mailbox.

pub mod dedup;
