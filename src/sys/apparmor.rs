//! AppArmor of this kernel: what of it is there, which profiles are loaded, who is confined.

use std::path::Path;

/// What the kernel has loaded, a line each: `name (mode)`.
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// Where the tool that compiles and loads profiles is; the first on systems of old.
const PARSERS: [&str; 2] = ["/sbin/apparmor_parser", "/usr/sbin/apparmor_parser"];
/// The folder of profiles, and of the files that they include.
const POLICY: &str = "/etc/apparmor.d";

/// Whether profiles can be given to containers here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Support {
    /// They can.
    InForce,
    /// The kernel has no AppArmor, or it is not its security module, or this process is in
    /// a container itself.
    #[default]
    Absent,
    /// The kernel has it, and nobody installed the parser, which loads profiles.
    NoParser,
    /// Switched off by the configuration.
    Disabled,
}

/// Asks the kernel, and looks for the parser.
#[must_use]
pub fn support() -> Support {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    // Container managers set this variable. The profiles are the outer host's there.
    let contained = std::env::var_os("container").is_some_and(|name| !name.is_empty());
    if contained || !enabled.is_ok_and(|text| text.starts_with('Y')) || !Path::new(PROFILES).exists() {
        return Support::Absent;
    }
    if parser().is_some() { Support::InForce } else { Support::NoParser }
}

/// The parser.
#[must_use]
pub fn parser() -> Option<&'static str> {
    PARSERS.into_iter().find(|path| Path::new(path).exists())
}

/// The names of the loaded profiles; none where they cannot be read.
#[must_use]
pub fn loaded() -> Vec<String> {
    let text = std::fs::read_to_string(PROFILES).unwrap_or_default();
    text.lines().filter_map(|line| line.rsplit_once(" (").map(|(name, _)| name.to_owned())).collect()
}

/// Whether a profile can name this file of the policy's folder, as `abi/3.0`.
#[must_use]
pub fn has_policy_file(name: &str) -> bool {
    Path::new(POLICY).join(name).exists()
}

/// The profile that a process runs under, without its mode: `unconfined` for none. None if
/// it cannot be read.
#[must_use]
pub fn profile_of(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/attr/current")).ok()?;
    let text = text.trim_end_matches(['\0', '\n']);
    let name = text.rsplit_once(" (").map_or(text, |(name, _)| name);
    (!name.is_empty()).then(|| name.to_owned())
}
