//! The command of a container.
//!
//! | CRI / image | OCI | rule |
//! |---|---|---|
//! | `command`, `args`, image `Entrypoint`, `Cmd` | `process.args` | OCI-01 |
//! | `working_dir`, else image `WorkingDir`, else `/` | `process.cwd` | OCI-03 |
//! | PATH, TERM with `tty`, HOSTNAME, image `Env`, `envs` | `process.env`, in place of an earlier one of PATH, TERM and HOSTNAME | OCI-02 |
//! | `tty` | `process.terminal` | |
//! | `stop_signal`, image `StopSignal` | (kept in the container's metadata) | CTR-11, CTR-33 |

use std::collections::HashMap;

use super::ImageConfig;
use crate::error::{Result, invalid};
use crate::proto::cri::{ContainerConfig, Signal};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The arguments of the first process.
///
/// # Errors
/// InvalidArgument when neither the container nor the image has a command.
pub fn args(command: &[String], args: &[String], image: &ImageConfig) -> Result<Vec<String>> {
    let (entrypoint, cmd) = (image.entrypoint.as_slice(), image.cmd.as_slice());
    let (first, rest) = match (command, args) {
        ([], []) => (entrypoint, cmd),
        ([], args) => (entrypoint, args),
        (command, args) => (command, args),
    };
    // An entrypoint of one empty string is how an image says "none".
    let first = if command.is_empty() && matches!(first, [only] if only.is_empty()) { &[] } else { first };
    let all: Vec<String> = first.iter().chain(rest).cloned().collect();
    if all.is_empty() {
        return Err(invalid("no command: neither the container nor its image has one"));
    }
    Ok(all)
}

/// The working directory, over that of a base spec.
#[must_use]
pub fn cwd(base: &str, config: &ContainerConfig, image: &ImageConfig) -> String {
    let dirs = [&config.working_dir, &image.working_dir, base];
    dirs.into_iter().find(|dir| !dir.is_empty()).unwrap_or("/").to_owned()
}

/// The environment, over that of a base spec.
///
/// Of two variables of one name, from the image and the kubelet, both are in the list: the
/// OCI runtime lets the later one win, in the earlier one's place (OCI-02).
///
/// # Errors
/// InvalidArgument for a variable with a NUL byte or that is not text, naming its key.
pub fn env(
    base: Vec<String>,
    config: &ContainerConfig,
    image: &ImageConfig,
    hostname: &str,
) -> Result<Vec<String>> {
    let mut env = overlay(base, vec![DEFAULT_PATH.to_owned()]);
    if config.tty {
        env.push("TERM=xterm".to_owned());
    }
    let env = overlay(env, vec![format!("HOSTNAME={hostname}")]);
    let mut own = image.env.clone();
    for pair in &config.envs {
        let value = std::str::from_utf8(&pair.value)
            .map_err(|_| invalid(format!("the value of environment variable {:?} is not UTF-8", pair.key)))?;
        if pair.key.contains('\0') || value.contains('\0') {
            return Err(invalid(format!("environment variable {:?} has a NUL byte", pair.key)));
        }
        own.push(format!("{}={value}", pair.key));
    }
    Ok(overlay(env, own))
}

/// Lays variables over others: one whose name is among `under` takes the place of the last
/// of that name there, another one is appended. A name alone takes a variable away.
pub(super) fn overlay(under: Vec<String>, over: Vec<String>) -> Vec<String> {
    let name_of = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    let places: HashMap<String, usize> =
        under.iter().enumerate().map(|(place, pair)| (name_of(pair), place)).collect();
    let mut all = under;
    for pair in over {
        let place = places.get(&name_of(&pair)).copied();
        match (place, pair.contains('=')) {
            (Some(place), true) => all[place] = pair,
            (Some(place), false) => all[place].clear(),
            (None, true) => all.push(pair),
            (None, false) => {}
        }
    }
    all.retain(|pair| !pair.is_empty());
    all
}

/// Sets a variable, in the place of an earlier one of its name.
pub fn set(env: &mut Vec<String>, pair: String) {
    *env = overlay(std::mem::take(env), vec![pair]);
}

