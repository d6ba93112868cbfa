//! `longshore config import` of what a real containerd prints and runs with.

use std::path::Path;
use std::process::{Command, Output};

use crate::harness::{Node, Server};

fn longshore(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_longshore")).args(arguments).output().expect("longshore starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Imports `config`, checks the result, and gives it with what was said.
fn import(folder: &Path, config: &str, flags: &[&str]) -> (String, String) {
    let (from, to) = (folder.join("config.toml"), folder.join("longshore.toml"));
    std::fs::write(&from, config).expect("a file");
    let arguments = [&["config", "import", from.to_str().expect("UTF-8")], flags].concat();
    let imported = longshore(&arguments);
    let said = text(&imported.stderr);
    assert!(imported.status.success(), "{said}");
    std::fs::write(&to, &imported.stdout).expect("a file");
    let checked = longshore(&["config", "check", to.to_str().expect("UTF-8")]);
    assert!(checked.status.success(), "{}\n{}", text(&checked.stderr), text(&imported.stdout));
    (text(&imported.stdout), said)
}

/// What this containerd prints as its default has no key that nobody knows, and no value
/// that would be lost; a changed one arrives.
#[tokio::test]
async fn containerds_own_default_is_imported_whole() {
    let node = Node::with(Server::Longshore).start().await;
    let containerd = node.containerd();
    let default = Command::new(containerd.binary()).args(["config", "default"]).output();
    let default = text(&default.expect("containerd starts").stdout);
    let version = containerd.version().to_string();
    let folder = node.place().path("import");
    std::fs::create_dir(&folder).expect("a folder");
    let flags = ["--containerd-version", version.as_str()];
    let (result, said) = import(&folder, &default, &flags);
    assert!(!result.contains("not carried over"), "{result}");
    assert!(said.contains("containerd's own plugin is on") && said.contains("0 keys were"), "{said}");
    let is_one = containerd.version().major < 2;
    assert_eq!(result.contains("unprivileged_ports = false"), is_one, "{result}");

    let changed = default.replace("max_container_log_line_size = 16384", "max_container_log_line_size = 99");
    assert_ne!(changed, default);
    let (result, _) = import(&folder, &changed, &flags);
    assert!(result.contains("log_line_bytes_max = 99\n"), "{result}");

    // Formats that all read: the containerd at the address tells what it is.
    let socket = containerd.socket();
    let old = format!("version = 2\n[grpc]\naddress = {socket:?}\n");
    let (result, said) = import(&folder, &old, &[]);
    assert!(said.contains(&format!("which answers at {}", socket.display())), "{said}");
    assert_eq!(result.contains("unprivileged_ports = false"), is_one, "{result}");
    assert!(result.contains(&format!("address = {socket:?}")), "{result}");
    node.finish().await;
}

/// A handler that is not there stops containerd, too: the result is printed, and refused.
#[test]
fn a_configuration_that_cannot_work_is_said_to_be_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.toml");
    let path = file.to_str().expect("UTF-8");
    let head = "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd]\n";
    std::fs::write(&file, format!("{head}default_runtime_name = \"gone\"\n")).expect("a file");
    let imported = longshore(&["config", "import", path]);
    assert!(!imported.status.success());
    assert!(text(&imported.stdout).contains("default = \"gone\""));
    let said = text(&imported.stderr);
    assert!(said.contains("runtime.default") && said.contains("gone"), "{said}");
    for (arguments, want) in [
        (vec!["config", "import", "/no/such/file"], "/no/such/file"),
        (vec!["config", "import", path, "--containerd-version", "new"], "1.7.24"),
    ] {
        let refused = longshore(&arguments);
        assert!(!refused.status.success() && text(&refused.stderr).contains(want), "{refused:?}");
    }
}
