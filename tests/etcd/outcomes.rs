//! What becomes of a commit whose answer is lost: it is made once or not at all, and the caller
//! learns which as soon as etcd can be asked again (I6).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use aquifer_harness::etcd::{Etcd, EtcdOptions};
use aquifer_harness::proxy::{Flow, Proxy};
use aquifer_harness::wait::until;
use aquifer_metadata::error::{MetadataError, MetadataResult};
use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, MetadataStore, Operation, Revision, Transaction, Until};
use aquifer_runtime::task::TaskGroup;
use bytes::Bytes;

use crate::support::{config, connect, key, next, put, soon, value, watch};

/// One etcd behind two doors, of which the first can be held shut.
struct TwoDoors {
    etcd: Etcd,
    first: Proxy,
    second: Proxy,
    tasks: TaskGroup,
}

impl TwoDoors {
    async fn new() -> Result<TwoDoors> {
        let etcd = Etcd::start(EtcdOptions::members(1)).await?;
        Ok(TwoDoors {
            first: Proxy::start(etcd.address(0)).await?,
            second: Proxy::start(etcd.address(0)).await?,
            etcd,
            tasks: TaskGroup::new("test"),
        })
    }

    fn urls(&self) -> Vec<String> {
        vec![self.first.url(), self.second.url()]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_found_to_be_made() -> Result<()> {
    let doors = TwoDoors::new().await?;
    let store = connect(&config(doors.urls()), &doors.tasks).await?;
    let store = store.as_ref();
    let first = put(store, &key(1), "before").await?;
    doors.first.answers(Flow::Hold);
    // If it were sent again after it was made, the condition would fail.
    let made = store
        .put("", &key(1), Bytes::from("once"), Expect::Revision(first))
        .await?;
    let found = store.get(&key(1)).await?.expect("it was made");
    assert_eq!((found.revision, found.value), (made, Bytes::from("once")));
    // The way to etcd that works is kept, and so is the slot.
    put(store, &key(1), "after").await?;
    let mut events = watch(store, first).await?;
    let (_, once, at) = next(events.as_mut()).await;
    assert_eq!((once.as_deref(), at), (Some("once"), made));
    assert_eq!(next(events.as_mut()).await.1.as_deref(), Some("after"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_arrives_after_it_was_given_up_is_not_made_twice() -> Result<()> {
    let doors = TwoDoors::new().await?;
    let store = connect(&config(doors.urls()), &doors.tasks).await?;
    let store = store.as_ref();
    let start = put(store, &key(1), "before").await?;
    doors.first.requests(Flow::Hold);
    let held = doors.first.held();
    let made = put(store, &key(1), "once").await?;
    assert!(held.has_changed()?, "the first way was tried");
    let last = put(store, &key(1), "last").await?;
    // Now the first try arrives, long after its sender has gone another way.
    let applied = doors.etcd.applied(0).await?;
    doors.first.requests(Flow::Uncancelled);
    let late = until("etcd to apply the late commit", || async {
        Ok((doors.etcd.applied(0).await? > applied).then_some(()))
    });
    late.await?;
    let end = put(store, &key(2), "end").await?;
    let mut events = watch(store, start).await?;
    let mut seen = Vec::new();
    loop {
        let (_, value, at) = next(events.as_mut()).await;
        seen.push((value.unwrap_or_default(), at));
        if at == end {
            break;
        }
    }
    let expected = [("once", made), ("last", last), ("end", end)];
    assert_eq!(seen, expected.map(|(value, at)| (value.to_owned(), at)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_etcd_that_stays_away_leaves_an_outcome_unknown() -> Result<()> {
    let etcd = Etcd::start(EtcdOptions::members(1)).await?;
    let door = Proxy::start(etcd.address(0)).await?;
    let tasks = TaskGroup::new("test");
    let mut short = config(vec![door.url()]);
    short.request_timeout_ms = 1_500;
    let store = connect(&short, &tasks).await?;
    let store = store.as_ref();
    put(store, &key(1), "before").await?;
    door.answers(Flow::Hold);
    let unknown = put(store, &key(1), "perhaps").await;
    assert!(
        matches!(unknown, Err(MetadataError::UnknownOutcome(_))),
        "{unknown:?}"
    );
    let read = store.get(&key(1)).await;
    assert!(
        matches!(read, Err(MetadataError::Unavailable(_))),
        "{read:?}"
    );
    door.answers(Flow::Pass);
    door.cut();
    let after = put(store, &key(2), "after").await?;
    let found = store.get(&key(1)).await?.expect("one or the other");
    assert!(found.revision < after, "what was in doubt is resolved");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_an_outcome_is_told_however_long_etcd_was_away() -> Result<()> {
    let etcd = Etcd::start(EtcdOptions::members(1)).await?;
    let door = Proxy::start(etcd.address(0)).await?;
    let tasks = TaskGroup::new("test");
    let mut short = config(vec![door.url()]);
    short.request_timeout_ms = 1_000;
    let store = connect(&short, &tasks).await?;
    let before = put(store.as_ref(), &key(1), "before").await?;
    door.answers(Flow::Hold);
    let waiting = {
        let store = Arc::clone(&store);
        tasks.spawn("writer", async move {
            let change = Transaction {
                operations: vec![Operation::Put {
                    key: key(1),
                    value: Bytes::from("late"),
                    expect: Expect::Revision(before),
                }],
                ..Transaction::default()
            };
            store.commit_until(change, Until::Known).await
        })
    };
    // Two requests, one after the other, take longer than the deadline of the first.
    for _ in 0..3 {
        let read = store.get(&key(2)).await;
        assert!(
            matches!(read, Err(MetadataError::Unavailable(_))),
            "{read:?}"
        );
    }
    assert!(!waiting.is_finished(), "the outcome is not known yet");
    door.answers(Flow::Pass);
    door.cut();
    let made = soon("the writer", waiting).await??;
    let found = store.get(&key(1)).await?.expect("it was made");
    assert_eq!((found.revision, found.value), (made, Bytes::from("late")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_fills_etcds_limits_is_made_too_and_its_conflicts_are_told() -> Result<()>
{
    let etcd = Etcd::start(EtcdOptions::members(1)).await?;
    let tasks = TaskGroup::new("test");
    let store = connect(&config(etcd.urls()), &tasks).await?;
    let full = |expect: Expect| Transaction {
        operations: (0..128)
            .map(|number| Operation::Put {
                key: key(number),
                value: Bytes::from("x"),
                expect,
            })
            .collect(),
        ..Transaction::default()
    };
    let made = store.commit(full(Expect::Absent)).await?;
    let again = store.commit(full(Expect::Absent)).await;
    let conflict = MetadataError::Conflict {
        key: key(0),
        current: Some(made),
    };
    assert_eq!(again, Err(conflict));
    assert!(store.commit(full(Expect::Revision(made))).await? > made);
    Ok(())
}

/// What a writer was told of each value that it wrote.
type Told = Vec<(String, MetadataResult<Revision>)>;

/// Writes one value after the other to a key of its own until told to stop.
async fn write_on(store: Arc<dyn MetadataStore>, writer: usize, stop: Arc<AtomicBool>) -> Told {
    let mut told = Vec::new();
    let mut last = None;
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let text = number.to_string();
        let expect = match last {
            // Every other write has a condition, which a write made twice would break.
            Some(last) if number % 2 == 1 => Expect::Revision(last),
            _ => Expect::Any,
        };
        let key = key(writer);
        let put = store.put(
            keys::CLUSTER_PARTITION,
            &key,
            Bytes::from(text.clone()),
            expect,
        );
        let result = put.await;
        last = result.as_ref().ok().copied();
        told.push((text, result));
    }
    told
}

/// What happened to the keys: each value with its revisions.
async fn history(
    store: &dyn MetadataStore,
    start: Revision,
) -> Result<BTreeMap<(String, String), Vec<Revision>>> {
    let end = put(store, &key(99), "end").await?;
    let mut events = watch(store, start).await?;
    let mut made: BTreeMap<_, Vec<Revision>> = BTreeMap::new();
    loop {
        let (key, value, at) = next(events.as_mut()).await;
        made.entry((key, value.unwrap_or_default()))
            .or_default()
            .push(at);
        if at == end {
            return Ok(made);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_that_die_or_freeze_lose_and_double_nothing() -> Result<()> {
    const WRITERS: usize = 8;
    let mut etcd = Etcd::start(EtcdOptions::members(3)).await?;
    let tasks = TaskGroup::new("test");
    let store = connect(&config(etcd.urls()), &tasks).await?;
    let start = put(store.as_ref(), &key(99), "start").await?;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(&store) as Arc<dyn MetadataStore>;
            tasks.spawn("writer", write_on(store, writer, Arc::clone(&stop)))
        })
        .collect();
    // A leader that is killed, and one that goes on after others have elected another.
    for freeze in [false, true] {
        put(store.as_ref(), &key(98), "under way").await?;
        let leader = etcd.leader().await?;
        if freeze {
            etcd.pause(leader)?;
        } else {
            etcd.kill(leader)?;
        }
        put(store.as_ref(), &key(98), "without it").await?;
        if freeze {
            etcd.resume(leader)?;
        } else {
            etcd.restart(leader)?;
        }
        etcd.healthy().await?;
    }
    stop.store(true, Ordering::SeqCst);
    let mut acknowledged = 0;
    let mut told = Vec::new();
    for (writer, handle) in writers.into_iter().enumerate() {
        told.push((key(writer), soon("a writer", handle).await?));
    }
    let made = history(store.as_ref(), start).await?;
    for ((key, value), revisions) in &made {
        if !["98", "99"]
            .iter()
            .any(|other| key.ends_with(&format!("/{other}")))
        {
            assert_eq!(revisions.len(), 1, "{key} got {value} more than once");
        }
    }
    for (key, results) in told {
        for (value, result) in results {
            let revisions = made.get(&(key.clone(), value.clone()));
            match result {
                Ok(revision) => {
                    acknowledged += 1;
                    assert_eq!(revisions, Some(&vec![revision]), "{key} = {value}");
                }
                Err(MetadataError::UnknownOutcome(_)) => {}
                // A quorum of members was there all the time, so nothing may fail for good.
                Err(error) => panic!("{key} = {value}: {error}, made at {revisions:?}"),
            }
        }
    }
    assert!(
        acknowledged > WRITERS,
        "only {acknowledged} writes were acknowledged"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_was_away_is_used_again() -> Result<()> {
    let mut etcd = Etcd::start(EtcdOptions::members(1)).await?;
    let tasks = TaskGroup::new("test");
    let mut short = config(etcd.urls());
    short.request_timeout_ms = 1_000;
    let store = connect(&short, &tasks).await?;
    let store = store.as_ref();
    let before = put(store, &key(1), "before").await?;
    let mut events = watch(store, before).await?;
    etcd.kill(0)?;
    let read = value(store, &key(1)).await;
    assert!(
        matches!(read, Err(MetadataError::Unavailable(_))),
        "{read:?}"
    );
    let scanned = store.scan("", None, 10).await;
    assert!(
        matches!(scanned, Err(MetadataError::Unavailable(_))),
        "{scanned:?}"
    );
    // Nothing listens, so it is certain that nothing was sent.
    let write = put(store, &key(1), "away").await;
    assert!(
        matches!(write, Err(MetadataError::Unavailable(_))),
        "{write:?}"
    );
    etcd.restart(0)?;
    etcd.healthy().await?;
    assert_eq!(value(store, &key(1)).await?.as_deref(), Some("before"));
    let back = put(store, &key(1), "back").await?;
    let (_, value, at) = next(events.as_mut()).await;
    assert_eq!((value.as_deref(), at), (Some("back"), back));
    Ok(())
}
