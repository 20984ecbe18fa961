//! The model check: every schedule of small settings keeps the invariants, and every known defect
//! that is put back breaks one.

use aquifer_simulation::defect::Defect;
use aquifer_simulation::model::Setting;

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
fn every_known_defect_is_found_when_it_is_put_back() {
    for defect in Defect::ALL {
        match Setting::finds(defect).visit_all() {
            Ok(seen) => panic!("{defect:?} is not found in {} states", seen.states),
            Err(violation) => println!("{defect:?}: {violation}"),
        }
        // It is one of the small settings above.
        if defect == Defect::StartFloorMissing {
            continue;
        }
        // With two recoverers there are too many states for every test run (`model --large`).
        let sound = Setting {
            defect: None,
            recoverers: 1,
            ..Setting::finds(defect)
        };
        let seen = sound.visit_all();
        let seen = seen.unwrap_or_else(|violation| panic!("without {defect:?}: {violation}"));
        println!("  without it: {} states, depth {}", seen.states, seen.depth);
    }
}
