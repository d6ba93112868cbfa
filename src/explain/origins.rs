//! Where each field of a spec comes from, found by experiment.
//!
//! The translation is pure: it can be asked again with one value changed. What is then another
//! one in the spec came from that value, whatever way it took; what no change touches is the
//! same in every spec. Nothing is noted while the server translates, and a note cannot say
//! anything else than what the translation does.
//!
//! ```text
//! facts ──▶ spec ──────────────────────────▶ leaves ┐
//!   └─ one changed ─▶ facts' ─▶ spec' ─▶ leaves' ───┴▶ different? ─▶ note at the place
//! ```
//! Only what is given is changed: that a container is not privileged, because nobody says so,
//! is the origin of nothing. Where one change does not translate (a user whom the image does
//! not know) or makes no difference, the next one is tried: another value, then none at all.
//!
//! What is not touched by that is asked for further ([`Round`]): a field may be there because a
//! message is, with nothing in it; or because two ask for the same, of which either would do.

mod requests;

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::Value;

use super::facts::{ContainerFacts, Facts, Subject};
use super::leaves::{Leaf, Leaves, parents};
use super::source::Source;
use crate::config::CgroupDriver;
use crate::error::Result;
use crate::spec::classes::Classes;
use crate::spec::gather::Gathered;
use crate::spec::{Edits, Spec};
use crate::sys::apparmor::Support;
use requests::{Request, Values};

/// A value that nobody has; texts and numbers alike.
const OTHER: &str = "54321";
/// The most places of a base spec that are asked for.
const BASE_PLACES_MAX: usize = 4096;

/// A leaf of a spec, and what it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    /// Where it is: a JSON pointer.
    pub pointer: String,
    /// What it is.
    pub value: Value,
    /// What it comes from; never empty.
    pub sources: Vec<Source>,
}

/// The spec of `facts`, and the origin of each of its leaves, in order.
///
/// # Errors
/// Those of the translation.
pub fn explained(facts: &Facts) -> Result<(Spec, Vec<Origin>)> {
    let spec = facts.translate()?;
    let leaves = Leaves::of(&value_of(&spec));
    let mut experiment = Experiment {
        facts: facts.clone(),
        leaves,
        found: HashMap::new(),
        round: Round::Each,
        touched: HashSet::new(),
        is_of_two: HashSet::new(),
    };
    for round in [Round::Each, Round::Parts, Round::Together, Round::TogetherFromTheEnd] {
        experiment.round = round;
        experiment.facts = facts.clone();
        experiment.touched.clear();
        experiment.ask_all();
    }
    let origins = experiment.origins();
    Ok((spec, origins))
}

/// How the facts are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// One value at a time.
    Each,
    /// One part of a request at a time is taken away. For what nothing has touched.
    Parts,
    /// One value after the other, and all stay changed. For what nothing has touched: of two
    /// that ask for the same, the last one is found.
    Together,
    /// The same from the end: then the first one is.
    TogetherFromTheEnd,
}

impl Round {
    fn keeps(self) -> bool {
        matches!(self, Round::Together | Round::TogetherFromTheEnd)
    }
}

fn value_of(spec: &Spec) -> Value {
    serde_json::to_value(spec).expect("a spec has text keys only")
}

struct Experiment {
    /// As they are changed.
    facts: Facts,
    /// Those of the spec.
    leaves: Leaves,
    /// Sources by the key of what they touch.
    found: HashMap<String, BTreeSet<Source>>,
    round: Round,
    /// What is another one already, where changes stay.
    touched: HashSet<String>,
    /// What was found where changes stay.
    is_of_two: HashSet<String>,
}

impl Experiment {
    fn ask_all(&mut self) {
        let mut all: [fn(&mut Experiment); 7] = [
            Experiment::ask_about_requests,
            Experiment::ask_about_gathered,
            Experiment::ask_about_image,
            Experiment::ask_about_handler,
            Experiment::ask_about_config,
            Experiment::ask_about_host,
            Experiment::ask_about_server,
        ];
        match self.round {
            Round::Parts => return self.ask_about_requests(),
            Round::TogetherFromTheEnd => all.reverse(),
            Round::Each | Round::Together => {}
        }
        all.iter().for_each(|ask| ask(self));
    }

