//! Whatever readers of one log do in whatever order, each sees its entries as they were appended.

use proptest::prelude::*;

use super::*;

const READERS: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    /// These readers read at once; some give up after that number of turns.
    Read(Vec<(usize, Option<u8>)>, ReadLimits),
    /// A reader gives back what it read last, but for that number of entries.
    Unread(usize, usize),
    Seek(usize, u64),
    Release(usize),
    Replace(usize),
    Append(u64),
    /// The tail goes, or the budget of read-ahead is taken and given back.
    ShrinkTail,
    TakeBudget(bool),
    Trim(u64),
    Fail(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let reader = 0..READERS;
    let readers = prop::collection::vec((reader.clone(), prop::option::of(0..6_u8)), 1..READERS);
    let limits = (1..400_usize, 1..12_usize).prop_map(|(bytes_max, entries_max)| ReadLimits {
        bytes_max,
        entries_max,
    });
    prop_oneof![
        12 => (readers, limits).prop_map(|(readers, limits)| Step::Read(readers, limits)),
        3 => (reader.clone(), 0..8_usize).prop_map(|(reader, kept)| Step::Unread(reader, kept)),
        2 => (reader.clone(), 0..150_u64).prop_map(|(reader, index)| Step::Seek(reader, index)),
        1 => reader.clone().prop_map(Step::Release),
        1 => reader.prop_map(Step::Replace),
        2 => (1..20_u64).prop_map(Step::Append),
        2 => Just(Step::ShrinkTail),
        1 => any::<bool>().prop_map(Step::TakeBudget),
        1 => (0..150_u64).prop_map(Step::Trim),
        1 => any::<bool>().prop_map(Step::Fail),
    ]
}

struct Reader {
    at: ReadPoint,
    last: (Index, Vec<LogEntry>),
}

impl Reader {
    fn new() -> Reader {
        Reader {
            at: Index(0).into(),
            last: (Index(0), Vec::new()),
        }
    }
}

struct Model {
    world: TestWorld,
    owner: Owner,
    /// Base index of each tag, and the end.
    bases: Vec<u64>,
    failing: bool,
}

impl Model {
    async fn append(&mut self, entries: u64) {
        let from = self.bases.len() as u64 - 1;
        self.owner.append_all(from..from + entries).await;
        for tag in from..from + entries {
            let end = self.bases[usize::try_from(tag).unwrap()] + u64::from(count(tag));
            self.bases.push(end);
        }
    }

    async fn read(&self, reader: &mut Reader, limits: ReadLimits, turns: Option<u8>) {
        let log = &self.owner.log;
        let wanted = reader.at.index.max(log.first());
        let reading = log.read(&mut reader.at, limits);
        let giving_up = async {
            match turns {
                None => std::future::pending().await,
                Some(turns) => {
                    for _ in 0..turns {
                        tokio::task::yield_now().await;
                    }
                }
            }
        };
        let read = tokio::select! {
            biased;
            read = reading => read,
            () = giving_up => {
                assert_eq!(reader.at.index, wanted, "nothing was read");
                return;
            }
        };
        let found = match read {
            Ok(found) => found,
            Err(error) => {
                assert!(self.failing, "{error:?}");
                assert_eq!(reader.at.index, wanted);
                return;
            }
        };
        self.check(wanted, &found);
        let end = found.last().map_or(wanted, |last| last.head.end_index());
        assert_eq!(reader.at.index, end);
        assert!(found.len() <= limits.entries_max);
        reader.last = (wanted, found);
    }

    fn check(&self, wanted: Index, found: &[LogEntry]) {
        if found.is_empty() {
            assert!(wanted >= self.owner.log.end());
            return;
        }
        let first = self.bases.partition_point(|base| *base <= wanted.0) - 1;
        for (tag, entry) in (first..).zip(found) {
            assert_eq!(entry.head.base_index.0, self.bases[tag]);
            assert_eq!(entry.body, body(tag as u64));
        }
    }

    async fn read_at_once(
        &self,
        readers: &mut [Reader],
        who: &[(usize, Option<u8>)],
        limits: ReadLimits,
    ) {
        let reads = readers.iter_mut().enumerate().filter_map(|(n, reader)| {
            let (_, turns) = who.iter().find(|(other, _)| *other == n)?;
            Some(self.read(reader, limits, *turns))
        });
        join_all(reads).await;
    }
}

async fn run(steps: Vec<Step>) {
    let world = TestWorld::new(1);
    let mut ctx = world.logs();
    let mutable = Arc::get_mut(&mut ctx).unwrap();
    mutable.settings.read_ahead_range_bytes = 500;
    mutable.cache = EntryCache::new(2000, 8000);
    let owner = Owner::open(ctx, options(17)).await;
    let mut model = Model {
        world,
        owner,
        bases: vec![0],
        failing: false,
    };
    model.append(60).await;
    let mut readers: Vec<Reader> = (0..READERS).map(|_| Reader::new()).collect();
    let mut taken = None;
    let cache = model.owner.ctx.cache.clone();
    for step in steps {
        match step {
            Step::Read(who, limits) => model.read_at_once(&mut readers, &who, limits).await,
            Step::Unread(reader, kept) => {
                let reader = &mut readers[reader];
                let (wanted, entries) = std::mem::take(&mut reader.last);
                let left = entries.get(kept..).unwrap_or_default();
                let came_here = entries.last().map(|last| last.head.end_index());
                if let Some(first) = left.first()
                    && came_here == Some(reader.at.index)
                {
                    let index = first.head.base_index.max(wanted);
                    reader.at.unread(index, left);
                    assert_eq!(reader.at.index, index);
                }
            }
            Step::Seek(reader, index) => readers[reader].at.index = Index(index),
            Step::Release(reader) => readers[reader].at.release(),
            Step::Replace(reader) => readers[reader] = Reader::new(),
            Step::Append(entries) if !model.failing => model.append(entries).await,
            Step::Append(_) => {}
            Step::ShrinkTail => cache.shrink_tail(0),
            Step::TakeBudget(take) => {
                taken = take.then(|| cache.read_ahead().try_acquire(4000));
            }
            Step::Trim(below) if !model.failing => {
                let log = &model.owner.log;
                let below = Index(below.min(log.end().0));
                log.trim(below, KEEP_NOTHING).await.unwrap();
            }
            Step::Trim(_) => {}
            Step::Fail(fail) => {
                model.failing = fail;
                let mode = if fail { Mode::Unreachable } else { Mode::Up };
                model.world.bookies.set_all(mode);
            }
        }
        assert!(cache.read_ahead().used_bytes() <= 8000);
    }
    drop(taken);
    model.world.bookies.set_all(Mode::Up);
    model.failing = false;
    for reader in &mut readers {
        while reader.at.index < model.owner.log.end() {
            model.read(reader, LIMITS, None).await;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_reader_sees_the_log(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(steps));
    }
}
