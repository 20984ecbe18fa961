//! Random lives of a topic with small pages: appends, trims, deaths, lost answers and former
//! owners. After each step every ledger is listed once or being deleted, and nothing acknowledged
//! is lost.

use proptest::prelude::*;

use super::*;

/// A step of the model.
#[derive(Debug, Clone)]
enum Do {
    Append(u64),
    /// Trims what ends at or below this part of the log, in percent.
    Trim(u64),
    Roll,
    /// Another owner takes over; the former one still appends and trims.
    TakeOver {
        sealed: bool,
    },
    /// The next process dies after this many changes.
    Die(u64, bool),
    /// The outcome of the next change is told late, or never.
    Lose(bool),
    /// Retention and a rollover meet.
    AppendAndTrim(u64),
}

fn step() -> impl Strategy<Value = Do> {
    prop_oneof![
        4 => (1..6u64).prop_map(Do::Append),
        2 => (0..=100u64).prop_map(Do::Trim),
        1 => Just(Do::Roll),
        2 => any::<bool>().prop_map(|sealed| Do::TakeOver { sealed }),
        2 => (0..40u64, any::<bool>()).prop_map(|(steps, after)| Do::Die(steps, after)),
        1 => any::<bool>().prop_map(Do::Lose),
        2 => (1..6u64).prop_map(Do::AppendAndTrim),
    ]
}

struct Model {
    world: TestWorld,
    paging: LogSettings,
    epoch: u64,
    owner: Owner,
    former: Option<Owner>,
    next_tag: u64,
    /// What was acknowledged, by index.
    acknowledged: BTreeMap<Index, u64>,
    /// Nothing at or above this was ever allowed to be trimmed.
    trimmed: Index,
    /// The owner may die, or not learn of what it did: else nothing may fail.
    disturbed: bool,
}

/// The append of an owner that is not the owner any more.
const LATE: u64 = 1_000_000;

/// No step of a live process takes this long.
const STEP: Duration = Duration::from_secs(600);

impl Model {
    async fn new(kept: usize, page: usize) -> Model {
        let (world, paging) = (TestWorld::new(1), paging(kept, page));
        let guard = take_over(&world, 1).await;
        let ctx = over(world.process(), paging.clone());
        let owner = Owner::try_open(ctx, options(1), vec![guard]).await.unwrap();
        Model {
            world,
            paging,
            epoch: 1,
            owner,
            former: None,
            next_tag: 0,
            acknowledged: BTreeMap::new(),
            trimmed: Index(0),
            disturbed: false,
        }
    }

    /// A new process takes the topic over; it has a fuse if it is to die.
    async fn take_over(&mut self, fuse: Option<Arc<Fuse>>) {
        self.note_outcomes();
        self.world.store.forget_outcomes(0);
        self.world.store.lose_answers(0);
        self.disturbed = fuse.is_some();
        let process = match &fuse {
            Some(fuse) => self.world.fused_process(fuse),
            None => self.world.process(),
        };
        self.epoch += 1;
        let guard = take_over(&self.world, self.epoch).await;
        let ctx = over(process, self.paging.clone());
        let opened = Owner::try_open(ctx, options(1), vec![guard]);
        match tokio::time::timeout(STEP, opened).await {
            Ok(Ok(owner)) => {
                self.former = Some(std::mem::replace(&mut self.owner, owner));
            }
            Ok(Err(error)) => panic!("{error}"),
            Err(_) if fuse.is_some() => Box::pin(self.take_over(None)).await,
            Err(_) => panic!("a live process does not open the topic"),
        }
    }

    fn note_outcomes(&mut self) {
        for (tag, outcome) in self.owner.collected.so_far() {
            if let Ok(appended) = outcome {
                self.acknowledged.insert(appended.base_index, tag);
            }
        }
    }

    /// Appends; whether all are acknowledged.
    async fn append(&mut self, count: u64) -> bool {
        let mut wanted = self.owner.collected.so_far().len();
        for _ in 0..count {
            if self.owner.append(self.next_tag).is_err() {
                return false;
            }
            wanted += 1;
            self.next_tag += 1;
        }
        let outcomes = tokio::time::timeout(STEP, self.owner.collected.wait_for(wanted)).await;
        self.note_outcomes();
        outcomes.is_ok_and(|outcomes| outcomes.iter().all(|(_, outcome)| outcome.is_ok()))
    }

