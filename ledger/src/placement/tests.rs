//! Choices one by one, and their rules over random clusters.

use aquifer_runtime::clock::ManualClock;
use aquifer_runtime::rng::SeededRng;
use proptest::prelude::*;

use super::*;

fn bookie(n: u8, zone: &str, read_only: bool) -> BookieInfo {
    BookieInfo {
        id: BookieId([n; 16]),
        zone: zone.to_owned(),
        read_only,
        free_bytes: 0,
        capacity_bytes: 0,
    }
}

fn quorum(ensemble: u32, write: u32, ack: u32) -> Quorum {
    Quorum::new(ensemble, write, ack).unwrap()
}

#[test]
fn spreads_over_zones_and_skips_read_only() {
    let bookies = Bookies::fixed(vec![
        bookie(1, "a", false),
        bookie(2, "a", false),
        bookie(3, "b", false),
        bookie(4, "c", true),
        bookie(5, "c", false),
    ]);
    for seed in 0..50 {
        let rng = SeededRng::new(seed);
        let chosen = bookies.choose(3, &[], &[], &rng).unwrap();
        assert!(chosen.contains(&BookieId([3; 16])) && chosen.contains(&BookieId([5; 16])));
        let (_, chosen) = bookies.ensemble(quorum(3, 3, 2), 0, false, &rng).unwrap();
        assert!(chosen.contains(&BookieId([3; 16])) && chosen.contains(&BookieId([5; 16])));
        let beside = [BookieId([3; 16]), BookieId([5; 16])];
        let replacement = bookies
            .choose(1, &[BookieId([1; 16])], &beside, &rng)
            .unwrap();
        assert_eq!(replacement, [BookieId([2; 16])]);
    }
}

#[test]
fn too_few_is_an_error_that_counts() {
    let bookies = Bookies::fixed(vec![bookie(1, "", false), bookie(2, "", true)]);
    let error = bookies.choose(2, &[], &[], &SeededRng::new(1)).unwrap_err();
    assert!(error.to_string().contains("needs 2"), "{error}");
    assert!(error.to_string().contains("read-only"), "{error}");
    let error = bookies
        .ensemble(quorum(3, 3, 2), 0, true, &SeededRng::new(1))
        .unwrap_err();
    assert!(error.to_string().contains("needs 3"), "{error}");
}

#[test]
fn an_ensemble_shrinks_to_what_is_there_but_not_below_the_ack_quorum() {
    let bookies = Bookies::fixed(vec![bookie(1, "", false), bookie(2, "", false)]);
    let rng = SeededRng::new(1);
    let (chosen, members) = bookies.ensemble(quorum(3, 3, 2), 0, true, &rng).unwrap();
    assert_eq!((chosen, members.len()), (quorum(2, 2, 2), 2));
    assert!(bookies.ensemble(quorum(3, 3, 3), 0, true, &rng).is_err());
    assert!(bookies.ensemble(quorum(3, 3, 2), 0, false, &rng).is_err());
}

#[test]
fn an_enforced_minimum_of_zones_says_what_is_missing() {
    let bookies = Bookies::fixed(vec![
        bookie(1, "a", false),
        bookie(2, "a", false),
        bookie(3, "a", false),
        bookie(4, "b", true),
    ]);
    let rng = SeededRng::new(1);
    assert!(bookies.ensemble(quorum(3, 3, 2), 0, false, &rng).is_ok());
    let error = bookies
        .ensemble(quorum(3, 3, 2), 2, false, &rng)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "every write set must span 2 zones, writable bookies are in: a (3)"
    );
}

#[test]
fn free_space_attracts() {
    let mut infos: Vec<BookieInfo> = (1..=4).map(|n| bookie(n, "", false)).collect();
    for info in &mut infos {
        info.capacity_bytes = 1 << 40;
        info.free_bytes = 1 << 30;
    }
    infos[0].free_bytes = 100 << 30;
    let bookies = Bookies::fixed(infos);
    let rng = SeededRng::new(7);
    let first = (0..1_000)
        .filter(|_| bookies.choose(1, &[], &[], &rng).unwrap() == [BookieId([1; 16])])
        .count();
    assert!(first > 900, "97 % are expected, {first} of 1000 were drawn");
}

#[test]
fn a_quarantined_bookie_is_passed_over_until_it_is_needed_or_time_is_up() {
    let clock = ManualClock::new(0);
    let infos = (1..=3).map(|n| bookie(n, "", false)).collect();
    let bookies = Bookies::with_clock(infos, clock.clone());
    let rng = SeededRng::new(3);
    let suspect = BookieId([2; 16]);
    bookies.quarantine(suspect, Duration::from_secs(60));
    for _ in 0..50 {
        let (_, members) = bookies.ensemble(quorum(2, 2, 2), 0, false, &rng).unwrap();
        assert!(!members.contains(&suspect));
        assert!(
            !bookies
                .choose(2, &[], &[], &rng)
                .unwrap()
                .contains(&suspect)
        );
    }
    let (_, members) = bookies.ensemble(quorum(3, 3, 2), 0, false, &rng).unwrap();
    assert!(members.contains(&suspect), "better than none");
    clock.advance(Duration::from_secs(61));
    assert!(!bookies.is_quarantined(suspect));
}

