//! Pod networks: which configuration is chosen and why, and whether its plugins can work.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::join_all;

use super::finding::{Finding, some_of};
use super::{LIMIT, Mode};
use crate::config::{Config, Loopback};
use crate::error::Result;
use crate::flow;
use crate::network::survey::{self, Chosen, Folder, Program};

const SUBJECT: &str = "cni";
/// The most plugins that are asked.
const PLUGINS_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Facts {
    /// The node's folder, then those of handlers with their own, with the handler's name.
    folders: Vec<(String, Folder)>,
    programs: Vec<Program>,
    bin_dirs: Vec<PathBuf>,
    has_template: bool,
}

impl Facts {
    /// Whether a chosen network has a bridge.
    pub(super) fn has_bridge(&self) -> bool {
        self.chosen().any(|network| network.plugins.iter().any(|plugin| plugin == "bridge"))
    }

    fn chosen(&self) -> impl Iterator<Item = &Chosen> {
        self.folders.iter().flat_map(|(_, folder)| folder.chosen.as_deref().unwrap_or_default())
    }
}

pub(super) async fn gather(config: Arc<Config>) -> Result<Facts> {
    let cni = config.file.cni.clone();
    let wanted = config.clone();
    let folders = flow::blocking(move || {
        let cni = &wanted.file.cni;
        let mut folders = vec![(String::new(), survey::folder(&cni.conf_dir, cni.max_conf_num))];
        for handler in &wanted.handlers {
            if let Some((path, max)) = &handler.cni {
                let max = if *max == 0 { cni.max_conf_num } else { *max };
                folders.push((handler.name.clone(), survey::folder(path, max)));
            }
        }
        Ok(folders)
    })
    .await?;
    let facts = Facts {
        folders,
        programs: Vec::new(),
        has_template: !cni.conf_template.is_empty(),
        bin_dirs: cni.bin_dirs,
    };
    let mut plugins: BTreeSet<&str> = BTreeSet::new();
    for network in facts.chosen() {
        plugins.extend(network.plugins.iter().chain(&network.ipam).map(String::as_str));
    }
    if config.loopback == Loopback::Plugin {
        plugins.insert("loopback");
    }
    let asked = plugins.into_iter().take(PLUGINS_MAX);
    let asked = asked.map(|plugin| survey::program(&facts.bin_dirs, plugin, LIMIT));
    let programs = join_all(asked).await;
    Ok(Facts { programs, ..facts })
}

pub(super) fn compare(facts: &Facts, mode: Mode) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (handler, folder) in &facts.folders {
        findings.push(configuration(handler, folder, facts.has_template, mode));
    }
    for program in &facts.programs {
        findings.push(plugin(program, facts));
    }
    findings
}

fn configuration(handler: &str, folder: &Folder, has_template: bool, mode: Mode) -> Finding {
    let place = match handler {
        "" => folder.path.display().to_string(),
        name => format!("{} (handler {name})", folder.path.display()),
    };
    match &folder.chosen {
        Ok(chosen) => {
            let networks: Vec<String> = chosen.iter().map(described).collect();
            let others = folder.candidates.len().saturating_sub(chosen.len());
            let why = match others {
                0 => "the only one there".to_owned(),
                _ => format!("first by name of {} files, {} wanted", folder.candidates.len(), folder.max),
            };
            let why = if chosen.len() > 1 && others == 0 { "all that are there".to_owned() } else { why };
            Finding::ok(SUBJECT, format!("{place}: {} ({why})", networks.join("; ")))
        }
        Err(wrong) if !folder.candidates.is_empty() => Finding::problem(
            SUBJECT,
            wrong.clone(),
            "mend the file, or take it away; the server sees that at once",
        ),
        Err(wrong) if has_template && handler.is_empty() => Finding::note(
            SUBJECT,
            wrong.clone(),
            "cni.conf_template becomes one as soon as the kubelet tells the pods' addresses",
        ),
        Err(wrong) => {
            let advice = "no pod gets a network without: install the cluster's network add-on; the server sees \
                          its file at once";
            match mode {
                Mode::Check => Finding::note(SUBJECT, wrong.clone(), advice),
                Mode::Doctor => Finding::problem(SUBJECT, wrong.clone(), advice),
            }
        }
    }
}

fn described(network: &Chosen) -> String {
    let file = network.file.file_name().unwrap_or_default().to_string_lossy();
    format!("{file}: network {}, plugins {}", network.name, network.plugins.join(", "))
}