    /// Changes the facts, and notes `source` where the spec is another one. Says whether that
    /// was to any purpose: whether it is another one anywhere, or where changes stay, whether
    /// it is one at all.
    fn ask(&mut self, source: Source, change: impl FnOnce(&mut Facts)) -> bool {
        let mut facts = self.facts.clone();
        change(&mut facts);
        let Ok(spec) = facts.translate() else { return false };
        let other = Leaves::of(&value_of(&spec));
        let touched: Vec<String> = self.leaves.touched_by(&other).into_iter().map(str::to_owned).collect();
        let any = !touched.is_empty();
        for key in touched {
            let is_wanted = match self.round {
                Round::Each => true,
                Round::Parts => self.has_open(&key),
                Round::Together | Round::TogetherFromTheEnd => {
                    self.touched.insert(key.clone()) && self.has_open(&key)
                }
            };
            if is_wanted {
                if self.round.keeps() {
                    self.is_of_two.insert(key.clone());
                }
                self.found.entry(key).or_default().insert(source.clone());
            }
        }
        if self.round.keeps() {
            self.facts = facts;
        }
        any || self.round.keeps()
    }

    /// Whether there is a leaf at `key`, or in what it is the key of, that nothing has touched.
    fn has_open(&self, key: &str) -> bool {
        self.leaves.below(key).any(|leaf| {
            // What the first round of two has found may have another source.
            let is_closed = |key| self.found.contains_key(key) && !self.is_of_two.contains(key);
            !parents(&leaf.key).any(is_closed)
        })
    }

    /// Each leaf with what touches it, or the nearest part of the spec that it is in.
    fn origins(&self) -> Vec<Origin> {
        let sources = |key: &str| {
            let nearest = parents(key).find_map(|key| self.found.get(key));
            nearest.map_or(vec![Source::Default], |found| found.iter().cloned().collect())
        };
        let origin = |leaf: &Leaf| Origin {
            pointer: leaf.pointer.clone(),
            value: leaf.value.clone(),
            sources: sources(&leaf.key),
        };
        self.leaves.iter().map(origin).collect()
    }

    fn container(&self) -> Option<&ContainerFacts> {
        match &self.facts.subject {
            Subject::Container(container) => Some(container),
            Subject::Pause(_) => None,
        }
    }

    fn ask_about_requests(&mut self) {
        let pod = serde_json::to_value(&self.facts.pod.config).expect("text keys only");
        self.ask_about_fields(Request::Pod, &pod);
        if let Some(container) = self.container() {
            let config = serde_json::to_value(&container.config).expect("text keys only");
            self.ask_about_fields(Request::Container, &config);
        }
    }

    fn ask_about_gathered(&mut self) {
        let Some(container) = self.container() else { return };
        let gathered = container.gathered.clone();
        let mounts = container.config.mounts.clone();
        let devices = container.config.devices.len();
        // What was found on the host of what the request names.
        for place in 0..gathered.mounts.len() {
            let is_image = mounts.get(place).is_some_and(|mount| mount.image.is_some());
            let field = if is_image { "image" } else { "host_path" };
            self.ask_gathered(Source::Container(format!("mounts[{place}].{field}")), move |gathered| {
                gathered.mounts[place].source = OTHER.into();
            });
        }
        for place in 0..gathered.devices.len() {
            let field = if devices == gathered.devices.len() {
                format!("devices[{place}]")
            } else {
                "devices".into()
            };
            self.ask_gathered(Source::Container(format!("{field}.host_path")), move |gathered| {
                let device = &mut gathered.devices[place];
                (device.major, device.minor, device.mode) = (543, 21, 0o1);
                (device.uid, device.gid) = (54321, 54321);
                device.kind = if device.kind == 'c' { 'b' } else { 'c' };
            });
            self.ask_gathered(Source::Container(format!("{field}.container_path")), move |gathered| {
                gathered.devices[place].path = OTHER.into();
            });
            self.ask_gathered(Source::Container(format!("{field}.permissions")), move |gathered| {
                gathered.devices[place].permissions = OTHER.into();
            });
        }
        self.ask_gathered(Source::Host("devices in /dev".into()), |gathered| gathered.host_devices.clear());
        self.ask_gathered(Source::Container("CDI_devices, and cdi.k8s.io annotations".into()), |gathered| {
            gathered.edits = Edits::default();
        });
        self.ask_gathered(Source::Container("annotations of classes".into()), |gathered| {
            gathered.classes = Classes::default();
        });
    }

    fn ask_gathered(&mut self, source: Source, change: impl FnOnce(&mut Gathered)) {
        self.ask(source, |facts| {
            if let Subject::Container(container) = &mut facts.subject {
                change(&mut container.gathered);
            }
        });
    }

