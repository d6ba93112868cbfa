//! Results of plugins: their versions, and what becomes of several.

use super::*;
use proptest::prelude::*;

/// The same result in the form of each version.
fn in_version(version: &str) -> Value {
    match version {
        "0.1.0" | "0.2.0" => json!({
            "cniVersion": version,
            "ip4": {"ip": "10.1.2.3/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
            "ip6": {"ip": "fd00::5/64", "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
            "dns": {"nameservers": ["10.1.0.1"]},
        }),
        _ => {
            let mut value = json!({
                "cniVersion": version,
                "interfaces": [{"name": "br0"}, {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/ns"}],
                "ips": [
                    {"address": "10.1.2.3/16", "gateway": "10.1.0.1", "interface": 1},
                    {"address": "fd00::5/64", "interface": 1},
                ],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00::1"}],
                "dns": {"nameservers": ["10.1.0.1"]},
            });
            if version.starts_with("0.") {
                value["ips"][0]["version"] = "4".into();
                value["ips"][1]["version"] = "6".into();
            }
            value
        }
    }
}

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[test]
fn every_version_converts_into_every_other() {
    for from in VERSIONS {
        for to in VERSIONS {
            let converted = convert(in_version(from), to).expect("converts");
            let mut want = in_version(to);
            if from < "0.3.0" && to >= "0.3.0" {
                // Nothing is known of interfaces.
                want.as_object_mut().expect("an object").remove("interfaces");
                for ip in want["ips"].as_array_mut().expect("a list") {
                    ip.as_object_mut().expect("an object").remove("interface");
                }
            }
            assert_eq!(converted, want, "{from} to {to}");
        }
    }
}

#[test]
fn what_a_plugin_printed_in_its_own_version_is_kept_as_it_is() {
    let printed = br#"{"cniVersion":"1.0.0","ips":[],"vendor":{"x":1},"interfaces":null}"#;
    let value = from_output(printed, "1.0.0").expect("valid");
    assert_eq!(value, json!({"cniVersion": "1.0.0", "ips": [], "vendor": {"x": 1}, "interfaces": null}));
    let value = from_output(printed, "1.1.0").expect("valid");
    assert_eq!((&value["cniVersion"], &value["vendor"]["x"]), (&json!("1.1.0"), &json!(1)));
}

#[test]
fn a_result_without_version_is_of_the_configurations() {
    for (config, want) in [("", "0.1.0"), ("0.2.0", "0.2.0"), ("1.0.0", "1.0.0")] {
        for output in ["null", "{}", r#"{"cniVersion":""}"#] {
            let value = from_output(output.as_bytes(), config).expect("valid");
            assert_eq!(value, json!({ "cniVersion": want }), "{config} {output}");
        }
    }
}

#[test]
fn what_is_no_result_is_told() {
    let cases = [
        ("", "not valid JSON"),
        ("oops", "not valid JSON: expected value at line 1 column 1: \"oops\""),
        ("{} {}", "not valid JSON"),
        ("[]", "not a JSON object"),
        (r#"{"cniVersion":"1.2.0"}"#, "CNI version \"1.2.0\": known is up to 1.1.0"),
    ];
    for (output, want) in cases {
        let error = from_output(output.as_bytes(), "1.0.0").expect_err(output).to_string();
        assert!(error.contains(want), "{output:?} gave {error:?}");
    }
    let cases = [
        (json!({"cniVersion": "1.0.0", "ips": [{}]}), "missing field `address`"),
        (json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1"}]}), "\"10.0.0.1\" is not"),
        (json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/33"}]}), "\"10.0.0.1/33\" is not"),
        (json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/8", "interface": 0}]}), "number 0 of 0"),
        (json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/8", "interface": -1}]}), "number -1"),
        (json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/8", "gateway": "x"}]}), "gateway \"x\""),
        (json!({"cniVersion": "0.4.0", "routes": [{"dst": "default"}]}), "\"default\" is not"),
        (json!({"cniVersion": "0.2.0", "ip4": {}}), "missing field `ip`"),
    ];
    for (value, want) in cases {
        let error = CniResult::read(&value).expect_err("malformed").to_string();
        assert!(error.contains(want), "{value} gave {error:?}");
    }
    assert!(convert(json!({"cniVersion": "1.0.0"}), "0.2.0").is_err(), "no address at all");
}

fn merged(values: &[(&str, Value)], preference: IpPreference) -> Merged {
    let results: Vec<_> =
        values.iter().map(|(name, value)| (*name, CniResult::read(value).expect("valid"))).collect();
    merge(&results, preference).expect("merges")
}

#[test]
fn the_record_has_the_form_of_the_built_in_plugins() {
    // The values of one of its records.
    let sandbox = "/var/run/netns/cni-4cfb0333-4369-e71d-a748-8f2a7fcddab7";
    let bridge = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"mac": "2a:2d:56:80:0a:a1", "name": "cni0"},
            {"mac": "b2:76:57:0d:47:2a", "name": "vethb52de26d"},
            {"mac": "62:07:9e:17:55:5a", "name": "eth0", "sandbox": sandbox},
        ],
        "ips": [{"address": "10.88.4.231/16", "gateway": "10.88.0.1", "interface": 2}],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    let results =
        [("lo", CniResult::loopback(sandbox, true)), ("eth0", CniResult::read(&bridge).expect("valid"))];
    let merged = merge(&results, IpPreference::Ipv4).expect("merges");
    let host =
        |mac: &str| json!({"IPConfigs": null, "Mac": mac, "PciID": "", "Sandbox": "", "SocketPath": ""});
    let want = json!({
        "DNS": [{}, {}],
        "Interfaces": {
            "cni0": host("2a:2d:56:80:0a:a1"),
            "eth0": {
                "IPConfigs": [{"Gateway": "10.88.0.1", "IP": "10.88.4.231"}],
                "Mac": "62:07:9e:17:55:5a", "PciID": "", "Sandbox": sandbox, "SocketPath": "",
            },
            "lo": {
                "IPConfigs": [{"Gateway": "", "IP": "127.0.0.1"}, {"Gateway": "", "IP": "::1"}],
                "Mac": "00:00:00:00:00:00", "PciID": "", "Sandbox": sandbox, "SocketPath": "",
            },
            "vethb52de26d": host("b2:76:57:0d:47:2a"),
        },
        "Routes": [{"dst": "0.0.0.0/0"}],
    });
    assert_eq!(merged.record, want);
    assert_eq!(merged.ips, ["10.88.4.231".parse::<IpAddr>().expect("an address")]);
}

#[test]
fn nothing_at_all_is_null_in_the_record() {
    let merged = merged(&[], IpPreference::Ipv4);
    assert_eq!((&merged.record["DNS"], &merged.record["Routes"]), (&Value::Null, &Value::Null));
    assert!(merged.ips.is_empty());
    assert_eq!(merged.record["Interfaces"]["eth0"]["IPConfigs"], Value::Null);
}

#[test]
fn addresses_without_interface_belong_to_the_one_attached() {
    let old = in_version("0.2.0");
    let second = json!({"cniVersion": "0.2.0", "ip4": {"ip": "192.168.9.9/24"}});
    let merged = merged(&[("eth0", old), ("eth1", second)], IpPreference::Ipv4);
    assert_eq!(merged.ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.1.2.3", "fd00::5"]);
    assert_eq!(merged.record["Interfaces"]["eth1"]["IPConfigs"][0]["IP"], "192.168.9.9");
}

#[test]
fn host_side_addresses_are_not_the_pods() {
    let value = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "veth1"}, {"name": "eth0"}, {"name": "eth0", "sandbox": "/ns"}],
        "ips": [
            {"address": "169.254.1.1/32", "interface": 0},
            {"address": "192.168.0.1/24", "interface": 1},
            {"address": "10.0.0.7/24", "interface": 2},
        ],
    });
    let found = merged(&[("eth0", value)], IpPreference::Cni);
    assert_eq!(found.ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.7"]);
    assert_eq!(found.record["Interfaces"]["eth0"]["Sandbox"], "/ns");
    let no_sandboxes = json!({
        "cniVersion": "1.0.0", "interfaces": [{"name": "eth0"}],
        "ips": [{"address": "10.0.0.7/24", "interface": 0}],
    });
    assert_eq!(merged(&[("eth0", no_sandboxes)], IpPreference::Cni).ips.len(), 1);
}

#[test]
fn the_preferred_family_comes_first_and_the_rest_keeps_its_order() {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let ips = vec![ip("fd00::1"), ip("fd00::2"), ip("10.0.0.1"), ip("10.0.0.2")];
    let order = |preference| {
        preferred_first(ips.clone(), preference).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(order(IpPreference::Ipv4), "10.0.0.1 fd00::1 fd00::2 10.0.0.2");
    assert_eq!(order(IpPreference::Ipv6), "fd00::1 fd00::2 10.0.0.1 10.0.0.2");
    assert_eq!(order(IpPreference::Cni), "fd00::1 fd00::2 10.0.0.1 10.0.0.2");
    assert_eq!(preferred_first(vec![ip("fd00::1")], IpPreference::Ipv4), [ip("fd00::1")]);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        prop_oneof![Just("10.0.0.1/8".to_owned()), Just("1.0.0".to_owned()), ".{0,8}"].prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        let key = prop_oneof![
            Just("ips"),
            Just("interfaces"),
            Just("interface"),
            Just("address"),
            Just("routes"),
            Just("dst"),
            Just("dns"),
            Just("ip4"),
            Just("ip"),
            Just("cniVersion"),
            Just("name"),
            Just("sandbox"),
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..6).prop_map(|pairs| pairs
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect::<Map<_, _>>()
                .into()),
        ]
    })
}

proptest! {
    #[test]
    fn no_output_panics(value in any_json(), version in prop::sample::select(&VERSIONS)) {
        if let Ok(value) = from_output(value.to_string().as_bytes(), version)
            && let Ok(result) = CniResult::read(&value)
        {
            merge(&[("eth0", result)], IpPreference::Ipv6).expect("what was read merges");
        }
    }
}
