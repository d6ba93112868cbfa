//! Pulls in a process of its own: for what a process reads once, like its environment.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::node::Node;

/// Tells the other process what to pull.
const REFERENCE: &str = "LONGSHORE_TEST_REFERENCE";
/// Tells it where the configuration of the image's registry is, a folder.
const FOLDER: &str = "LONGSHORE_TEST_FOLDER";
/// Stands before the result in what the other process prints.
const RESULT: &str = "the result of the pull: ";
const NONE: &str = "none";

/// Pulls `reference` with the files of `folder` for its registry, in a process with
/// `environment`, which has no proxies but those. Gives the id, or the error's text;
/// none where nothing can be pulled.
pub(crate) async fn pull(
    reference: &str,
    folder: Option<&Path>,
    environment: &[(&str, &str)],
) -> Option<Result<String, String>> {
    let mut child = Command::new(std::env::current_exe().expect("this program"));
    child.args(["--exact", "alone::in_a_process_of_its_own", "--ignored", "--nocapture"]);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        child.env_remove(name).env_remove(name.to_lowercase());
    }
    child.env(REFERENCE, reference).envs(environment.iter().copied());
    match folder {
        Some(folder) => child.env(FOLDER, folder),
        None => child.env_remove(FOLDER),
    };
    let output = tokio::task::spawn_blocking(move || child.output()).await.expect("no panic");
    let output = output.expect("starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let result = text.split_once(RESULT).unwrap_or_else(|| panic!("no result: {text}\n{errors}")).1;
    let (kind, value) = result.lines().next().unwrap_or_default().split_once(' ').unwrap_or((NONE, ""));
    match kind {
        "pulled" => Some(Ok(value.to_owned())),
        "failed" => Some(Err(value.to_owned())),
        _ => None,
    }
}

#[tokio::test]
#[ignore = "run by tests that need a process of their own"]
async fn in_a_process_of_its_own() {
    let Ok(reference) = std::env::var(REFERENCE) else { return };
    let Some(node) = Node::start().await else {
        println!("{RESULT}{NONE}");
        return;
    };
    if let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) {
        let domain = reference.split('/').next().unwrap_or_default();
        for file in std::fs::read_dir(folder).expect("folder").flatten() {
            std::fs::copy(file.path(), node.registry_folder(domain).join(file.file_name())).expect("copied");
        }
    }
    match node.pull(&reference).await {
        Ok(id) => println!("{RESULT}pulled {id}"),
        Err(error) => println!("{RESULT}failed {}", error.message().replace('\n', " ")),
    }
}
