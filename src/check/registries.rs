//! Registries: whether each hosts.toml can be followed.

use std::path::PathBuf;

use super::finding::{Finding, counted};
use crate::config::Config;
use crate::error::Result;
use crate::image;

const SUBJECT: &str = "registries";

#[derive(Debug)]
pub(super) struct Facts {
    folders: Vec<PathBuf>,
    files: Vec<(PathBuf, Result<usize>)>,
}

pub(super) fn gather(config: &Config) -> Facts {
    let folders = config.registry_dirs();
    let files = image::read_hosts_files(&folders);
    Facts { folders, files }
}

pub(super) fn compare(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut good = 0;
    for (path, outcome) in &facts.files {
        match outcome {
            Ok(_) => good += 1,
            // What is wrong is told by line or key, never by value: headers are secrets.
            Err(error) => findings.push(Finding::problem(
                SUBJECT,
                format!("{}: {}", path.display(), error.message()),
                "pulls from this registry fail until it is mended; no restart is needed",
            )),
        }
    }
    let folders: Vec<String> = facts.folders.iter().map(|folder| folder.display().to_string()).collect();
    let what =
        format!("{} of registries can be followed, in {}", counted(good, "hosts.toml"), folders.join(", "));
    if good > 0 || findings.is_empty() {
        let what = if good == 0 { format!("no hosts.toml in {}", folders.join(", ")) } else { what };
        findings.insert(0, Finding::ok(SUBJECT, what));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn files_that_are_wrong_are_named_and_their_secrets_are_not() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in [
            (
                "good.io",
                "server = \"https://good.io\"\n[host.\"https://m.io\".header]\nx-key = \"hunter2\"\n",
            ),
            ("bad.io", "server = \"https://u:hunter2@bad.io\"\n[host.\"ftp://u:hunter2@m.io\"]\n"),
            ("type.io", "server = 7\nauthorization = \"hunter2\"\n"),
            ("cut.io", "[host.\"https://m.io\".header]\nauthorization = \"hunter2\nx"),
        ] {
            std::fs::create_dir(folder.path().join(name)).expect("a folder");
            std::fs::write(folder.path().join(name).join("hosts.toml"), text).expect("a file");
        }
        std::fs::create_dir(folder.path().join("none.io")).expect("a folder");
        let folders = vec![folder.path().to_owned(), "/no/such/folder".into()];
        let found = compare(&Facts { files: image::read_hosts_files(&folders), folders });
        assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");
        let wrong: Vec<_> = found.iter().filter(|line| line.verdict == Verdict::Problem).collect();
        assert!(wrong.iter().any(|line| line.what.contains("cut.io/hosts.toml: line ")), "{found:?}");
        assert!(wrong.iter().any(|line| line.what.contains("type.io")), "{found:?}");
        assert!(found[0].verdict == Verdict::Ok && found[0].what.starts_with("1 hosts.toml"), "{found:?}");
    }

    #[test]
    fn none_is_fine() {
        let found = compare(&Facts { files: Vec::new(), folders: vec!["/c".into()] });
        assert_eq!((found.len(), found[0].verdict), (1, Verdict::Ok));
    }
}