    fn ask_about_image(&mut self) {
        let of = |what: String| Source::Image(what);
        let _ = [OTHER, ""]
            .into_iter()
            .any(|value| self.ask(of("User".into()), |facts| facts.image.config.user = value.into()));
        if !self.facts.image.config.working_dir.is_empty() {
            self.ask(of("WorkingDir".into()), |facts| facts.image.config.working_dir = OTHER.into());
        }
        for place in 0..self.facts.image.config.env.len() {
            let name = self.facts.image.config.env[place].split('=').next().unwrap_or_default().to_owned();
            let other = format!("{name}={OTHER}");
            self.ask(of(format!("Env[{name}]")), |facts| facts.image.config.env[place] = other);
        }
        for place in 0..self.facts.image.config.entrypoint.len() {
            self.ask(of(format!("Entrypoint[{place}]")), |facts| {
                facts.image.config.entrypoint[place] = OTHER.into();
            });
        }
        for place in 0..self.facts.image.config.cmd.len() {
            self.ask(of(format!("Cmd[{place}]")), |facts| facts.image.config.cmd[place] = OTHER.into());
        }
        let volumes = self.container().map_or(0, |container| container.gathered.volumes.len());
        for place in 0..volumes {
            for part in 0..2 {
                self.ask_gathered(of(format!("Volumes[{place}]")), |gathered| match part {
                    0 => gathered.volumes[place].0 = OTHER.into(),
                    _ => gathered.volumes[place].1 = OTHER.into(),
                });
            }
        }
        self.ask(of("name".into()), |facts| facts.image.name = OTHER.into());
        self.ask(of("/etc/passwd".into()), |facts| {
            facts.image.passwd = shifted(&facts.image.passwd, &[2, 3])
        });
        self.ask(of("/etc/group".into()), |facts| facts.image.group = shifted(&facts.image.group, &[2]));
    }

    fn ask_about_handler(&mut self) {
        let of = |what: &str| Source::Handler(what.into());
        self.ask(of("pod_annotations"), |facts| facts.node.handler.pod_annotations.clear());
        self.ask(of("container_annotations"), |facts| facts.node.handler.container_annotations.clear());
        self.ask(of("options.SystemdCgroup"), |facts| {
            let driver = &mut facts.node.handler.cgroup_driver;
            *driver = match driver {
                CgroupDriver::Systemd => CgroupDriver::Cgroupfs,
                CgroupDriver::Cgroupfs => CgroupDriver::Systemd,
            };
        });
        if self.facts.node.handler.cgroup_writable {
            self.ask(of("cgroup_writable"), |facts| facts.node.handler.cgroup_writable = false);
        }
        if self.facts.node.handler.all_devices_allowed {
            self.ask(of("privileged_without_host_devices_all_devices_allowed"), |facts| {
                facts.node.handler.all_devices_allowed = false;
            });
        }
        if let Some(base) = self.facts.node.handler.base_spec.clone() {
            let mut left = BASE_PLACES_MAX;
            self.ask_about_base(&base, &base, &mut Vec::new(), &mut left);
        }
    }

    /// Changes the base spec place by place; says whether any made a difference.
    fn ask_about_base(&mut self, base: &Value, part: &Value, at: &mut Vec<String>, left: &mut usize) -> bool {
        let names: Vec<String> = match part {
            Value::Object(map) => map.keys().cloned().collect(),
            Value::Array(list) => (0..list.len()).map(|place| place.to_string()).collect(),
            _ => Vec::new(),
        };
        let mut any = false;
        for name in &names {
            at.push(name.clone());
            let part = match part {
                Value::Array(list) => name.parse().ok().and_then(|place: usize| list.get(place)),
                other => other.get(name),
            };
            any |= part.is_some_and(|part| self.ask_about_base(base, part, at, left));
            at.pop();
        }
        if any || at.is_empty() || *left == 0 {
            return any;
        }
        let source = Source::Handler(format!("base_runtime_spec /{}", at.join("/")));
        for values in [Values::of(part), Values::nothing()] {
            for change in values {
                *left = left.saturating_sub(1);
                let mut other = base.clone();
                change.make(&mut other, at);
                if self.ask(source.clone(), |facts| facts.node.handler.base_spec = Some(other)) {
                    return true;
                }
            }
        }
        false
    }

