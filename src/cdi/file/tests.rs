use super::*;

fn json(text: &str) -> Result<Spec, String> {
    parse(text, true)
}

/// A spec of one device with these edits.
fn with_edits(version: &str, edits: &str) -> Result<Spec, String> {
    json(&format!(
        r#"{{"cdiVersion": "{version}", "kind": "v.com/c", "devices": [{{"name": "a", "containerEdits": {edits}}}]}}"#
    ))
}

#[test]
fn all_fields_are_read() {
    let text = r#"
# As vendors' tools write it.
---
cdiVersion: 1.1.0
kind: vendor.com/net.gpu
annotations: {vendor.com/driver: "550"}
devices:
- name: 0
  annotations:
    a: b
  containerEdits:
    env: [A=1, B=x=y]
    deviceNodes:
    - path: /dev/gpu0
      hostPath: /dev/real0
      type: c
      major: 195
      minor: 3
      fileMode: 0660
      permissions: rw
      uid: 0
      gid: 44
    - {path: /dev/gpuctl}
    netDevices:
    - hostInterfaceName: eth9
      name: gpu0
    mounts:
    - hostPath: /usr/lib/x.so
      containerPath: /usr/lib/x.so
      options: [ro, nosuid, bind]
      type: none
    hooks:
    - hookName: createContainer
      path: /usr/bin/hook
      args: [hook, "yes", 12]
      env: [X=1]
      timeout: 3
    intelRdt:
      closID: gold
      l3CacheSchema: L3:0=f
      memBwSchema: MB:0=50
      schemata: [L2:0=3]
      enableMonitoring: true
    additionalGids: [0, 5]
containerEdits:
  env:
  hooks: null
"#;
    let spec = parse(text, false).expect("valid");
    let device = &spec.devices[0];
    assert_eq!((spec.kind.as_str(), device.name.as_str()), ("vendor.com/net.gpu", "0"));
    let edits = &device.container_edits;
    let node = &edits.device_nodes[0];
    assert_eq!((node.host_path.as_str(), node.major, node.minor), ("/dev/real0", 195, 3));
    assert_eq!((node.file_mode, node.uid, node.gid), (Some(0o660), Some(0), Some(44)));
    assert_eq!(edits.net_devices[0].name, "gpu0");
    assert_eq!(edits.mounts[0].options, ["ro", "nosuid", "bind"]);
    assert_eq!(edits.additional_gids, [0, 5]);
    let hook = serde_json::to_value(&edits.hooks[0]).expect("JSON");
    let oci = serde_json::json!({"path": "/usr/bin/hook", "args": ["hook", "yes", "12"], "env": ["X=1"], "timeout": 3});
    assert_eq!(hook, oci);
    let rdt = serde_json::to_value(edits.intel_rdt.as_ref().expect("there")).expect("JSON");
    let oci = serde_json::json!({
        "closID": "gold", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=50",
        "schemata": ["L2:0=3"], "enableMonitoring": true,
    });
    assert_eq!(rdt, oci);
    assert_eq!(spec.container_edits, Edits::default());
}

