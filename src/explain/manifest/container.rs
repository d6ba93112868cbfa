//! A container of a manifest.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Manifest, SECCOMP, flag, id, profile, resources, selinux, text, texts};
use crate::error::{Result, invalid};
use crate::proto::cri::security_profile::ProfileType;
use crate::proto::cri::{
    Capability, ContainerConfig, ContainerMetadata, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig,
    LinuxContainerSecurityContext, SecurityProfile, Signal,
};
use crate::spec::ImageConfig;

const READ: [&str; 14] = [
    "args",
    "command",
    "env",
    "envFrom",
    "image",
    "lifecycle",
    "name",
    "resources",
    "securityContext",
    "stdin",
    "stdinOnce",
    "terminationMessagePath",
    "tty",
    "volumeMounts",
];
const IGNORED: [&str; 9] = [
    "imagePullPolicy",
    "livenessProbe",
    "ports",
    "readinessProbe",
    "resizePolicy",
    "restartPolicy",
    "startupProbe",
    "terminationMessagePolicy",
    "workingDir",
];
/// What the kubelet hides and protects (`procMount: Default`).
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

impl Manifest<'_> {
    pub(super) fn container(&mut self, given: &Value) -> Result<ContainerConfig> {
        let name = text(given, "/name").ok_or_else(|| invalid("a container has no name"))?.to_owned();
        let image = text(given, "/image").unwrap_or_default().to_owned();
        self.say_unread(&format!("container {name:?}: "), given, &READ, &IGNORED);
        let env = self.env(&name, given);
        let expanded = |pointer: &str| -> Vec<String> {
            texts(given, pointer).iter().map(|text| expand(text, &env)).collect()
        };
        let mut labels = self.own_labels();
        labels.insert("io.kubernetes.container.name".into(), name.clone());
        let (command, args) = (expanded("/command"), expanded("/args"));
        let stop_signal =
            text(given, "/lifecycle/stopSignal").and_then(|text| Signal::from_str_name(&signal(text)));
        let (mounts, devices) = (self.mounts(&name, given), Vec::new());
        Ok(ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.clone(), attempt: 0 }),
            image: Some(ImageSpec {
                image: image.clone(),
                user_specified_image: image,
                ..ImageSpec::default()
            }),
            command,
            args,
            working_dir: text(given, "/workingDir").unwrap_or_default().to_owned(),
            envs: env.into_iter().map(|(key, value)| KeyValue { key, value: value.into_bytes() }).collect(),
            mounts,
            devices,
            labels,
            annotations: annotations(given),
            log_path: format!("{name}/0.log"),
            stdin: flag(given, "/stdin"),
            stdin_once: flag(given, "/stdinOnce"),
            tty: flag(given, "/tty"),
            linux: Some(LinuxContainerConfig {
                resources: Some(resources::of_container(self.spec, given, self.around)?),
                security_context: Some(self.context(given)),
            }),
            stop_signal: stop_signal.unwrap_or(Signal::RuntimeDefault) as i32,
            ..ContainerConfig::default()
        })
    }

    /// The variables in order, with references to earlier ones resolved.
    fn env(&mut self, name: &str, given: &Value) -> Vec<(String, String)> {
        if given["envFrom"].is_array() {
            self.say(format!(
                "container {name:?}: envFrom: variables of config maps and secrets are not known and left out"
            ));
        }
        if self.spec["enableServiceLinks"] != false {
            self.say("the variables of the cluster's services (KUBERNETES_SERVICE_HOST, …) are not known and left out");
        }
        let mut env: Vec<(String, String)> = Vec::new();
        for variable in given["env"].as_array().into_iter().flatten() {
            let Some(key) = text(variable, "/name") else { continue };
            let value = match variable.get("valueFrom") {
                None => expand(variable["value"].as_str().unwrap_or_default(), &env),
                Some(from) => {
                    let (kind, what) = source(from);
                    self.say(format!(
                        "container {name:?}: env {key}: the value of {kind} {what} is not known"
                    ));
                    format!("<{kind} {what}>")
                }
            };
            env.retain(|(known, _)| known != key);
            env.push((key.to_owned(), value));
        }
        env
    }

    fn context(&mut self, given: &Value) -> LinuxContainerSecurityContext {
        let (own, pods) = (&given["securityContext"], &self.spec["securityContext"]);
        let number = |pointer: &str| id(own, pointer).or_else(|| id(pods, pointer));
        let unmasked = text(own, "/procMount") == Some("Unmasked");
        let paths = |list: &[&str]| {
            if unmasked { Vec::new() } else { list.iter().map(ToString::to_string).collect() }
        };
        let capabilities = own.get("capabilities").map(|given| Capability {
            add_capabilities: texts(given, "/add"),
            drop_capabilities: texts(given, "/drop"),
            ..Capability::default()
        });
        let unconfined =
            SecurityProfile { profile_type: ProfileType::Unconfined as i32, ..SecurityProfile::default() };
        let seccomp =
            profile(own, "seccompProfile", SECCOMP).or_else(|| profile(pods, "seccompProfile", SECCOMP));
        LinuxContainerSecurityContext {
            capabilities,
            privileged: flag(own, "/privileged"),
            namespace_options: Some(self.namespaces()),
            selinux_options: selinux(own).or_else(|| selinux(pods)),
            run_as_user: number("/runAsUser"),
            run_as_group: number("/runAsGroup"),
            readonly_rootfs: flag(own, "/readOnlyRootFilesystem"),
            supplemental_groups: self.groups(),
            supplemental_groups_policy: self.groups_policy(),
            no_new_privs: own["allowPrivilegeEscalation"] == false,
            masked_paths: paths(&MASKED),
            readonly_paths: paths(&READONLY),
            seccomp: Some(seccomp.unwrap_or(unconfined)),
            apparmor: profile(own, "appArmorProfile", "").or_else(|| profile(pods, "appArmorProfile", "")),
            ..LinuxContainerSecurityContext::default()
        }
    }
}

