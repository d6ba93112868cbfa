//! Compiles what the crate embeds.
//!
//! - `proto/` with protox (pure Rust, no system `protoc`). Every CRI message gets
//!   serde attributes for the Go JSON form in which containerd's built-in plugin
//!   stores it (behaviour COX-07): the field's proto name as key, zero values left
//!   out, enums and 64-bit integers as numbers.
//! - the pause program (`src/image/pause/pause.rs`), a static binary of a few KB.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=build.rs");
    cri(&out);
    containerd();
    pause(&out);
}

/// The CRI: server stubs, and client stubs for the tests and for `longshore version`.
fn cri(out: &Path) {
    let set = compile("proto/cri", &["v1/runtime.proto"], out.join("cri.fds"));
    let mut config = tonic_prost_build::Config::new();
    config.btree_map(["."]);
    config.type_attribute(".runtime.v1", "#[derive(serde::Serialize, serde::Deserialize)]");
    for file in &set.file {
        for message in &file.message_type {
            go_json(&mut config, message);
        }
    }
    // The derived Debug would print what `debug_redact` marks.
    config.skip_debug([
        "runtime.v1.AuthConfig",
        "runtime.v1.KeyValue",
        "runtime.v1.ExecSyncResponse",
        "runtime.v1.ExecResponse",
        "runtime.v1.AttachResponse",
        "runtime.v1.PortForwardResponse",
    ]);
    tonic_prost_build::configure().compile_fds_with_config(set, config).expect("code for the CRI");
}

/// What `containerd-client` lacks of containerd's API: shim options and metrics.
fn containerd() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let set = compile(
        "proto/containerd",
        &["runc_options.proto", "runtime_options.proto", "cgroup_v1.proto", "cgroup_v2.proto"],
        out.join("containerd.fds"),
    );
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        .build_server(false)
        .build_client(false)
        .compile_fds_with_config(set, config)
        .expect("code for containerd's messages");
}

fn compile(root: &str, files: &[&str], descriptor_file: PathBuf) -> FileDescriptorSet {
    let mut compiler = protox::Compiler::new([root]).expect("proto folder");
    compiler.include_source_info(true).include_imports(true);
    compiler.open_files(files).expect("proto files compile");
    fs::write(descriptor_file, compiler.encode_file_descriptor_set()).expect("descriptor set");
    compiler.file_descriptor_set()
}

fn go_json(config: &mut tonic_prost_build::Config, message: &DescriptorProto) {
    let name = format!("runtime.v1.{}", message.name());
    config.message_attribute(&name, "#[serde(default)]");
    for field in &message.field {
        let path = format!("{name}.{}", field.name());
        let text = if field.r#type() == Type::Bytes { ", with = \"crate::proto::go_text\"" } else { "" };
        config.field_attribute(
            path,
            format!(
                "#[serde(rename = \"{}\", skip_serializing_if = \"crate::proto::is_zero\"{text})]",
                field.name()
            ),
        );
    }
}

/// Builds the pause program with the compiler that builds the crate: no libc, no
/// start files, so that the image is a few KB and runs on any kernel.
fn pause(out: &Path) {
    let source = "src/image/pause/pause.rs";
    println!("cargo:rerun-if-changed={source}");
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let rustc = env::var_os("RUSTC").expect("cargo sets RUSTC");
    let mut command = Command::new(rustc);
    command
        .args(["--edition=2024", "--crate-type=bin", "--crate-name=pause"])
        .args(["-C", "opt-level=s", "-C", "panic=abort", "-C", "relocation-model=static"])
        .args(["-C", "target-feature=+crt-static", "-C", "strip=symbols"])
        .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib", "-C", "link-arg=-static"])
        .args(["-C", "link-arg=-Wl,--build-id=none", "-C", "link-arg=-Wl,-z,norelro"])
        .args(["-C", "link-arg=-Wl,-z,noseparate-code", "-C", "link-arg=-Wl,--gc-sections"])
        .arg(format!("--target={target}"))
        .arg("-o")
        .arg(out.join("pause"))
        .arg(source);
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut flag = std::ffi::OsString::from("linker=");
        flag.push(linker);
        command.arg("-C").arg(flag);
    }
    let status = command.status().expect("rustc starts");
    assert!(status.success(), "the pause program does not compile");
}