#[test]
fn a_younger_field_needs_a_younger_version() {
    for (since, older, edits) in [
        ("0.4.0", "0.3.0", r#"{"mounts": [{"hostPath": "/a", "containerPath": "/a", "type": "bind"}]}"#),
        ("0.5.0", "0.4.0", r#"{"deviceNodes": [{"path": "/dev/a", "hostPath": "/dev/b"}]}"#),
        ("0.7.0", "0.6.0", r#"{"intelRdt": {"closID": "a"}}"#),
        ("0.7.0", "0.6.0", r#"{"additionalGids": [7]}"#),
        ("1.1.0", "1.0.0", r#"{"netDevices": [{"hostInterfaceName": "a", "name": "b"}]}"#),
        ("1.1.0", "1.0.0", r#"{"intelRdt": {"schemata": ["MB:0=1"]}}"#),
        ("1.1.0", "0.8.0", r#"{"intelRdt": {"enableMonitoring": true}}"#),
    ] {
        with_edits(since, edits).expect(edits);
        with_edits(&format!("v{since}"), edits).expect(edits);
        let wrong = with_edits(older, edits).expect_err(edits);
        assert!(wrong.contains(&format!("needs {since}")), "{wrong}");
    }
    let of = |version: &str, kind: &str, device: &str| {
        json(&format!(
            r#"{{"cdiVersion": "{version}", "kind": "{kind}", "devices": [{{"name": "{device}", "containerEdits": {{"env": ["A="]}}}}]}}"#
        ))
    };
    assert!(of("0.4.0", "v.com/c", "1").is_err() && of("0.5.0", "v.com/c", "1").is_ok());
    assert!(of("0.5.0", "v.com/c.d", "a").is_err() && of("0.6.0", "v.com/c.d", "a").is_ok());
    for version in ["0.2.0", "1.2.0", "1.1", ""] {
        assert!(of(version, "v.com/c", "a").is_err(), "{version}");
    }
    // These two went again.
    let monitoring = r#"{"intelRdt": {"enableCMT": true}}"#;
    assert!(with_edits("0.7.0", monitoring).is_ok() && with_edits("1.1.0", monitoring).is_err());
}

#[test]
fn what_is_not_valid_is_told() {
    for (edits, want) in [
        ("{}", "has no containerEdits"),
        (r#"{"env": ["A"]}"#, "not NAME=VALUE"),
        (r#"{"env": ["=A"]}"#, "not NAME=VALUE"),
        (r#"{"deviceNodes": [{"path": ""}]}"#, "no path"),
        (r#"{"deviceNodes": [{"path": "/dev/a", "type": "x"}]}"#, "is not b, c, u or p"),
        (r#"{"deviceNodes": [{"path": "/dev/a", "permissions": "rx"}]}"#, "not made of r, w and m"),
        (r#"{"hooks": [{"hookName": "late", "path": "/a"}]}"#, "is not known"),
        (r#"{"hooks": [{"hookName": "prestart", "path": ""}]}"#, "has no path"),
        (r#"{"hooks": [{"hookName": "prestart", "path": "/a", "timeout": 0}]}"#, "greater than 0"),
        (r#"{"mounts": [{"hostPath": "", "containerPath": "/a"}]}"#, "needs hostPath"),
        (r#"{"intelRdt": {"closID": "a/b"}}"#, "name of a folder"),
        (r#"{"intelRdt": {"closID": ".."}}"#, "name of a folder"),
        (r#"{"netDevices": [{"hostInterfaceName": "a", "name": ""}]}"#, "needs hostInterfaceName"),
        (
            r#"{"netDevices": [{"hostInterfaceName": "a", "name": "x"}, {"hostInterfaceName": "b", "name": "x"}]}"#,
            "is there twice",
        ),
        (r#"{"env": ["A=1"], "volumes": []}"#, "unknown field"),
        (r#"{"mounts": [{"hostPath": "/a"}]}"#, "missing field"),
    ] {
        let wrong = with_edits("1.1.0", edits).expect_err(edits);
        assert!(wrong.contains(want), "{edits}: {wrong}");
    }
    assert!(with_edits("1.1.0", r#"{"deviceNodes": [{"path": "/dev/a", "permissions": "none"}]}"#).is_ok());
    assert!(with_edits("1.1.0", r#"{"intelRdt": {"closID": "/"}}"#).is_ok());
    let none = r#"{"cdiVersion": "0.5.0", "kind": "v.com/c", "devices": []}"#;
    assert_eq!(json(none).expect_err("none"), "it has no devices");
    let twice = r#"{"cdiVersion": "0.5.0", "kind": "v.com/c", "devices": [
        {"name": "a", "containerEdits": {"env": ["A="]}}, {"name": "a", "containerEdits": {"env": ["A="]}}]}"#;
    assert_eq!(json(twice).expect_err("twice"), "device \"a\" is there twice");
    for kind in ["gpu", "v.com/", "/gpu", "v.com/a/b", "0.com/x"] {
        let spec = format!(
            r#"{{"cdiVersion": "0.5.0", "kind": "{kind}", "devices": [{{"name": "a", "containerEdits": {{"env": ["A="]}}}}]}}"#
        );
        assert!(json(&spec).is_err(), "{kind}");
    }
    for text in ["", "{", "- a", "kind: [", "cdiVersion: 0.5.0\ncdiVersion: 0.5.0"] {
        assert!(parse(text, false).is_err() && parse(text, true).is_err(), "{text}");
    }
}

#[test]
fn annotations_have_kubernetes_keys() {
    for good in ["a", "A-b_c.D", "vendor.com/x", "v-1.com/X"] {
        assert!(is_annotation_key(good), "{good}");
    }
    for bad in ["", "-a", "a-", "a/b/c", "/a", "v.com/", "v..com/a", "a b", &"x".repeat(64)] {
        assert!(!is_annotation_key(bad), "{bad}");
    }
}
