//! Compiles the protocol's messages with protox, so that no `protoc` is needed.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "../../proto";
    let file = "unisono/v1/protocol.proto";
    println!("cargo:rerun-if-changed={root}/{file}");
    let descriptors = protox::compile([file], [root])?;
    // Secrets are not printed: `proto.rs` writes these by hand.
    prost_build::Config::new()
        .skip_debug(["unisono.v1.SharePair", "unisono.v1.RevealedShare", "unisono.v1.UnmaskShares"])
        .compile_fds(descriptors)?;
    Ok(())
}
