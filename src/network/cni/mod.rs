//! The container network interface, as a runtime speaks it: versions 0.1.0 to 1.1.0.
//!
//! A *network* is a list of *plugins*, programs that are run one after the other, each
//! with the result of the one before. What libcni does for other runtimes is done here:
//!
//! - [`config`]: lists as files, [`watch`]: and how their changes are noticed;
//! - [`invoke`]: one plugin as a process;
//! - [`result`]: what it prints;
//! - [`cache`]: what must be known again at removal;
//! - [`capability`]: what plugins are told of a pod;
//! - this file: the verbs over a list.

pub(crate) mod cache;
pub(crate) mod capability;
pub(crate) mod config;
pub(crate) mod invoke;
mod quantity;
pub(crate) mod result;
pub(crate) mod stray;
pub(crate) mod template;
pub(crate) mod watch;

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::error::{Context, Result, invalid};
use crate::flow::Stage;
use config::{NetworkList, Plugin};
use invoke::{Call, Complaint, Failure, Plugins};

/// "The container is not known": nothing is there to be removed.
const CODE_UNKNOWN_CONTAINER: u64 = 3;

/// A version of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(u32, u32, u32);

impl Version {
    /// What is meant where none is named.
    pub(crate) const OLDEST: Version = Version(0, 1, 0);
    /// The newest one known here.
    pub(crate) const NEWEST: Version = Version(1, 1, 0);
    /// CHECK, and the result of ADD at DEL.
    pub(crate) const WITH_CHECK: Version = Version(0, 4, 0);
    /// STATUS and GC.
    pub(crate) const WITH_STATUS: Version = Version(1, 1, 0);

    /// Reads `major[.minor[.micro]]`; an empty text is [`Version::OLDEST`].
    ///
    /// # Errors
    /// InvalidArgument for anything else.
    pub(crate) fn parse(text: &str) -> Result<Version> {
        if text.is_empty() {
            return Ok(Version::OLDEST);
        }
        let mut numbers = [0; 3];
        let mut parts = text.split('.');
        for (index, number) in numbers.iter_mut().enumerate() {
            match parts.next() {
                Some(part) if part.bytes().all(|c| c.is_ascii_digit()) => {
                    *number = part.parse().map_err(|_| invalid(format!("cniVersion {text:?} is none")))?;
                }
                None if index > 0 => {}
                _ => return Err(invalid(format!("cniVersion {text:?} is none"))),
            }
        }
        match parts.next() {
            None => Ok(Version(numbers[0], numbers[1], numbers[2])),
            Some(_) => Err(invalid(format!("cniVersion {text:?} is none"))),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// What a plugin is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

impl Verb {
    /// CNI_COMMAND.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Status => "STATUS",
            Verb::Gc => "GC",
            Verb::Version => "VERSION",
        }
    }
}

/// One interface of one sandbox, as plugins are told of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Endpoint {
    /// The sandbox's id.
    pub(crate) container: String,
    /// Path of the network namespace; empty when it is gone.
    pub(crate) netns: String,
    /// The interface's name in the pod.
    pub(crate) interface: String,
    /// CNI_ARGS.
    pub(crate) args: Vec<(String, String)>,
    /// Values of capabilities, of which a plugin gets those that it declares.
    pub(crate) capability_args: Map<String, Value>,
}

impl Endpoint {
    /// As it is told to plugins, for people.
    fn described(&self) -> String {
        let args: Vec<String> = self.args.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let Endpoint { container, netns, interface, .. } = self;
        format!(
            "CNI_CONTAINERID={container} CNI_NETNS={netns} CNI_IFNAME={interface} CNI_ARGS={}",
            args.join(";")
        )
    }
}

/// Whether `name` may be a network's name or a container's id.
pub(crate) fn is_valid_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(&c))
}

/// Adds an endpoint to a network: all plugins in order, each with the result of the one
/// before (CNI-15). Gives the last one's result in the version of the configuration.
///
/// # Errors
/// The first plugin's that fails; those before it have done their work, so DEL must follow.
pub(crate) async fn add(
    plugins: &Plugins,
    list: &NetworkList,
    endpoint: &Endpoint,
    limit: Duration,
    stage: &Stage,
) -> Result<Value> {
    let what = || format!("CNI ADD of network {:?}", list.name);
    let mut previous: Option<Value> = None;
    for plugin in &list.plugins {
        stage.set(format!("{}, plugin {:?}", what(), plugin.kind));
        let injected: Vec<_> = previous.iter().map(|value| ("prevResult", value)).collect();
        let input = plugin.input(list, &injected, &endpoint.capability_args);
        let output = call(plugins, Verb::Add, list, plugin, endpoint, input, limit)
            .await
            .map_err(|failure| failure.into_error(&plugin.kind))
            .context(what)?;
        let value = result::from_output(&output, &list.version_text)
            .context(|| format!("{}: plugin {:?}", what(), plugin.kind))?;
        previous = Some(value);
    }
    Ok(previous.unwrap_or(Value::Null))
}

