//! The contract of [`MetadataStore`], run on every implementation: what callers rely on and no
//! more. An implementation gives a [`StoreFactory`] and invokes [`metadata_contract!`] in a test
//! target.
//!
//! The checks need real time only where an implementation has no other: waiting is always for an
//! event, with a generous limit.
//!
//! [`MetadataStore`]: crate::store::MetadataStore
//! [`metadata_contract!`]: crate::metadata_contract

mod elections;
mod fixture;
mod sessions;
mod transactions;
mod watches;

pub use elections::{
    a_leader_that_lost_its_session_is_followed, a_leader_that_resigns_is_followed,
};
pub use fixture::StoreFactory;
pub use sessions::{
    a_closed_session_takes_its_keys_along, a_paused_session_is_lost_and_takes_its_keys_along,
    a_put_outside_makes_a_key_stay, no_key_of_a_session_survives_its_process,
};
pub use transactions::{
    a_scan_survives_a_snapshot_that_is_lost, acknowledged_changes_survive, all_or_nothing,
    concurrent_updates_lose_nothing, conditions, guards_pin_without_changing, limits,
    names_and_whole_scans, pages_of_a_scan_show_one_state, partitions_are_kept_apart,
    prefixes_are_exact,
};
pub use watches::{
    a_watch_from_a_scan_misses_nothing, a_watch_resumes_without_gaps,
    a_watch_that_lost_history_says_so, watches_see_their_prefix_only,
};

/// Makes a test of each check. The argument is an expression for a new factory.
#[macro_export]
macro_rules! metadata_contract {
    ($factory:expr) => {
        $crate::metadata_contract!($factory =>
            conditions,
            all_or_nothing,
            guards_pin_without_changing,
            concurrent_updates_lose_nothing,
            partitions_are_kept_apart,
            limits,
            prefixes_are_exact,
            pages_of_a_scan_show_one_state,
            a_scan_survives_a_snapshot_that_is_lost,
            names_and_whole_scans,
            acknowledged_changes_survive,
            a_watch_from_a_scan_misses_nothing,
            a_watch_resumes_without_gaps,
            watches_see_their_prefix_only,
            a_watch_that_lost_history_says_so,
            a_closed_session_takes_its_keys_along,
            a_paused_session_is_lost_and_takes_its_keys_along,
            a_put_outside_makes_a_key_stay,
            no_key_of_a_session_survives_its_process,
            a_leader_that_resigns_is_followed,
            a_leader_that_lost_its_session_is_followed,
        );
    };
    ($factory:expr => $($check:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $check() {
            $crate::contract::$check(&$factory).await;
        }
    )*};
}