    fn index_at(&mut self, percent: u64) -> Index {
        let end = Index(self.owner.log.end().0 * percent / 100);
        self.trimmed = self.trimmed.max(end);
        end
    }

    async fn apply(&mut self, step: Do, what: &str) {
        let clock = self.world.clock.clone().unwrap();
        clock.advance(Duration::from_secs(30));
        let lives = match step {
            Do::Append(count) => self.append(count).await,
            Do::Trim(percent) => {
                let below = self.index_at(percent);
                let trim = self.owner.log.trim(below, KEEP_NOTHING);
                matches!(tokio::time::timeout(STEP, trim).await, Ok(Ok(_)))
            }
            Do::Roll => {
                let roll = self.owner.log.roll();
                matches!(tokio::time::timeout(STEP, roll).await, Ok(Ok(())))
            }
            Do::AppendAndTrim(count) => {
                let below = self.index_at(100);
                let log = self.owner.log.clone();
                let trim = async move { log.trim(below, KEEP_NOTHING).await };
                let (lives, trimmed) =
                    tokio::join!(self.append(count), tokio::time::timeout(STEP, trim));
                lives && matches!(trimmed, Ok(Ok(_)))
            }
            Do::Lose(never) => {
                self.disturbed = true;
                match never {
                    true => self.world.store.forget_outcomes(1),
                    false => self.world.store.lose_answers(1),
                }
                true
            }
            Do::TakeOver { sealed } => {
                if sealed {
                    let _ = tokio::time::timeout(STEP, self.owner.log.close()).await;
                }
                self.take_over(None).await;
                true
            }
            Do::Die(steps, after) => {
                let blow = if after { Blow::After } else { Blow::Before };
                self.take_over(Some(Fuse::new(steps, blow))).await;
                true
            }
        };
        if !lives {
            assert!(
                self.disturbed,
                "{what}: it fails, and nothing is in its way"
            );
            self.take_over(None).await;
        }
        if let Some(former) = self.former.take() {
            let before = stored_record(&self.world).await;
            let _ = former.append(LATE);
            let trim = former.log.trim(former.log.end(), KEEP_NOTHING);
            let _ = tokio::time::timeout(STEP, trim).await;
            let _ = tokio::time::timeout(STEP, former.log.close()).await;
            let after = stored_record(&self.world).await;
            assert_eq!(after, before, "{what}: a former owner writes");
            let outcomes = former.collected.so_far();
            let is_late = |outcome: &(u64, Result<_, _>)| outcome.0 == LATE && outcome.1.is_ok();
            assert!(!outcomes.iter().any(is_late), "{what}: it is acknowledged");
        }
    }

    async fn check(&self, what: &str) {
        let all = check_metadata(&self.world, what).await;
        let record = stored_record(&self.world).await.unwrap();
        let paging = self.paging.paging;
        assert!(record.segments.len() <= paging.kept + paging.page, "{what}");
        let first = all.first().map_or(record.trimmed_index, |s| s.first_index);
        assert!(Index(first) <= self.trimmed, "{what}: trimmed too much");
    }
}

async fn run(kept: usize, page: usize, steps: Vec<Do>) {
    let mut model = Model::new(kept, page).await;
    for (number, step) in steps.into_iter().enumerate() {
        let what = format!("step {number}: {step:?}");
        model.apply(step, &what).await;
        model.check(&what).await;
    }
    model.take_over(None).await;
    let found: BTreeMap<Index, Bytes> = model
        .owner
        .read_all()
        .await
        .into_iter()
        .map(|entry| (entry.head.base_index, entry.body))
        .collect();
    let first = model.owner.log.first();
    for (index, tag) in model.acknowledged.range(first..) {
        assert_eq!(found.get(index), Some(&body(*tag)), "{index} is lost");
    }
    assert!(model.append(3).await);
    model.check("the end").await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn segments_are_in_one_place_whatever_happens(
        kept in 2..4usize,
        page in 1..4usize,
        steps in prop::collection::vec(step(), 1..30),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(kept, page, steps));
    }
}