/// A bookie over its capacity gets nothing more while others have room, by chance neither.
#[test]
fn a_bookie_without_room_is_passed_over_until_it_is_needed() {
    let mut infos: Vec<BookieInfo> = (1..=3).map(|n| bookie(n, "", false)).collect();
    for info in &mut infos {
        info.capacity_bytes = 1 << 40;
        info.free_bytes = 2 << 20;
    }
    infos[1].free_bytes = 0;
    let bookies = Bookies::fixed(infos);
    let over = BookieId([2; 16]);
    let rng = SeededRng::new(3);
    for _ in 0..200 {
        let (_, members) = bookies.ensemble(quorum(2, 2, 2), 0, false, &rng).unwrap();
        assert!(!members.contains(&over));
        assert!(!bookies.choose(2, &[], &[], &rng).unwrap().contains(&over));
    }
    let (_, members) = bookies.ensemble(quorum(3, 3, 2), 0, false, &rng).unwrap();
    assert!(members.contains(&over), "better than none");
}

#[test]
fn a_zone_that_is_only_in_quarantine_is_used_where_zones_are_enforced() {
    let infos = vec![
        bookie(1, "a", false),
        bookie(2, "a", false),
        bookie(3, "b", false),
    ];
    let bookies = Bookies::fixed(infos);
    bookies.quarantine(BookieId([3; 16]), Duration::from_secs(60));
    let chosen = bookies.ensemble(quorum(2, 2, 1), 2, false, &SeededRng::new(0));
    assert!(chosen.unwrap().1.contains(&BookieId([3; 16])));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Members are distinct, writable and known; unchanged positions stay; a minimum of zones
    /// holds in every write set, and is refused only where a plain count shows why.
    #[test]
    fn choices_keep_the_rules(
        zones in proptest::collection::vec(0_usize..4, 1..12),
        read_only in any::<u16>(),
        quarantined in any::<u16>(),
        shape in prop_oneof![
            Just((3, 3, 2)), Just((5, 3, 2)), Just((4, 2, 2)), Just((2, 2, 1)), Just((1, 1, 1)),
        ],
        zones_min in 0_usize..3,
        failed in any::<u16>(),
        seed in any::<u64>(),
    ) {
        let quorum = quorum(shape.0, shape.1, shape.2);
        let zones_min = zones_min.min(quorum.write());
        let names = ["a", "b", "c", ""];
        let infos: Vec<BookieInfo> = zones
            .iter()
            .enumerate()
            .map(|(i, zone)| bookie(u8::try_from(i).unwrap() + 1, names[*zone], read_only >> i & 1 == 1))
            .collect();
        let rng = SeededRng::new(seed);
        let bookies = Bookies::fixed(infos.clone());
        for (i, info) in infos.iter().enumerate() {
            if quarantined >> i & 1 == 1 {
                bookies.quarantine(info.id, Duration::from_secs(1_000));
            }
        }
        let zone = |id: &BookieId| infos.iter().find(|b| b.id == *id).unwrap().zone.clone();
        let spans = |members: &[BookieId]| {
            (0..quorum.ensemble() as u64).all(|entry| {
                let set = quorum.write_set(entry).map(|p| zone(&members[p]));
                set.collect::<std::collections::BTreeSet<_>>().len() >= zones_min
            })
        };
        let writable: Vec<&BookieInfo> = infos.iter().filter(|b| !b.read_only).collect();
        let check = |members: &[BookieId]| {
            let distinct: std::collections::BTreeSet<_> = members.iter().collect();
            distinct.len() == quorum.ensemble() && spans(members)
        };
        match bookies.ensemble(quorum, zones_min, false, &rng) {
            Ok((_, members)) => {
                prop_assert!(check(&members));
                prop_assert!(members.iter().all(|id| writable.iter().any(|b| b.id == *id)));
                let positions: Vec<usize> =
                    (0..quorum.ensemble()).filter(|p| failed >> p & 1 == 1).collect();
                if let Ok(changed) = bookies.replacements(quorum, zones_min, &members, &positions, &rng) {
                    prop_assert!(check(&changed));
                    for position in 0..quorum.ensemble() {
                        let stays = !positions.contains(&position);
                        prop_assert_eq!(stays, members[position] == changed[position]);
                        prop_assert!(stays || !members.contains(&changed[position]));
                    }
                }
            }
            Err(LedgerError::TooFewBookies { .. }) => {
                prop_assert!(writable.len() < quorum.ensemble());
            }
            Err(LedgerError::TooFewZones { .. }) => {
                // With E = Qw, whole ensembles decide; striping may fail for subtler reasons.
                let all: std::collections::BTreeSet<_> = writable.iter().map(|b| &b.zone).collect();
                let plain = quorum.ensemble() != quorum.write();
                prop_assert!(plain || all.len() < zones_min, "{:?}", all);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
