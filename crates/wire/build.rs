//! Compiles the service with protox, so that no `protoc` is needed. Messages that other crates generate are taken from them.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "../../proto";
    println!("cargo:rerun-if-changed={root}");
    let descriptors = protox::compile(["unisono/v1/service.proto"], [root])?;
    let mut builder = tonic_prost_build::configure();
    for file in &descriptors.file {
        let owner = match file.name() {
            "unisono/v1/protocol.proto" => "::unisono_protocol::proto",
            "unisono/v1/release.proto" => "::unisono_release::proto",
            _ => continue,
        };
        let messages = file.message_type.iter().map(|message| message.name());
        for name in messages.chain(file.enum_type.iter().map(|item| item.name())) {
            builder = builder.extern_path(format!(".unisono.v1.{name}"), format!("{owner}::{name}"));
        }
    }
    builder.compile_fds(descriptors)?;
    Ok(())
}
