//! The node, looked at and left as it is: what decides a spec besides the requests.

use std::path::PathBuf;
use std::time::Duration;

use super::facts::{ContainerFacts, Facts, ImageFacts, NodeFacts, PodFacts, Subject};
use super::manifest::Around;
use crate::cdi::Cdi;
use crate::config::{Config, Handler};
use crate::container::features;
use crate::containerd::Containerd;
use crate::error::{Context, Result, invalid, precondition};
use crate::flow::{self, Disk, on_disk};
use crate::image::{self, Images};
use crate::network::survey;
use crate::proto::cri::{ContainerConfig, PodSandboxConfig};
use crate::spec::selinux::{self, Labels, Options, Policy};
use crate::spec::{self, Features, Host, ImageConfig, Modes, apparmor, gather, mounts, process};
use crate::state::Paths;
use crate::sys;
use crate::sys::apparmor::Support;

/// How long containerd, and an OCI runtime, may take for an answer.
const LIMIT: Duration = Duration::from_secs(5);
/// The level of a pod that asks for none; the server takes one that nobody has.
const SOME_LEVEL: &str = "s0:c0,c1";

/// Files that stand for what containerd would tell of an image.
#[derive(Clone, Debug, Default)]
pub struct ImageFiles {
    /// Its config.
    pub config: Option<PathBuf>,
    /// Its /etc/passwd.
    pub passwd: Option<PathBuf>,
    /// Its /etc/group.
    pub group: Option<PathBuf>,
}

/// What the server would make or find when a pod is made.
#[derive(Clone, Debug)]
pub struct Ids {
    /// The pod.
    pub pod: String,
    /// The container.
    pub container: String,
    /// The pinned network namespace.
    pub netns: PathBuf,
    /// The pid of pause.
    pub pause_pid: u32,
    /// The pid of the container whose pid namespace is joined.
    pub target_pid: u32,
    /// The labels of the pod and of the container, where they are known.
    pub labels: Option<(Labels, Labels)>,
    /// Where binds come from, by target: of folders whose names the server makes up.
    pub sources: Vec<(String, PathBuf)>,
}

impl Ids {
    /// Words in their places: the server makes them up.
    #[must_use]
    pub fn unknown(config: &Config) -> Ids {
        Ids {
            pod: "POD-ID".into(),
            container: "CONTAINER-ID".into(),
            netns: config.file.cni.netns_dir.join("cni-UUID"),
            pause_pid: 0,
            target_pid: 0,
            labels: None,
            sources: Vec::new(),
        }
    }
}

impl Ids {
    fn source(&self, target: &str) -> Option<PathBuf> {
        self.sources.iter().find(|(known, _)| known == target).map(|(_, source)| source.clone())
    }
}

/// The node.
pub struct Node {
    pub(super) config: Config,
    pub(super) host: Host,
    pub(super) containerd: Containerd,
    /// Why containerd does not answer.
    silence: Option<String>,
    images: Images,
    cdi: Cdi,
    files: ImageFiles,
    /// Whether the OCI runtime of the pod tells what it can.
    knows_features: bool,
    /// What could not be looked at, and what would be made.
    pub(super) said: Vec<String>,
}

impl Node {
    /// Looks at the node as a server with `config` would.
    ///
    /// # Errors
    /// InvalidArgument for a namespace that is none.
    pub async fn look(config: Config, files: ImageFiles) -> Result<Node> {
        let section = &config.file.containerd;
        let containerd = Containerd::new(&section.address, &section.namespace, LIMIT)?;
        let silence = containerd.version(LIMIT).await.err().map(|error| error.message().to_owned());
        let asked = config.clone();
        let host = flow::blocking(move || Ok(gather::host_for(&asked))).await?;
        let mut said = Vec::new();
        if host.restrict_oom_score_adj {
            let own = host.oom_score_adj;
            said.push(format!(
                "OOM scores are kept at or above the server's own, which is taken to be {own}, as here"
            ));
        }
        Ok(Node {
            images: Images::new(containerd.clone(), &config),
            cdi: Cdi::new(config.file.container.enable_cdi, &config.file.container.cdi_spec_dirs),
            host,
            containerd,
            silence,
            files,
            knows_features: false,
            said,
            config,
        })
    }

    pub(super) fn say(&mut self, what: impl Into<String>) {
        let what = what.into();
        if !self.said.contains(&what) {
            self.said.push(what);
        }
    }

