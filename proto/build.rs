//! Compiles the .proto files without `protoc`: protox parses them, tonic-prost-build generates.
//! Beside the messages goes what one costs to decode (src/shape.rs).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

#[allow(
    clippy::disallowed_methods,
    reason = "cargo tells a build script where to write in its environment"
)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("proto");
    let names = [
        "error", "broker", "pull", "admin", "operator", "security", "bookie", "object", "metadata",
        "backup",
    ];
    let files: Vec<_> = names
        .iter()
        .map(|n| root.join(format!("aquifer/v1/{n}.proto")))
        .collect();
    println!("cargo:rerun-if-changed=proto");
    let out = std::env::var("OUT_DIR")?;
    let out = Path::new(&out);
    let mut compiler = protox::Compiler::new([root])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(&files)?;
    // The types below lose options; the compiler's own bytes have them.
    let bytes = compiler.encode_file_descriptor_set();
    std::fs::write(out.join("descriptors.bin"), bytes)?;
    let mut descriptors = compiler.file_descriptor_set();
    // Options need no code: they are read from those bytes.
    let generated = names.map(|name| format!("aquifer/v1/{name}.proto"));
    descriptors
        .file
        .retain(|file| generated.iter().any(|name| name == file.name()));
    let mut requests = BTreeSet::new();
    let mut shapes = BTreeMap::new();
    let mut methods = BTreeSet::new();
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                requests.insert(short(method.input_type()));
                methods.insert(format!("{}/{}", service.name(), method.name()));
            }
        }
        for message in &file.message_type {
            let fields = message.field.iter().filter_map(|field| {
                let repeated = field.label.is_some_and(|label| label == REPEATED);
                let kind = field.r#type.unwrap_or_default();
                shape_of_field(field.number(), kind, short(field.type_name()), repeated)
            });
            shapes.insert(message.name().to_owned(), fields.collect::<Vec<_>>());
        }
    }
    let code = shapes_code(&shapes, &requests)?;
    std::fs::write(out.join("shapes.rs"), code)?;
    let list = format!("{methods:?}").replace('{', "&[").replace('}', "]");
    std::fs::write(out.join("methods.rs"), list)?;
    // Payloads stay slices of the frame they arrived in.
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::codec::RoomyCodec")
        .compile_fds(descriptors)?;
    Ok(())
}

// descriptor.proto, FieldDescriptorProto.
const REPEATED: i32 = 3;
const TYPE_STRING: i32 = 9;
const TYPE_MESSAGE: i32 = 11;
const TYPE_BYTES: i32 = 12;

fn short(name: &str) -> String {
    name.rsplit('.').next().unwrap_or(name).to_owned()
}

/// What counts of a field: its elements if it repeats, and what is inside of a message.
fn shape_of_field(number: i32, kind: i32, message: String, repeated: bool) -> Option<String> {
    let element = match kind {
        TYPE_MESSAGE => format!("size_of::<v1::{message}>()"),
        // The text lies in an allocation of its own.
        TYPE_STRING => "2 * size_of::<String>()".to_owned(),
        TYPE_BYTES => "size_of::<bytes::Bytes>()".to_owned(),
        // Numbers take eight bytes at most.
        _ => "size_of::<u64>()".to_owned(),
    };
    let inside = match kind {
        TYPE_MESSAGE => format!("Some(<v1::{message} as Shaped>::SHAPE)"),
        _ => "None".to_owned(),
    };
    if !repeated && kind != TYPE_MESSAGE {
        return None;
    }
    let element = if repeated { element } else { "0".to_owned() };
    let packed = repeated && ![TYPE_MESSAGE, TYPE_STRING, TYPE_BYTES].contains(&kind);
    Some(format!(
        "Field {{ number: {number}, element_bytes: {element}, packed: {packed}, inside: {inside} }}"
    ))
}

fn shapes_code(
    shapes: &BTreeMap<String, Vec<String>>,
    requests: &BTreeSet<String>,
) -> Result<String, std::fmt::Error> {
    let mut code = String::new();
    for (message, fields) in shapes {
        let is_request = requests.contains(message);
        let max = match is_request {
            true => "REQUEST_ELEMENT_BYTES_MAX",
            false => "RESPONSE_ELEMENT_BYTES_MAX",
        };
        writeln!(code, "impl Shaped for v1::{message} {{")?;
        writeln!(code, "    const ELEMENT_BYTES_MAX: usize = {max};")?;
        writeln!(code, "    const IS_REQUEST: bool = {is_request};")?;
        writeln!(
            code,
            "    const SHAPE: &'static Shape = &Shape {{ fields: &["
        )?;
        for field in fields {
            writeln!(code, "        {field},")?;
        }
        writeln!(code, "    ] }};\n}}")?;
    }
    Ok(code)
}