/// Gives a container the user of its image as the kubelet does it: by number or name alone,
/// and root where the image says nothing. Says whether it had none.
pub(in crate::explain) fn give_image_user(config: &mut ContainerConfig, image: &ImageConfig) -> bool {
    let context = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    let Some(context) = context.filter(|context| context.run_as_user.is_none()) else { return false };
    let user = image.user.split(':').next().unwrap_or_default();
    match user.parse::<i64>() {
        Ok(value) => context.run_as_user = Some(Int64Value { value }),
        Err(_) if user.is_empty() => context.run_as_user = Some(Int64Value { value: 0 }),
        Err(_) => context.run_as_username = user.to_owned(),
    }
    true
}

/// Annotations that the kubelet keeps with a container; none reaches a spec by default.
fn annotations(given: &Value) -> BTreeMap<String, String> {
    let path = text(given, "/terminationMessagePath").unwrap_or("/dev/termination-log");
    let policy = text(given, "/terminationMessagePolicy").unwrap_or("File");
    [
        ("io.kubernetes.container.restartCount", "0"),
        ("io.kubernetes.container.terminationMessagePath", path),
        ("io.kubernetes.container.terminationMessagePolicy", policy),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// `SIGRTMIN+3` as the CRI calls it.
fn signal(text: &str) -> String {
    text.replace('+', "PLUS").replace('-', "MINUS")
}

/// Where a variable comes from.
fn source(from: &Value) -> (&'static str, String) {
    let of = |name: &str, key: &str| {
        format!(
            "{}/{}",
            from[name]["name"].as_str().unwrap_or_default(),
            from[name][key].as_str().unwrap_or_default()
        )
    };
    if from["secretKeyRef"].is_object() {
        ("secret", of("secretKeyRef", "key"))
    } else if from["configMapKeyRef"].is_object() {
        ("config map", of("configMapKeyRef", "key"))
    } else if from["fieldRef"].is_object() {
        ("field", text(from, "/fieldRef/fieldPath").unwrap_or_default().to_owned())
    } else {
        ("resource", text(from, "/resourceFieldRef/resource").unwrap_or_default().to_owned())
    }
}

/// Replaces `$(NAME)` of variables that are known; `$$` is a dollar.
fn expand(text: &str, env: &[(String, String)]) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            match env.iter().find(|(key, _)| key == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_to_variables_are_resolved() {
        let env = [("A".to_owned(), "1".to_owned())];
        for (text, want) in [
            ("$(A)/$(B)", "1/$(B)"),
            ("$$(A)", "$(A)"),
            ("cost: $5 $", "cost: $5 $"),
            ("$(A", "$(A"),
            ("", ""),
        ] {
            assert_eq!(expand(text, &env), want);
        }
    }
}