/// The stop signal as metadata has it: `SIGTERM`, `SIGRTMIN+3`; from the config, else
/// from the image, else empty.
///
/// # Errors
/// InvalidArgument for a number that is no signal of the CRI (CTR-11).
pub fn stop_signal(config: &ContainerConfig, image: &ImageConfig) -> Result<String> {
    Ok(match check_stop_signal(config)? {
        Signal::RuntimeDefault => image.stop_signal.clone(),
        signal => oci_name(signal),
    })
}

/// The stop signal that a container asks for.
///
/// # Errors
/// As for [`stop_signal`].
pub fn check_stop_signal(config: &ContainerConfig) -> Result<Signal> {
    Signal::try_from(config.stop_signal)
        .map_err(|_| invalid(format!("stop signal {} is out of range", config.stop_signal)))
}

/// `SIGNAL_SIGRTMINPLUS3` as `SIGRTMIN+3`.
fn oci_name(signal: Signal) -> String {
    let name = signal.as_str_name();
    name.strip_prefix("SIGNAL_").unwrap_or(name).replace("PLUS", "+").replace("MINUS", "-")
}

/// The CRI's value for the text of a stop signal; SIGTERM where it says nothing known.
#[must_use]
pub fn cri_signal(text: &str) -> Signal {
    let signals = || (1..=65).filter_map(|value| Signal::try_from(value).ok());
    if let Some(named) = signals().find(|signal| oci_name(*signal) == text) {
        return named;
    }
    let Some(number) = signal_number(text) else { return Signal::Sigterm };
    signals()
        // SIGCLD, SIGIOT and SIGPOLL are older names of others: the first of a number wins.
        .find(|signal| signal_number(&oci_name(*signal)) == Some(number))
        .unwrap_or(Signal::Sigterm)
}