/// Removes an endpoint from a network: all plugins in reverse order (CNI-21).
///
/// `previous` is the result of ADD. The first error ends it, as in libcni: a plugin
/// further down must not give an address back while rules of the failed one still point
/// at it. What says that there is nothing to remove is no error.
///
/// # Errors
/// The first plugin's that fails.
pub(crate) async fn del(
    plugins: &Plugins,
    list: &NetworkList,
    endpoint: &Endpoint,
    previous: Option<&Value>,
    limit: Duration,
) -> Result<()> {
    let previous = previous_for(list, previous);
    for plugin in list.plugins.iter().rev() {
        let injected: Vec<_> = previous.iter().map(|value| ("prevResult", value)).collect();
        let input = plugin.input(list, &injected, &endpoint.capability_args);
        match call(plugins, Verb::Del, list, plugin, endpoint, input, limit).await {
            Ok(_) => {}
            Err(Failure::Plugin(complaint)) if is_gone(&complaint, &endpoint.netns) => {
                tracing::debug!(?complaint, plugin = plugin.kind, "nothing was left to remove");
            }
            Err(failure) => {
                return Err(failure.into_error(&plugin.kind))
                    .context(|| format!("CNI DEL of network {:?}", list.name));
            }
        }
    }
    Ok(())
}

/// Asks all plugins whether an endpoint is as they left it; nothing to do where the
/// version has no CHECK or the list wants none.
///
/// # Errors
/// The first plugin's that fails.
pub(crate) async fn check(
    plugins: &Plugins,
    list: &NetworkList,
    endpoint: &Endpoint,
    previous: Option<&Value>,
    limit: Duration,
) -> Result<()> {
    if list.version < Version::WITH_CHECK || list.disable_check {
        return Ok(());
    }
    let previous = previous_for(list, previous);
    for plugin in &list.plugins {
        let injected: Vec<_> = previous.iter().map(|value| ("prevResult", value)).collect();
        let input = plugin.input(list, &injected, &endpoint.capability_args);
        call(plugins, Verb::Check, list, plugin, endpoint, input, limit)
            .await
            .map_err(|failure| failure.into_error(&plugin.kind))
            .context(|| format!("CNI CHECK of network {:?}", list.name))?;
    }
    Ok(())
}

/// Asks all plugins whether they could serve an ADD (CNI-22); nothing to do where the
/// version has no STATUS.
///
/// # Errors
/// The first plugin's that fails.
pub(crate) async fn status(plugins: &Plugins, list: &NetworkList, limit: Duration) -> Result<()> {
    if list.version < Version::WITH_STATUS {
        return Ok(());
    }
    for plugin in &list.plugins {
        let input = plugin.input(list, &[], &Map::new());
        call(plugins, Verb::Status, list, plugin, &Endpoint::default(), input, limit)
            .await
            .map_err(|failure| failure.into_error(&plugin.kind))
            .context(|| format!("CNI STATUS of network {:?}", list.name))?;
    }
    Ok(())
}

/// The versions that a plugin says it knows. It is asked for nothing else.
///
/// # Errors
/// The plugin's; InvalidArgument for an answer that is none.
pub(crate) async fn versions(plugins: &Plugins, plugin: &str, limit: Duration) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        supported_versions: Vec<String>,
    }
    let input = serde_json::json!({ "cniVersion": Version::NEWEST.to_string() }).to_string().into_bytes();
    let endpoint = Endpoint::default();
    let call = Call { verb: Verb::Version, plugin, network: "", endpoint: &endpoint, input, limit };
    let output = plugins.call(call).await.map_err(|failure| failure.into_error(plugin))?;
    serde_json::from_slice(&output)
        .map(|answer: Answer| answer.supported_versions)
        .map_err(|error| invalid(format!("plugin {plugin:?} answers VERSION with something else: {error}")))
}

