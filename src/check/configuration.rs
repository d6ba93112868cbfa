//! The configuration: whether it can be used, and where it came from.

use std::path::{Path, PathBuf};

use super::Request;
use super::finding::Finding;
use crate::config::{Config, INSTALLED, ImportedRegistries};

const SUBJECT: &str = "configuration";

pub(super) struct Facts {
    source: Source,
    pub(super) outcome: Result<Config, String>,
    /// containerd's own configuration, of which the registries are read, and what is wrong.
    imported: Result<(), String>,
    /// Base specs of handlers that cannot be used.
    bases: Vec<String>,
}

#[derive(Clone, Debug)]
enum Source {
    Given(PathBuf),
    Installed,
    Defaults,
}

pub(super) fn gather(request: &Request) -> Facts {
    let source = match &request.config {
        Some(path) => Source::Given(path.clone()),
        None if Path::new(INSTALLED).exists() => Source::Installed,
        None => Source::Defaults,
    };
    let path = match &source {
        Source::Given(path) => Some(path.as_path()),
        Source::Installed => Some(Path::new(INSTALLED)),
        Source::Defaults => None,
    };
    let outcome = Config::load(path, &request.overrides).map_err(|error| error.to_string());
    let imported = outcome.as_ref().map_or(Ok(()), |config| {
        let path = &config.file.image.containerd_config;
        ImportedRegistries::read(path).map(drop).map_err(|wrong| format!("{}: {wrong}", path.display()))
    });
    let handlers = outcome.as_ref().map(|config| config.handlers.as_slice()).unwrap_or_default();
    let bases = handlers.iter().filter_map(|handler| crate::spec::base(handler).err());
    let bases = bases.map(|error| error.message().to_owned()).collect();
    Facts { source, outcome, imported, bases }
}

pub(super) fn compare(facts: &Facts) -> Vec<Finding> {
    let whence = match &facts.source {
        Source::Given(path) => format!("{}, as given", path.display()),
        Source::Installed => format!("{INSTALLED}, which the service unit names"),
        Source::Defaults => format!("the defaults: no file is given, and there is no {INSTALLED}"),
    };
    let config = match &facts.outcome {
        Ok(config) => config,
        Err(wrong) => {
            let advice = "mend the file; `longshore config default` prints one with all keys and comments";
            return vec![Finding::problem(SUBJECT, format!("cannot be used: {wrong}"), advice)];
        }
    };
    let mut findings = vec![Finding::ok(SUBJECT, format!("valid: {whence}"))];
    let file = &config.file;
    findings
        .push(Finding::ok(SUBJECT, format!("root {}, state {}", file.root.display(), file.state.display())));
    for wrong in &facts.bases {
        findings.push(Finding::problem(SUBJECT, wrong.clone(), "the server does not start with it"));
    }
    if let Err(wrong) = &facts.imported {
        let advice = "containerd does not start with it either; image.containerd_config names the file";
        findings.push(Finding::problem(SUBJECT, format!("registries of containerd's own: {wrong}"), advice));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::config::Overrides;

    fn of(text: &str) -> Vec<Finding> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("l.toml");
        std::fs::write(&path, text).expect("a file");
        let request = Request {
            mode: super::super::Mode::Check,
            config: Some(path),
            overrides: Overrides::default(),
            kubelet_config: None,
        };
        compare(&gather(&request))
    }

    #[test]
    fn a_wrong_file_is_named_with_line_and_key() {
        let found = of("version = 1\n[log]\nlevel = \"loud\"\n");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].verdict, Verdict::Problem);
        assert!(found[0].what.contains(":3: log.level"), "{found:?}");
        assert!(of("[image]\ncontainerd_config = \"\"\n").iter().all(|line| line.verdict == Verdict::Ok));
    }

    #[test]
    fn a_broken_file_of_containerd_is_told_without_what_is_in_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.toml");
        std::fs::write(
            &path,
            "[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.x.auth]\npassword = [\"hunter2\"]\n",
        )
        .expect("a file");
        let found = of(&format!("[image]\ncontainerd_config = {path:?}\n"));
        let wrong = found.iter().find(|line| line.verdict == Verdict::Problem).expect("a problem");
        assert!(wrong.what.contains("config.toml") && !format!("{found:?}").contains("hunter2"), "{wrong:?}");
    }
}