/// The number of a signal: `15`, `TERM`, `SIGTERM`, `RTMIN+3`, in any case (CTR-33).
#[must_use]
pub fn signal_number(text: &str) -> Option<u32> {
    /// The kernel's real-time signals as user programs see them: two are glibc's own.
    const RTMIN: u32 = 34;
    const RTMAX: u32 = 64;
    let upper = text.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<u32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let offset = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse().ok()? };
        return (offset <= RTMAX - RTMIN).then(|| RTMIN + offset);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        let offset: u32 = if rest.is_empty() { 0 } else { rest.strip_prefix('-')?.parse().ok()? };
        return (offset <= RTMAX - RTMIN).then(|| RTMAX - offset);
    }
    let number = match name {
        "HUP" => libc::SIGHUP,
        "INT" => libc::SIGINT,
        "QUIT" => libc::SIGQUIT,
        "ILL" => libc::SIGILL,
        "TRAP" => libc::SIGTRAP,
        "ABRT" | "IOT" => libc::SIGABRT,
        "BUS" => libc::SIGBUS,
        "FPE" => libc::SIGFPE,
        "KILL" => libc::SIGKILL,
        "USR1" => libc::SIGUSR1,
        "SEGV" => libc::SIGSEGV,
        "USR2" => libc::SIGUSR2,
        "PIPE" => libc::SIGPIPE,
        "ALRM" => libc::SIGALRM,
        "TERM" => libc::SIGTERM,
        "STKFLT" => 16,
        "CHLD" | "CLD" => libc::SIGCHLD,
        "CONT" => libc::SIGCONT,
        "STOP" => libc::SIGSTOP,
        "TSTP" => libc::SIGTSTP,
        "TTIN" => libc::SIGTTIN,
        "TTOU" => libc::SIGTTOU,
        "URG" => libc::SIGURG,
        "XCPU" => libc::SIGXCPU,
        "XFSZ" => libc::SIGXFSZ,
        "VTALRM" => libc::SIGVTALRM,
        "PROF" => libc::SIGPROF,
        "WINCH" => libc::SIGWINCH,
        "IO" | "POLL" => libc::SIGIO,
        "PWR" => libc::SIGPWR,
        "SYS" => libc::SIGSYS,
        _ => return None,
    };
    u32::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::cri::KeyValue;

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(ToString::to_string).collect()
    }

    fn image(entrypoint: &[&str], cmd: &[&str]) -> ImageConfig {
        ImageConfig { entrypoint: list(entrypoint), cmd: list(cmd), ..ImageConfig::default() }
    }

    #[test]
    fn command_and_args_replace_entrypoint_and_cmd() {
        for (command, arguments, entrypoint, cmd, want) in [
            (&[][..], &[][..], &["e"][..], &["c"][..], Some("e c")),
            (&[], &["a"], &["e"], &["c"], Some("e a")),
            (&["x"], &[], &["e"], &["c"], Some("x")),
            (&["x"], &["a"], &["e"], &["c"], Some("x a")),
            (&[], &[], &[""], &["c"], Some("c")),
            (&[], &[], &[], &[], None),
            (&[], &[], &[""], &[], None),
        ] {
            let got = args(&list(command), &list(arguments), &image(entrypoint, cmd));
            assert_eq!(got.ok().map(|args| args.join(" ")).as_deref(), want);
        }
    }

    #[test]
    fn variables_of_the_runtime_are_replaced_in_place() {
        let image = ImageConfig { env: list(&["PATH=/bin", "A=image"]), ..ImageConfig::default() };
        let pair = |key: &str, value: &str| KeyValue { key: key.into(), value: value.into() };
        let config = ContainerConfig {
            tty: true,
            envs: vec![pair("A", "x=y\nz"), pair("EMPTY", ""), pair("HOSTNAME", "mine")],
            ..Default::default()
        };
        let want = ["PATH=/bin", "TERM=xterm", "HOSTNAME=mine", "A=image", "A=x=y\nz", "EMPTY="];
        assert_eq!(env(Vec::new(), &config, &image, "pod").expect("valid"), want);
        let base = list(&["A=base", "PATH=/base", "A=again", ""]);
        let want = ["A=base", "PATH=/bin", "A=x=y\nz", "TERM=xterm", "HOSTNAME=mine", "EMPTY="];
        assert_eq!(env(base, &config, &image, "pod").expect("valid"), want);
    }

    #[test]
    fn a_name_alone_takes_a_variable_away() {
        let image = ImageConfig { env: list(&["PATH", "B", "C=1"]), ..ImageConfig::default() };
        let got = env(list(&["B=base"]), &ContainerConfig::default(), &image, "h");
        assert_eq!(got.expect("valid"), ["HOSTNAME=h", "C=1"]);
    }

    #[test]
    fn a_variable_that_is_no_text_is_refused_without_its_value() {
        let config = ContainerConfig {
            envs: vec![KeyValue { key: "K".into(), value: vec![b's', 0xff] }],
            ..Default::default()
        };
        let error = env(Vec::new(), &config, &ImageConfig::default(), "h").expect_err("not UTF-8");
        assert_eq!(error.message(), "the value of environment variable \"K\" is not UTF-8");
    }

    #[test]
    fn signals_are_understood_in_every_form() {
        for (text, want) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("RTMIN+3", Some(37)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMAX-1", Some(63)),
            ("RTMIN+99", None),
            ("0", None),
            ("65", None),
            ("", None),
            ("SIGNOPE", None),
        ] {
            assert_eq!(signal_number(text), want, "{text}");
        }
        let config = ContainerConfig { stop_signal: Signal::Sigrtminplus3 as i32, ..Default::default() };
        assert_eq!(stop_signal(&config, &ImageConfig::default()).as_deref(), Ok("SIGRTMIN+3"));
        assert_eq!(cri_signal("SIGRTMIN+3"), Signal::Sigrtminplus3);
        assert_eq!(cri_signal("SIGCHLD"), Signal::Sigchld);
        assert_eq!(cri_signal(""), Signal::Sigterm);
        let bad = ContainerConfig { stop_signal: 99, ..Default::default() };
        assert!(stop_signal(&bad, &ImageConfig::default()).is_err());
    }
}