    async fn node_facts(&mut self, handler: &Handler) -> NodeFacts {
        let features = match features::told(&self.containerd, handler, LIMIT).await {
            Ok(json) => gather::parse_features(&json, &self.host),
            Err(error) => Err(error),
        };
        self.knows_features = features.is_ok();
        let features = features.unwrap_or_else(|error| {
            let name = &handler.name;
            self.say(format!(
                "what the runtime of handler {name:?} can is not known, so it has nothing: {error}"
            ));
            Features::default()
        });
        let file = &self.config.file;
        NodeFacts {
            handler: handler.clone(),
            features,
            host: self.host.clone(),
            namespace: file.containerd.namespace.clone(),
            folders: (file.root.clone(), file.state.clone()),
            container: file.container.clone(),
            sandbox: file.sandbox.clone(),
        }
    }

    /// Everything that decides the spec of a pod's pause.
    ///
    /// # Errors
    /// What RunPodSandbox would refuse; an image that is not known.
    pub async fn pod(&mut self, ids: &Ids, config: &PodSandboxConfig, handler: &Handler) -> Result<Facts> {
        let node = self.node_facts(handler).await;
        Modes::of_pod(config)?.require_startable(&handler.name, node.features)?;
        let profile = spec::pause_seccomp(config, &node.container.unset_seccomp_profile)?;
        let seccomp = on_disk(Disk::Host, move || gather::local_seccomp(&profile)).await?;
        let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let options = Options::of(context.and_then(|context| context.selinux_options.as_ref()))?;
        let labels = match &ids.labels {
            Some((pod, _)) => pod.clone(),
            None => self.labels(&options)?,
        };
        let image = match self.images.pause_name() {
            (name, Some(config)) => ImageFacts { config, name, ..ImageFacts::default() },
            (name, None) => self.image_in_containerd(&name).await?,
        };
        let pod = PodFacts { id: ids.pod.clone(), config: config.clone(), netns: ids.netns.clone() };
        Ok(Facts { node, pod, image, labels, subject: Subject::Pause(seccomp) })
    }

    /// Everything that decides the spec of a container in the pod of `pause`.
    ///
    /// # Errors
    /// What CreateContainer would refuse; an image that is not known.
    pub async fn container(&mut self, ids: &Ids, pause: &Facts, config: &ContainerConfig) -> Result<Facts> {
        let mut node = pause.node.clone();
        if config.metadata.is_none() {
            return Err(invalid("the container config has no metadata"));
        }
        process::check_stop_signal(config)?;
        Modes::of_container(&pause.pod.config, config)?;
        mounts::check(&config.mounts, node.features)?;
        let reference = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
        let image = self.image(reference).await?;
        let context = config.linux.clone().unwrap_or_default().security_context.unwrap_or_default();
        let labels = match &ids.labels {
            Some((_, container)) => container.clone(),
            None => {
                let own = Options::of(context.selinux_options.as_ref())?;
                let is_pods = own.is_empty();
                self.labels(&if is_pods { Options::of_label(&pause.labels.process)? } else { own })?
            }
        };
        let profile = apparmor::asked(&context)?;
        if node.host.apparmor == Support::InForce {
            node.host.apparmor_profiles = flow::blocking(|| Ok(sys::apparmor::loaded())).await?;
            if apparmor::lacks_default(&profile, context.privileged, &node.host) {
                self.say(format!("the AppArmor profile {:?} would be loaded first", apparmor::DEFAULT));
                node.host.apparmor_profiles.push(apparmor::DEFAULT.to_owned());
            }
        }
        let gathered = self.gather(ids, pause, config, &image.config).await?;
        let container = ContainerFacts {
            id: ids.container.clone(),
            config: config.clone(),
            pause_pid: ids.pause_pid,
            target_pid: spec::pid_target(config).map(|_| ids.target_pid),
            gathered,
        };
        let (pod, subject) = (pause.pod.clone(), Subject::Container(Box::new(container)));
        Ok(Facts { node, pod, image, labels, subject })
    }

