//! Runtime handlers: their shims, their OCI runtimes, and the pause image.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::LIMIT;
use super::containerd;
use super::finding::Finding;
use crate::config::{Config, Handler};
use crate::container::features;
use crate::error::Result;
use crate::flow;
use crate::image::PAUSE_REFERENCE;
use crate::spec::{Features, gather};

const SUBJECT: &str = "runtimes";
/// Where programs are, where nobody says.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug, Default)]
pub(super) struct Facts {
    handlers: Vec<HandlerFacts>,
    pause: Pause,
    /// Whether the search path is that of containerd's process, which is the one that counts.
    is_path_known: bool,
}

#[derive(Debug)]
struct HandlerFacts {
    name: String,
    is_default: bool,
    shim: String,
    shim_path: Option<PathBuf>,
    /// The OCI runtime, where the shim's options name it: its name, and where it is.
    binary: Option<(String, Option<PathBuf>)>,
    features: Result<Features, String>,
}

#[derive(Debug, Default)]
enum Pause {
    #[default]
    BuiltIn,
    /// The configured reference, and whether containerd has it, if that is known.
    Configured(String, Option<bool>),
}

pub(super) async fn gather(config: &Config, known: Option<&containerd::Facts>) -> Result<Facts> {
    let pid = known.and_then(|known| known.pid);
    let (path, beside, is_path_known) = flow::blocking(move || Ok(search_path(pid))).await?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).chain(beside).collect();
    let host = flow::blocking(|| Ok(gather::host(false))).await?;
    let mut handlers = Vec::new();
    for handler in &config.handlers {
        let binary = handler.binary.as_ref().map(|name| (name.clone(), find(name, &folders)));
        let told = match (&binary, known) {
            // The one that the shim would run, wherever our own search path leads.
            (Some((_, Some(path))), _) => features::run(&path.to_string_lossy(), LIMIT).await,
            (Some((name, None)), _) => Err(crate::error::not_found(format!("there is no {name}"))),
            (None, Some(known)) => features::told(&known.client, handler, LIMIT).await,
            (None, None) => Err(crate::error::unavailable("containerd does not answer")),
        };
        let features = told.and_then(|json| gather::parse_features(&json, &host));
        handlers.push(HandlerFacts {
            name: handler.name.clone(),
            is_default: handler.name == config.default_handler,
            shim_path: shim_path(handler, &folders),
            shim: handler.shim.clone(),
            binary,
            features: features.map_err(|error| error.message().to_owned()),
        });
    }
    let reference = &config.file.sandbox.image;
    let pause = match (reference.is_empty(), known) {
        (true, _) => Pause::BuiltIn,
        (false, None) => Pause::Configured(reference.clone(), None),
        (false, Some(known)) => {
            let is_there = known.client.image(reference).await.is_ok();
            Pause::Configured(reference.clone(), Some(is_there))
        }
    };
    Ok(Facts { handlers, pause, is_path_known })
}

/// The search path of containerd's process, and the folder of its program, where it looks,
/// too. Without a process our own stands for it.
fn search_path(pid: Option<u32>) -> (OsString, Option<PathBuf>, bool) {
    let of = |pid: u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        let mut variables = environment.split(|byte| *byte == 0);
        let path = variables.find_map(|variable| variable.strip_prefix(b"PATH="));
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
        let beside = program.and_then(|program| Some(program.parent()?.to_owned()));
        Some((OsString::from_vec(path.unwrap_or(USUAL_PATH.as_bytes()).to_vec()), beside, true))
    };
    let own = || (std::env::var_os("PATH").unwrap_or_else(|| USUAL_PATH.into()), None, false);
    pid.and_then(of).unwrap_or_else(own)
}

fn shim_path(handler: &Handler, folders: &[PathBuf]) -> Option<PathBuf> {
    match &handler.shim_path {
        Some(path) => find(path, folders),
        None => find(&program_of(&handler.shim)?, folders),
    }
}

/// containerd's rule: `io.containerd.runc.v2` is the program `containerd-shim-runc-v2`.
fn program_of(shim: &str) -> Option<String> {
    if shim.starts_with('/') {
        return Some(shim.to_owned());
    }
    let mut parts = shim.rsplit('.');
    let (version, name) = (parts.next()?, parts.next()?);
    Some(format!("containerd-shim-{name}-{version}"))
}

fn find(program: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let is_executable = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return Some(Path::new(program).to_owned()).filter(is_executable);
    }
    folders.iter().map(|folder| folder.join(program)).find(is_executable)
}