/// Has all plugins give up what they hold for others than `attachments`, pairs of
/// sandbox id and interface; nothing to do where the version has no GC or the list wants none.
///
/// # Errors
/// Those of all plugins, collected.
pub(crate) async fn gc(
    plugins: &Plugins,
    list: &NetworkList,
    attachments: &[(String, String)],
    limit: Duration,
) -> Result<()> {
    if list.version < Version::WITH_STATUS || list.disable_gc {
        return Ok(());
    }
    let attachments: Value = attachments
        .iter()
        .map(|(container, interface)| serde_json::json!({ "containerID": container, "ifname": interface }))
        .collect();
    let mut errors = crate::error::Collected::default();
    for plugin in &list.plugins {
        // The specification's name and the one that its first text had by mistake.
        let injected = [("cni.dev/valid-attachments", &attachments), ("cni.dev/attachments", &attachments)];
        let input = plugin.input(list, &injected, &Map::new());
        let result = call(plugins, Verb::Gc, list, plugin, &Endpoint::default(), input, limit).await;
        errors.push(
            result
                .map(drop)
                .map_err(|failure| failure.into_error(&plugin.kind))
                .context(|| format!("CNI GC of network {:?}", list.name)),
        );
    }
    errors.finish()
}

async fn call(
    plugins: &Plugins,
    verb: Verb,
    list: &NetworkList,
    plugin: &Plugin,
    endpoint: &Endpoint,
    input: Vec<u8>,
    limit: Duration,
) -> Result<Vec<u8>, Failure> {
    let call = Call { verb, plugin: &plugin.kind, network: &list.name, endpoint, input, limit };
    plugins.call(call).await
}

/// The result of ADD in the version of the list, where that version gives it to DEL and
/// CHECK. One that cannot be said in it is left out, as in libcni.
fn previous_for(list: &NetworkList, previous: Option<&Value>) -> Option<Value> {
    if list.version < Version::WITH_CHECK {
        return None;
    }
    let converted = result::convert(previous?.clone(), &list.version_text);
    converted
        .inspect_err(|error| tracing::warn!(%error, network = list.name, "a cached result is of no use"))
        .ok()
}

/// Whether a complaint at DEL says that there is nothing to remove, or only that the
/// namespace, which is known to be gone, is missing.
fn is_gone(complaint: &Complaint, netns: &str) -> bool {
    let says = |text: &str| complaint.msg.contains(text) || complaint.details.contains(text);
    complaint.code == CODE_UNKNOWN_CONTAINER
        // Not that a program was not found, by the plugin or by its shell.
        || (says("not found") && !says("executable file not found") && complaint.is_structured)
        || (netns.is_empty() && (says("no such file or directory") || says("CNI_NETNS")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_and_an_empty_one_is_the_oldest() {
        let version = |text: &str| Version::parse(text).expect(text);
        assert_eq!(version(""), version("0.1.0"));
        assert!(
            version("0.3.1") < version("0.4.0")
                && version("0.4.0") < version("1")
                && version("1.0") < version("1.1.0")
        );
        assert_eq!(version("1.1.0").to_string(), "1.1.0");
        for text in ["1.", ".1", "a", "1.0.0.0", "-1.0.0", "1.0.0-rc1", "99999999999.0.0", "+1"] {
            assert!(Version::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_those_of_the_specification() {
        for name in ["a", "A-b_c.d", "0x"] {
            assert!(is_valid_name(name), "{name}");
        }
        for name in ["", "-a", ".a", "_a", "a/b", "a b", "ä", "a\n"] {
            assert!(!is_valid_name(name), "{name:?}");
        }
    }

    #[test]
    fn what_is_gone_is_no_error_of_removal() {
        let complaint = |code, msg: &str| Complaint {
            code,
            msg: msg.to_owned(),
            is_structured: true,
            ..Complaint::default()
        };
        assert!(is_gone(&complaint(0, "link eth0 not found"), "/ns"));
        assert!(is_gone(&complaint(3, "whatever"), "/ns"));
        assert!(is_gone(&complaint(0, "open : no such file or directory"), ""));
        assert!(!is_gone(&complaint(0, "open x: no such file or directory"), "/ns"));
        assert!(is_gone(&complaint(4, "required env variables [CNI_NETNS] missing"), ""));
        assert!(!is_gone(&complaint(4, "required env variables [CNI_NETNS] missing"), "/ns"));
        assert!(!is_gone(&complaint(7, "no"), ""));
        assert!(!is_gone(&complaint(0, "exec: \"iptables\": executable file not found in $PATH"), "/ns"));
        let broken = Complaint { msg: "exit status: 127: jq: not found".to_owned(), ..Complaint::default() };
        assert!(!is_gone(&broken, "/ns"));
    }
}
