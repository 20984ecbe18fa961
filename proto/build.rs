//! Compiles the .proto files without `protoc`: protox parses them, tonic-prost-build generates.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("proto");
    let names = ["error", "broker", "admin", "bookie", "metadata"];
    let files: Vec<_> = names
        .iter()
        .map(|n| root.join(format!("aquifer/v1/{n}.proto")))
        .collect();
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(&files, [root])?;
    // Payloads stay slices of the frame they arrived in.
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::codec::RoomyCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