fn plugin(program: &Program, facts: &Facts) -> Finding {
    let name = &program.plugin;
    let path = match &program.path {
        Ok(path) => path,
        Err(_) => {
            let folders: Vec<String> =
                facts.bin_dirs.iter().map(|folder| folder.display().to_string()).collect();
            return Finding::problem(
                SUBJECT,
                format!("plugin {name} is in none of {}", some_of(&folders)),
                "install it there (the package containernetworking-plugins has the usual ones), or add its \
                 folder to cni.bin_dirs",
            );
        }
    };
    if !program.is_executable {
        let what = format!("plugin {name}: {} cannot be executed", path.display());
        return Finding::problem(SUBJECT, what, &format!("chmod +x {}", path.display()));
    }
    let versions = match &program.versions {
        Ok(versions) => versions,
        Err(why) => {
            let what = format!("plugin {name} does not say which versions it knows: {why}");
            return Finding::note(
                SUBJECT,
                what,
                "it may work all the same; its package may be old or damaged",
            );
        }
    };
    let knows = |wanted: &str| versions.iter().any(|known| survey::is_same_version(known, wanted));
    let users = facts.chosen().filter(|network| network.plugins.iter().any(|plugin| plugin == name));
    let unknown = users.map(|network| &network.version).find(|version| !knows(version));
    let newest = versions.last().map(String::as_str).unwrap_or("none");
    match unknown {
        Some(version) => Finding::problem(
            SUBJECT,
            format!("plugin {name} does not know version {version:?} of the network's configuration"),
            &format!("install a newer plugin, or write an older cniVersion (it knows up to {newest})"),
        ),
        None => Finding::ok(SUBJECT, format!("plugin {name}: {}, versions up to {newest}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn facts(chosen: Result<Vec<Chosen>, String>, programs: Vec<Program>) -> Facts {
        let candidates = vec!["/c/10-a.conflist".into(), "/c/20-b.conflist".into()];
        let folder = Folder { path: "/c".into(), max: 1, candidates, chosen };
        Facts {
            folders: vec![(String::new(), folder)],
            programs,
            bin_dirs: vec!["/b".into()],
            has_template: false,
        }
    }

    fn network() -> Chosen {
        Chosen {
            file: "/c/10-a.conflist".into(),
            name: "a".into(),
            version: "1.0.0".into(),
            plugins: vec!["bridge".into()],
            ipam: vec!["host-local".into()],
        }
    }

    fn program(versions: &[&str]) -> Program {
        Program {
            plugin: "bridge".into(),
            path: Ok("/b/bridge".into()),
            is_executable: true,
            versions: Ok(versions.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn the_choice_is_told_with_its_reason() {
        let found = compare(&facts(Ok(vec![network()]), vec![program(&["0.4.0", "1.0.0"])]), Mode::Doctor);
        assert!(found.iter().all(|line| line.verdict == Verdict::Ok), "{found:?}");
        let what = &found[0].what;
        assert!(what.contains("10-a.conflist") && what.contains("first by name of 2 files"), "{what}");
    }

    #[test]
    fn a_plugin_that_is_missing_not_executable_or_too_old_is_a_problem() {
        let missing = Program { path: Err("none".into()), is_executable: false, ..program(&[]) };
        let plain = Program { is_executable: false, ..program(&[]) };
        for (program, part) in [
            (missing, "in none of /b"),
            (plain, "cannot be executed"),
            (program(&["0.4.0"]), "does not know version \"1.0.0\""),
        ] {
            let found = compare(&facts(Ok(vec![network()]), vec![program]), Mode::Check);
            assert_eq!(found[1].verdict, Verdict::Problem);
            assert!(found[1].what.contains(part), "{found:?}");
        }
        let silent = Program { versions: Err("it hangs".into()), ..program(&[]) };
        let found = compare(&facts(Ok(vec![network()]), vec![silent]), Mode::Check);
        assert_eq!(found[1].verdict, Verdict::Note);
    }

    #[test]
    fn no_configuration_is_for_later_before_the_first_start() {
        let mut none = facts(Err("no network configuration in \"/c\"".into()), Vec::new());
        assert_eq!(compare(&none, Mode::Check)[0].verdict, Verdict::Problem, "a broken one");
        none.folders[0].1.candidates.clear();
        assert_eq!(compare(&none, Mode::Check)[0].verdict, Verdict::Note);
        assert_eq!(compare(&none, Mode::Doctor)[0].verdict, Verdict::Problem);
        none.has_template = true;
        assert_eq!(compare(&none, Mode::Doctor)[0].verdict, Verdict::Note);
    }
}
