//! Every schedule of the offload of a ledger keeps it readable and its objects written down (I10,
//! H22, H23), and every defect that is put back breaks that.

use aquifer_simulation::defect::OffloadDefect;
use aquifer_simulation::offload::Offloads;

#[test]
fn every_schedule_of_an_offload_keeps_the_ledger_and_its_objects() {
    match Offloads::default().visit_all() {
        Ok(states) => println!("offload: {states} states"),
        Err(violation) => panic!("{violation}"),
    }
}

#[test]
fn every_defect_of_offload_is_found_when_it_is_put_back() {
    for defect in OffloadDefect::ALL {
        let with = Offloads {
            defect: Some(defect),
        };
        match with.visit_all() {
            Ok(states) => panic!("{defect:?} is not found in {states} states"),
            Err(violation) => println!("{defect:?}: {violation}"),
        }
    }
}