    /// What the host says of what a container asks for. Nothing is made.
    async fn gather(
        &mut self,
        ids: &Ids,
        pause: &Facts,
        config: &ContainerConfig,
        image: &ImageConfig,
    ) -> Result<gather::Gathered> {
        let features = self.knows_features.then_some(pause.node.features);
        let paths = Paths::new(&pause.node.folders.0, &pause.node.folders.1);
        let (pod_id, id) = (ids.pod.clone().into(), ids.container.clone().into());
        let folder = paths.pod_image_volumes(&pod_id);
        let mut image_volumes = Vec::new();
        for (place, given) in config.mounts.iter().enumerate() {
            let known = ids.source(&given.container_path);
            let source = given.image.as_ref().map(|_| match known {
                Some(known) => known,
                None => folder.join(format!("IMAGE-{place}")).join(&given.image_sub_path),
            });
            let is_guess = given.image.is_some() && ids.source(&given.container_path).is_none();
            image_volumes.push(source);
            if is_guess {
                self.say(format!("mounts[{place}]: where the image would be mounted depends on its digest"));
            }
        }
        let names = self.cdi.asked(config)?;
        let volumes_dir = paths.container_root(&id).join("volumes");
        let prepared = gather::Prepared { volumes_dir, image_volumes, leaves_missing: true };
        let (cdi, asked, image) = (self.cdi.clone(), config.clone(), image.clone());
        let (pod, options) = (pause.pod.config.clone(), self.config.clone());
        let mut gathered = on_disk(Disk::Host, move || {
            let classes = gather::classes::of(&asked, &pod, &options)?;
            let edits = cdi.edits(&names)?;
            if !edits.net_devices.is_empty() && features.is_some_and(|features| !features.net_devices) {
                return Err(precondition(
                    "a CDI device has network devices, which the runtime handler has not",
                ));
            }
            let gathered = gather::container(&asked, &image, &prepared, &options.file.container)?;
            Ok(gather::Gathered { edits, classes, ..gathered })
        })
        .await?;
        // Their names are made up: by the server as it likes, here in order.
        for (place, (folder, target)) in gathered.volumes.iter_mut().enumerate() {
            match ids.source(target) {
                Some(known) => *folder = known,
                None => folder.set_file_name(format!("VOLUME-{place}")),
            }
        }
        Ok(gathered)
    }

    fn labels(&self, options: &Options) -> Result<Labels> {
        let policy: Option<&Policy> = self.host.selinux.as_ref();
        policy.map_or(Ok(Labels::default()), |policy| selinux::labels(policy, options, SOME_LEVEL))
    }

    /// What the image of a container says of it.
    ///
    /// # Errors
    /// An image that is not known.
    pub(super) async fn image_of(&mut self, config: &ContainerConfig) -> Result<ImageConfig> {
        let reference = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
        Ok(self.image(reference).await?.config)
    }

    /// What decides the requests that a kubelet makes of a manifest.
    ///
    /// # Errors
    /// InvalidArgument for a handler that is not configured.
    pub fn around(&self, handler: &str) -> Result<Around> {
        let known = self.config.handler(handler);
        let known = known.ok_or_else(|| invalid(format!("runtime handler {handler:?} is not configured")))?;
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = total.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0);
        Ok(Around { driver: known.cgroup_driver, cgroup_v2: self.host.cgroup_v2, memory_bytes: kib << 10 })
    }

    /// An image: of the files that stand for it, or of containerd.
    async fn image(&mut self, reference: &str) -> Result<ImageFacts> {
        if reference.is_empty() {
            return Err(invalid("the container config names no image"));
        }
        let read = |path: &PathBuf| std::fs::read(path).context(|| format!("read {path:?}"));
        let mut facts = match &self.files.config {
            Some(path) => ImageFacts {
                config: image::read_config(&read(path)?).context(|| format!("{path:?}"))?,
                name: image::full_name(reference),
                ..ImageFacts::default()
            },
            None => self.image_in_containerd(reference).await?,
        };
        if let Some(path) = &self.files.passwd {
            facts.passwd = read(path)?;
        }
        if let Some(path) = &self.files.group {
            facts.group = read(path)?;
        }
        if self.files.config.is_some() && (self.files.passwd.is_none() || self.files.group.is_none()) {
            self.say("the users and groups in the image are not known without --passwd and --group: as if it had none");
        }
        Ok(facts)
    }

    async fn image_in_containerd(&mut self, reference: &str) -> Result<ImageFacts> {
        if let Some(silence) = &self.silence {
            return Err(precondition(format!(
                "image {reference:?} is not known: give its config with --image-config ({silence})"
            )));
        }
        let Some((image, layers)) = self.images.look(reference).await? else {
            return Err(precondition(format!(
                "image {reference:?} is not on this node: give its config with --image-config"
            )));
        };
        let (passwd, group) = match self.images.look_at_accounts(&layers).await {
            Ok(texts) => texts,
            Err(error) => {
                self.say(format!(
                    "the users and groups in image {reference:?} are not known, as if it had none: {error}"
                ));
                Default::default()
            }
        };
        Ok(ImageFacts { name: image.name().to_owned(), config: image.config, passwd, group })
    }

    /// The networks that pods of a handler get.
    pub(super) async fn networks(&mut self, handler: &Handler) -> Vec<survey::Chosen> {
        let cni = &self.config.file.cni;
        let (path, max) = match &handler.cni {
            Some((path, max)) => (path.clone(), if *max == 0 { cni.max_conf_num } else { *max }),
            None => (cni.conf_dir.clone(), cni.max_conf_num),
        };
        let folder = flow::blocking(move || Ok(survey::folder(&path, max))).await;
        match folder.map_err(|error| error.message().to_owned()).and_then(|folder| folder.chosen) {
            Ok(chosen) => chosen,
            Err(error) => {
                self.say(format!("there is no pod network: {error}"));
                Vec::new()
            }
        }
    }
}
