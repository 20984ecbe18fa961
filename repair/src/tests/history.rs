//! Any history of losses, returns, damage, ensemble changes and repairs ends well.

use proptest::prelude::*;

use super::*;

const BOOKIES: u8 = 7;

#[derive(Debug, Clone, Copy)]
enum Step {
    Append(u8),
    Fail(u8),
    Lose(u8),
    Return(u8),
    Wipe(u8),
    Drop(u8, u8),
    Corrupt(u8, u8),
    Roll,
    Repair,
}

fn any_step() -> impl Strategy<Value = Step> {
    let n = 1..=BOOKIES;
    prop_oneof![
        4 => (1_u8..6).prop_map(Step::Append),
        1 => n.clone().prop_map(Step::Fail),
        1 => n.clone().prop_map(Step::Lose),
        1 => n.clone().prop_map(Step::Return),
        1 => n.clone().prop_map(Step::Wipe),
        1 => (n.clone(), 0_u8..20).prop_map(|(n, entry)| Step::Drop(n, entry)),
        1 => (n, 0_u8..20).prop_map(|(n, entry)| Step::Corrupt(n, entry)),
        1 => Just(Step::Roll),
        2 => Just(Step::Repair),
    ]
}

struct History {
    cluster: Cluster,
    quorum: Quorum,
    open: Option<Open>,
    /// Ledgers that were closed, by their writer or by repair, and what was acknowledged.
    ledgers: Vec<(LedgerId, u64)>,
    /// The bookie whose copies are not to be relied on until the next repair: at most Qa − 1.
    harmed: Option<u8>,
}

impl History {
    async fn step(&mut self, step: Step) {
        match step {
            Step::Append(count) => self.append(count).await,
            Step::Fail(n) if self.may_harm(n) => {
                self.cluster.world.bookies.set_mode(bookie(n), Mode::Broken);
                self.append(2).await;
                self.cluster.world.bookies.set_mode(bookie(n), Mode::Up);
            }
            Step::Lose(n) if self.may_harm(n) => self.cluster.lose(bookie(n)).await,
            Step::Return(n) if self.harmed == Some(n) => self.cluster.register(bookie(n)).await,
            Step::Wipe(n) if self.may_harm(n) => {
                // What is open there is not fenced, so its writer must be done with it.
                self.roll().await;
                self.cluster.world.bookies.wipe(bookie(n));
            }
            Step::Drop(n, entry) if self.may_harm(n) => {
                self.roll().await;
                let entry = EntryId(u64::from(entry));
                for (ledger, _) in &self.ledgers {
                    let bookies = &self.cluster.world.bookies;
                    bookies.drop_entry(bookie(n), *ledger, entry);
                }
            }
            Step::Corrupt(n, entry) if self.may_harm(n) => {
                self.roll().await;
                let bookies = &self.cluster.world.bookies;
                let entry = EntryId(u64::from(entry));
                for (ledger, _) in &self.ledgers {
                    if bookies.entries(bookie(n), *ledger).contains(&entry) {
                        bookies.corrupt(bookie(n), *ledger, entry);
                    }
                }
            }
            Step::Roll => self.roll().await,
            Step::Repair => self.repair().await,
            _ => {}
        }
    }

    fn may_harm(&mut self, n: u8) -> bool {
        *self.harmed.get_or_insert(n) == n
    }

    async fn append(&mut self, count: u8) {
        if self.open.is_none() {
            self.open = Some(self.cluster.open(self.quorum).await);
        }
        let open = self.open.as_mut().expect("opened above");
        if open.append(u64::from(count)).await.is_some() {
            let (id, acknowledged) = (open.id, open.acknowledged());
            self.open = None;
            self.ledgers.push((id, acknowledged));
        }
    }

    async fn roll(&mut self) {
        if let Some(open) = self.open.take() {
            if self.cluster.info(open.id).await.state == LedgerState::Open {
                self.cluster.close(&open).await;
            }
            self.ledgers.push((open.id, open.acknowledged()));
        }
    }

    /// Everything is checked, as marks of the auditor, of scrubbers and of recoveries ask for it.
    async fn repair(&mut self) {
        let mut all: Vec<LedgerId> = self.ledgers.iter().map(|(ledger, _)| *ledger).collect();
        all.extend(self.open.as_ref().map(|open| open.id));
        self.cluster.repair_all().await;
        for ledger in all {
            let bookies = self.cluster.info(ledger).await.bookies();
            let mark = Mark::new(ledger, HOME, "test", 0).doubted(bookies);
            self.cluster.mark(mark).await;
        }
        let mut worker = self.cluster.worker().await;
        worker.round().await.unwrap();
        for (ledger, acknowledged) in &self.ledgers {
            self.cluster.assert_whole(*ledger, *acknowledged).await;
            // An end that was recorded never goes back behind what was acknowledged (I3).
            let LedgerState::Closed(end) = self.cluster.info(*ledger).await.state else {
                panic!("{ledger} is closed by its writer or by repair");
            };
            let entries = end.last_entry.map_or(0, |last| last.0 + 1);
            assert!(entries >= *acknowledged);
        }
        // An open ledger's mark waits for its end; nothing else is left.
        assert!(self.cluster.marks().len() <= usize::from(self.open.is_some()));
        self.harmed = None;
        for n in 1..=BOOKIES {
            self.cluster.register(bookie(n)).await;
        }
    }
}

async fn run(shape: (u32, u32, u32), steps: Vec<Step>) {
    let cluster = Cluster::new(BOOKIES).await;
    let mut history = History {
        cluster,
        quorum: quorum(shape.0, shape.1, shape.2),
        open: None,
        ledgers: Vec::new(),
        harmed: None,
    };
    for step in steps {
        history.step(step).await;
    }
    history.roll().await;
    history.repair().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn every_acknowledged_entry_has_its_copies_again(
        shape in prop_oneof![
            Just((3, 3, 2)),
            Just((5, 3, 2)),
            Just((4, 3, 2)),
            Just((4, 2, 2)),
        ],
        steps in prop::collection::vec(any_step(), 1..25),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(shape, steps));
    }
}