pub(super) fn compare(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let whose = if facts.is_path_known { "containerd's search path" } else { "the search path" };
    for handler in &facts.handlers {
        findings.extend(of_handler(handler, whose));
    }
    findings.push(match &facts.pause {
        Pause::BuiltIn => {
            Finding::ok(SUBJECT, format!("pause image: built in ({PAUSE_REFERENCE}), imported when needed"))
        }
        Pause::Configured(reference, Some(true)) => {
            Finding::ok(SUBJECT, format!("pause image: {reference}, which is there"))
        }
        Pause::Configured(reference, Some(false)) => Finding::note(
            SUBJECT,
            format!("pause image: {reference}, which is not there"),
            "it is pulled for the first pod; with sandbox.image = \"\" the built-in one needs no registry",
        ),
        Pause::Configured(reference, None) => {
            Finding::ok(SUBJECT, format!("pause image: {reference}, as configured"))
        }
    });
    findings
}

fn of_handler(handler: &HandlerFacts, whose: &str) -> Vec<Finding> {
    let name = match handler.is_default {
        true => format!("handler {} (default)", handler.name),
        false => format!("handler {}", handler.name),
    };
    let key = format!("runtime.handlers.{}", handler.name);
    let Some(shim) = &handler.shim_path else {
        let program = program_of(&handler.shim).unwrap_or_else(|| handler.shim.clone());
        return vec![Finding::problem(
            SUBJECT,
            format!("{name}: the shim {program} is not in {whose}"),
            &format!("install it, or say where it is with {key}.path"),
        )];
    };
    let mut findings = vec![Finding::ok(SUBJECT, format!("{name}: shim {}", shim.display()))];
    match &handler.binary {
        Some((binary, None)) => {
            findings.push(Finding::problem(
                SUBJECT,
                format!("{name}: the OCI runtime {binary} is not in {whose}"),
                &format!("install it, or say where it is with {key}.options.BinaryName"),
            ));
            return findings;
        }
        Some((_, Some(path))) => {
            findings.push(Finding::ok(SUBJECT, format!("{name}: OCI runtime {}", path.display())));
        }
        None => {}
    }
    findings.push(match &handler.features {
        Ok(features) => {
            let can = |name: &str, has: bool| format!("{name} {}", if has { "yes" } else { "no" });
            let all = [
                can("recursive read-only mounts", features.recursive_read_only),
                can("user namespaces", features.user_namespaces),
                can("network devices", features.net_devices),
            ];
            Finding::ok(SUBJECT, format!("{name}: {}", all.join(", ")))
        }
        Err(why) => Finding::note(
            SUBJECT,
            format!("{name}: does not tell its features: {why}"),
            "it is taken to have none: no user namespaces, no recursive read-only mounts",
        ),
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_shim_is_found_by_the_name_of_its_runtime() {
        assert_eq!(program_of("io.containerd.runc.v2").as_deref(), Some("containerd-shim-runc-v2"));
        assert_eq!(program_of("io.containerd.kata.v2").as_deref(), Some("containerd-shim-kata-v2"));
        assert_eq!(program_of("/opt/shim").as_deref(), Some("/opt/shim"));
        let folders = ["/nowhere".into(), "/bin".into()];
        assert_eq!(find("sh", &folders), Some("/bin/sh".into()));
        assert_eq!(find("/bin/sh", &[]), Some("/bin/sh".into()));
        assert_eq!(find("/etc/passwd", &folders), None, "nobody may execute it");
    }

    fn handler() -> HandlerFacts {
        HandlerFacts {
            name: "runc".into(),
            is_default: true,
            shim: "io.containerd.runc.v2".into(),
            shim_path: Some("/bin/shim".into()),
            binary: Some(("runc".into(), Some("/bin/runc".into()))),
            features: Ok(Features::default()),
        }
    }

    fn verdicts(handler: HandlerFacts) -> Vec<Verdict> {
        let facts = Facts { handlers: vec![handler], ..Facts::default() };
        compare(&facts).iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn what_is_missing_of_a_handler_is_a_problem() {
        use Verdict::{Note, Ok, Problem};
        assert_eq!(verdicts(handler()), [Ok, Ok, Ok, Ok]);
        assert_eq!(verdicts(HandlerFacts { shim_path: None, ..handler() }), [Problem, Ok]);
        let no_binary = HandlerFacts { binary: Some(("crun".into(), None)), ..handler() };
        assert_eq!(verdicts(no_binary), [Ok, Problem, Ok]);
        let silent = HandlerFacts { features: Err("old".into()), ..handler() };
        assert_eq!(verdicts(silent), [Ok, Ok, Note, Ok]);
    }

    #[test]
    fn a_pause_image_that_is_to_be_pulled_is_noted() {
        let pause = Pause::Configured("r.io/pause:1".into(), Some(false));
        let found = compare(&Facts { pause, ..Facts::default() });
        assert_eq!(found[0].verdict, Verdict::Note);
    }
}
