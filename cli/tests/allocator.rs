//! The options of the allocator are compiled in through `.cargo/config.toml`, which a build from
//! elsewhere would miss without a word: idle memory would be ten times what it should be.

use std::process::Command;

#[test]
fn the_allocator_has_its_options_and_serves_c_as_well() {
    let output = Command::new(env!("CARGO_BIN_EXE_aquifer"))
        .arg("--version")
        // Only an allocator without a prefix, which RocksDB then uses too, reads this name.
        .env("MALLOC_CONF", "confirm_conf:true")
        .output()
        .expect("the binary of this package was built for this test");
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    for option in ["background_thread:true", "dirty_decay_ms:5000", "narenas:2"] {
        let expected = format!("Set conf value: {option}");
        assert!(said.contains(&expected), "{option} is missing:\n{said}");
    }
    assert!(said.contains("Set conf value: confirm_conf:true"), "{said}");
}
