//! The model check: schedules of small settings keep the invariants, and every known defect that
//! is put back breaks one.

use aquifer_simulation::bookie::Crash;
use aquifer_simulation::defect::Defect;
use aquifer_simulation::model::{Schedules, Setting};

#[test]
fn every_schedule_of_small_settings_keeps_the_invariants() {
    for (name, setting) in Setting::small() {
        match setting.visit_all() {
            Ok(seen) => println!("{name}: {} states, depth {}", seen.states, seen.depth),
            Err(violation) => panic!("{name}: {violation}"),
        }
    }
}

#[test]
fn three_entries_a_change_and_a_fault_keep_the_invariants() {
    for (name, setting) in Setting::medium() {
        match setting.search(Schedules::Reduced) {
            Ok(seen) => println!("{name}: {} states, depth {}", seen.states, seen.depth),
            Err(violation) => panic!("{name}: {violation}"),
        }
    }
}

/// A reduction that hid something would hide an end of the ledger as well, or a defect.
#[test]
fn reduced_schedules_end_in_all_the_ways_in_which_all_schedules_do() {
    let mut settings = Setting::small();
    let spare = with_a_spare_bookie();
    let crash = Setting {
        crashes: 1,
        kinds: vec![Crash::Power, Crash::Wipe],
        ..spare.clone()
    };
    let twice = Setting {
        duplicates: 1,
        losses: 1,
        ..spare.clone()
    };
    let rivals = Setting {
        recoverers: 2,
        changes: 0,
        bookies: 2,
        ..spare
    };
    let held_back = Setting {
        kept_bytes_max: 1,
        crashes: 1,
        losses: 1,
        ..Setting::quiet(2, 2, 1, 2)
    };
    let damage = Setting {
        rots: 1,
        losses: 1,
        ..Setting::quiet(2, 2, 1, 2)
    };
    settings.extend([
        ("crash", crash),
        ("twice", twice),
        ("rivals", rivals),
        ("held back", held_back),
        ("damage", damage),
    ]);
    for (name, setting) in settings {
        ends_are_the_same(name, &setting);
    }
}

/// All schedules of it are too many for every test run; docs/specs/ledger-protocol.md has the
/// command.
#[test]
#[ignore = "takes many minutes"]
fn reduced_schedules_of_rivals_with_a_change_end_in_all_ways() {
    let rivals = Setting {
        recoverers: 2,
        ..with_a_spare_bookie()
    };
    ends_are_the_same("rivals, a change", &rivals);
}

/// Two copies, and a third bookie that takes the place of one.
fn with_a_spare_bookie() -> Setting {
    Setting {
        bookies: 3,
        changes: 1,
        ..Setting::quiet(2, 2, 2, 1)
    }
}

fn ends_are_the_same(name: &str, setting: &Setting) {
    let visit = |schedules| setting.search(schedules).expect(name);
    let (every, reduced) = (visit(Schedules::Every), visit(Schedules::Reduced));
    println!("{name}: {} states for {}", reduced.states, every.states);
    assert_eq!(reduced.outcomes, every.outcomes, "{name}");
    assert!(reduced.states <= every.states, "{name}");
}

#[test]
fn every_known_defect_is_found_when_it_is_put_back() {
    for defect in Defect::IN_MODEL {
        match Setting::finds(defect).visit_all() {
            Ok(seen) => panic!("{defect:?} is not found in {} states", seen.states),
            Err(violation) => println!("{defect:?}: {violation}"),
        }
        // With two recoverers there are too many states for every test run (`model --large`), and
        // going deep first finds nothing soon.
        if Setting::finds(defect).recoverers == 1 {
            match Setting::finds(defect).search(Schedules::Reduced) {
                Ok(seen) => panic!("{defect:?} is not found in {} reduced", seen.states),
                Err(violation) => println!("{defect:?}, reduced: {violation}"),
            }
        }
        let sound = Setting {
            defect: None,
            recoverers: Setting::finds(defect).recoverers.min(1),
            ..Setting::finds(defect)
        };
        let seen = sound.search(Schedules::Reduced);
        let seen = seen.unwrap_or_else(|violation| panic!("without {defect:?}: {violation}"));
        println!("  without it: {} states, depth {}", seen.states, seen.depth);
    }
}

/// The thread that finds a violation once left the other waiting for work, for ever.
#[test]
fn a_search_that_finds_something_ends_for_both_threads() {
    for _ in 0..2_000 {
        for defect in [Defect::AckBeforeQuorum, Defect::FenceNotDurable] {
            let found = Setting::finds(defect).search(Schedules::Reduced);
            assert!(found.is_err(), "{defect:?} is not found");
        }
    }
}
