//! `explain`, of requests of all sorts: its spec is the server's, and every field has an
//! origin that is true.

use longshore::config::file::ContainerSection;
use longshore::config::{Config, Overrides};
use longshore::explain::{
    ContainerFacts, Facts, ImageFacts, NodeFacts, Origin, PodFacts, Source, Subject, explained,
};
use longshore::proto::cri::{ContainerConfig, ContainerMetadata, PodSandboxConfig};
use longshore::spec::{ImageConfig, pause_seccomp, pid_target, to_json};
use serde_json::Value;

use crate::random::Random;
use crate::translation::{Case, ID, PAUSE_PID, POD_ID};

/// How many requests; each is translated a hundred times and more.
fn cases() -> u64 {
    std::env::var("LONGSHORE_TEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

fn node(case: &Case) -> NodeFacts {
    let file = Config::load(None, &Overrides::default()).expect("the defaults").file;
    let mut sandbox = file.sandbox;
    (sandbox.unprivileged_ports, sandbox.unprivileged_icmp) = (true, true);
    NodeFacts {
        handler: case.handler(),
        features: case.features,
        host: longshore::spec::Host { selinux: None, ..case.host.clone() },
        namespace: "k8s.io".into(),
        folders: ("/r".into(), "/s".into()),
        container: ContainerSection::default(),
        sandbox,
    }
}

fn pause(case: &Case) -> Option<Facts> {
    let seccomp = case.local(&pause_seccomp(&case.pod, "").ok()?);
    let config = ImageConfig { entrypoint: vec!["/pause".into()], ..ImageConfig::default() };
    let (passwd, group) = case.accounts.clone();
    Some(Facts {
        node: node(case),
        pod: PodFacts { id: ID.into(), config: case.pod.clone(), netns: "/run/netns/x".into() },
        image: ImageFacts { config, name: "pause".into(), passwd, group },
        labels: Default::default(),
        subject: Subject::Pause(seccomp),
    })
}

fn container(case: &Case) -> Option<Facts> {
    let node = node(case);
    let gathered = case.gathered(&node.container).ok()?;
    let (passwd, group) = case.accounts.clone();
    let container = ContainerFacts {
        id: ID.into(),
        config: case.config.clone(),
        pause_pid: PAUSE_PID,
        target_pid: pid_target(&case.config).map(|_| 9),
        gathered,
    };
    Some(Facts {
        node,
        pod: PodFacts { id: POD_ID.into(), config: case.pod.clone(), netns: "/run/netns/x".into() },
        image: ImageFacts { config: case.image.clone(), name: "image".into(), passwd, group },
        labels: Default::default(),
        subject: Subject::Container(Box::new(container)),
    })
}

/// The same request, which says nothing but what there must be.
fn bare(facts: &Facts) -> Facts {
    let mut bare = facts.clone();
    bare.pod.config = PodSandboxConfig { metadata: Some(Default::default()), ..Default::default() };
    bare.image = ImageFacts {
        config: ImageConfig { entrypoint: vec!["/x".into()], ..Default::default() },
        ..Default::default()
    };
    bare.node.handler.base_spec = None;
    match &mut bare.subject {
        Subject::Pause(profile) => *profile = None,
        Subject::Container(container) => {
            let metadata = Some(ContainerMetadata::default());
            container.config = ContainerConfig { metadata, ..ContainerConfig::default() };
            container.gathered = Default::default();
            container.target_pid = None;
        }
    }
    bare
}

/// Pointers of all values without parts.
fn leaves(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (name, value) in map {
                leaves(value, format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), found);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for (place, value) in list.iter().enumerate() {
                leaves(value, format!("{at}/{place}"), found);
            }
        }
        _ => found.push(at),
    }
}

fn has_origin(pointer: &str, origins: &[Origin]) -> bool {
    // Names of system calls have one together.
    let list = pointer.rsplit_once("/names/").map(|(before, _)| format!("{before}/names"));
    origins
        .iter()
        .any(|origin| origin.pointer == *list.as_deref().unwrap_or(pointer) && !origin.sources.is_empty())
}

/// Whether a default field is one of a spec that nobody has asked anything of. Elements are
/// compared without their places.
fn is_in(spec: &Value, origin: &Origin) -> bool {
    let parts: Vec<&str> = origin.pointer.split('/').skip(1).collect();
    fn look(value: &Value, parts: &[&str], wanted: &Value) -> bool {
        match (value, parts) {
            (value, []) => value == wanted,
            (Value::Array(list), [_, rest @ ..]) => list.iter().any(|value| look(value, rest, wanted)),
            (value, [name, rest @ ..]) => {
                let name = name.replace("~1", "/").replace("~0", "~");
                value.get(&name).is_some_and(|value| look(value, rest, wanted))
            }
        }
    }
    look(spec, &parts, &origin.value)
}

/// A spec, how many of its fields have an origin, and what is wrong.
fn check(seed: u64, facts: &Facts, want: &longshore::spec::Spec) -> (usize, Vec<String>) {
    let (spec, origins) = explained(facts).expect("it translates");
    assert_eq!(to_json(&spec), to_json(want), "seed {seed}: not the spec that the server makes");
    let value: Value = serde_json::from_slice(&to_json(&spec)).expect("JSON");
    let mut all = Vec::new();
    leaves(&value, String::new(), &mut all);
    let mut wrong: Vec<String> = all
        .iter()
        .filter(|pointer| !has_origin(pointer, &origins))
        .map(|pointer| format!("seed {seed}: {pointer} has no origin"))
        .collect();
    let bare = serde_json::to_value(bare(facts).translate().expect("nothing asked for")).expect("JSON");
    let defaults = origins.iter().filter(|origin| origin.sources == [Source::Default]);
    for origin in defaults.filter(|origin| !is_in(&bare, origin)) {
        wrong.push(format!("seed {seed}: {} = {} is said to be the default", origin.pointer, origin.value));
    }
    (all.len(), wrong)
}

/// The spec of `explain` is the translation's to the byte, each leaf has an origin, and what is
/// called a default is in a spec of which nothing was asked.
#[test]
fn every_field_of_every_spec_has_a_true_origin() {
    let (mut specs, mut fields, mut wrong) = (0, 0, Vec::new());
    for seed in 0..cases() {
        let mut case = Case::generate(&mut Random::new(seed));
        case.host.selinux = None;
        let made = case.translate();
        for (facts, want) in [(pause(&case), made.pause), (container(&case), made.container)] {
            let (Some(facts), Ok(want)) = (facts, want) else { continue };
            let (count, found) = check(seed, &facts, &want);
            (specs, fields) = (specs + 1, fields + count);
            wrong.extend(found);
        }
    }
    println!("{specs} specs, {fields} fields");
    assert!(specs > 0 && wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