    fn ask_about_config(&mut self) {
        let of = |key: &str| Source::Config(key.into());
        self.ask(of("root"), |facts| facts.node.folders.0 = OTHER.into());
        self.ask(of("state"), |facts| facts.node.folders.1 = OTHER.into());
        self.ask(of("containerd.namespace"), |facts| facts.node.namespace = OTHER.into());
        self.ask(of("sandbox.unprivileged_ports"), |facts| facts.node.sandbox.unprivileged_ports = false);
        self.ask(of("sandbox.unprivileged_icmp"), |facts| facts.node.sandbox.unprivileged_icmp = false);
        self.ask(of("container.unset_seccomp_profile"), |facts| {
            facts.node.container.unset_seccomp_profile.clear();
        });
        if self.facts.node.container.disable_proc_mount {
            self.ask(of("container.disable_proc_mount"), |facts| {
                facts.node.container.disable_proc_mount = false;
            });
        }
        self.ask(of("container.device_ownership_from_security_context"), |facts| {
            facts.node.container.device_ownership_from_security_context = false;
        });
    }

    fn ask_about_host(&mut self) {
        let of = |fact: &str| Source::Host(fact.into());
        self.ask(of("cgroup version"), |facts| facts.node.host.cgroup_v2 ^= true);
        self.ask(of("options of the cgroup mount"), |facts| facts.node.host.cgroup_mount_options.clear());
        self.ask(of("capabilities of the kernel"), |facts| facts.node.host.capabilities = 0);
        self.ask(of("AppArmor is in force"), |facts| facts.node.host.apparmor = Support::Absent);
        self.ask(of("name"), |facts| facts.node.host.hostname = OTHER.into());
        self.ask(of("kernel version"), |facts| facts.node.host.kernel = (0, 0));
        self.ask(of("swap can be limited"), |facts| facts.node.host.swap_controller = false);
        self.ask(of("huge pages can be limited"), |facts| facts.node.host.hugetlb_controller = false);
        if self.facts.node.host.restrict_oom_score_adj {
            self.ask(of("OOM score of the server, which is the lowest"), |facts| {
                facts.node.host.restrict_oom_score_adj = false;
            });
        }
        if self.facts.node.host.selinux.is_some() {
            self.ask(of("SELinux policy, and selinux_options"), |facts| facts.labels = Default::default());
        }
        self.ask_profile();
    }

    /// The text of the node's seccomp profile.
    fn ask_profile(&mut self) {
        let given = match &self.facts.subject {
            Subject::Pause(profile) => profile.as_ref(),
            Subject::Container(container) => container.gathered.seccomp.as_ref(),
        };
        let Some(given) = given else { return };
        let source = Source::Host(format!("file {}", given.path));
        self.ask(source, |facts| {
            let profile = match &mut facts.subject {
                Subject::Pause(profile) => profile.as_mut(),
                Subject::Container(container) => container.gathered.seccomp.as_mut(),
            };
            if let Some(profile) = profile {
                profile.text = format!(r#"{{"defaultAction":"{OTHER}"}}"#);
            }
        });
    }

    fn ask_about_server(&mut self) {
        let of = |what: &str| Source::Server(what.into());
        self.ask(of("id of the pod"), |facts| facts.pod.id = OTHER.into());
        self.ask(of("the pod's network namespace"), |facts| facts.pod.netns = OTHER.into());
        if self.container().is_none() {
            return;
        }
        let mut ask = |what: &str, change: fn(&mut ContainerFacts)| {
            self.ask(of(what), |facts| {
                if let Subject::Container(container) = &mut facts.subject {
                    change(container);
                }
            });
        };
        ask("id of the container", |container| container.id = OTHER.into());
        ask("pid of the pod's pause", |container| container.pause_pid = 54321);
        ask("pid of the target container", |container| {
            container.target_pid = container.target_pid.map(|_| 54321);
        });
    }
}

/// A passwd or group file in which the numbers of those columns are others.
fn shifted(file: &[u8], columns: &[usize]) -> Vec<u8> {
    let line = |line: &str| {
        let mut fields: Vec<String> = line.split(':').map(str::to_owned).collect();
        for column in columns {
            if let Some(field) = fields.get_mut(*column)
                && let Ok(number) = field.parse::<u32>()
            {
                *field = number.saturating_add(1).to_string();
            }
        }
        fields.join(":")
    };
    String::from_utf8_lossy(file).lines().map(line).collect::<Vec<_>>().join("\n").into_bytes()
}

#[cfg(test)]
mod tests;
