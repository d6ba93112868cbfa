//! CNI on a bridge of the node's own.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::place::Place;

/// A bridge with addresses from a /24 of the node's own: what a node gets that asks for
/// nothing else. A test may take it and change it; see [`Place::fill`] for the braces.
pub(crate) fn bridge() -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "{name}",
        "plugins": [{
            "type": "bridge",
            "bridge": "{bridge}",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": "{folder}/cni/ipam",
                "ranges": [[{ "subnet": "{subnet}" }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    })
}

/// What nodes mostly have: [`bridge`] with masquerading, and host ports.
pub(crate) fn usual() -> Value {
    let mut list = bridge();
    list["plugins"][0]["ipMasq"] = json!(true);
    let plugins = list["plugins"].as_array_mut().expect("a list");
    plugins.push(json!({ "type": "portmap", "capabilities": { "portMappings": true } }));
    list
}

/// The folder with the configuration.
pub(crate) fn conf_dir(place: &Place) -> PathBuf {
    place.path("cni/conf")
}

/// The folder with the plugins.
pub(crate) fn bin_dir(place: &Place) -> PathBuf {
    place.path("cni/bin")
}

/// Makes the folders: the machine's plugins as links, the test's own as files.
pub(crate) fn prepare(place: &Place, list: Option<&Value>, plugins: &[(String, String)]) {
    let (conf, bin) = (conf_dir(place), bin_dir(place));
    for folder in [&conf, &bin, &place.path("cni/cache")] {
        std::fs::create_dir_all(folder).expect("a folder");
    }
    let installed = std::env::var("LONGSHORE_TEST_CNI").unwrap_or_else(|_| "/usr/lib/cni".into());
    let entries = std::fs::read_dir(&installed).unwrap_or_else(|error| panic!("{installed}: {error}"));
    for entry in entries.flatten() {
        if !plugins.iter().any(|(name, _)| *name == entry.file_name().to_string_lossy()) {
            symlink(entry.path(), bin.join(entry.file_name())).expect("a link");
        }
    }
    for (name, script) in plugins {
        let path = bin.join(name);
        std::fs::write(&path, place.fill(script)).expect("a plugin");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("permissions");
    }
    if let Some(list) = list {
        write_conf(&conf.join("10-test.conflist"), &place.fill(&list.to_string()));
    }
}

/// Writes a configuration as installers do: complete at once, by a rename.
pub(crate) fn write_conf(path: &Path, text: &str) {
    let hidden = path.with_extension("new");
    std::fs::write(&hidden, text).expect("a configuration");
    std::fs::rename(&hidden, path).expect("a configuration");
}
