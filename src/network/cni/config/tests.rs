use super::*;

fn list(text: &str) -> Result<NetworkList> {
    NetworkList::parse(text.as_bytes())
}

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }
    directory
}

const ONE: &str = r#"{"cniVersion":"1.0.0","name":"one","plugins":[{"type":"bridge"}]}"#;

#[test]
fn files_are_taken_in_order_up_to_the_number_and_others_ignored() {
    let directory = directory(&[
        ("20-b.conf", r#"{"cniVersion":"0.4.0","name":"two","type":"ptp"}"#),
        ("10-a.conflist", ONE),
        ("30-c.json", r#"{"name":"three","type":"macvlan"}"#),
        ("00-readme.txt", "not JSON"),
        ("05-old.conflist.bak", "not JSON"),
        ("01-folder.conf/x", ""),
    ]);
    let all = load(directory.path(), 0).expect("valid");
    let seen: Vec<_> =
        all.iter().map(|network| (network.list.name.as_str(), network.interface.as_str())).collect();
    assert_eq!(seen, [("one", "eth0"), ("two", "eth1"), ("three", "eth2")]);
    assert_eq!(load(directory.path(), 1).expect("valid").len(), 1);
}

#[test]
fn one_invalid_file_among_those_considered_fails_the_load_and_is_named() {
    let directory = directory(&[("10-a.conflist", ONE), ("20-b.conflist", "{")]);
    assert!(load(directory.path(), 1).is_ok(), "the second is not considered");
    let error = load(directory.path(), 2).expect_err("invalid").to_string();
    assert!(error.contains("20-b.conflist") && error.contains("JSON"), "{error}");
}

#[test]
fn an_empty_or_missing_directory_is_named() {
    let directory = directory(&[("notes.txt", "")]);
    for path in [directory.path().to_owned(), directory.path().join("missing")] {
        let error = load(&path, 1).expect_err("nothing there").to_string();
        assert!(error.contains(path.to_str().expect("text")), "{error}");
    }
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    let directory = directory(&[]);
    std::os::unix::fs::symlink("/dev/zero", directory.path().join("10-a.conf")).expect("a link");
    let error = load(directory.path(), 1).expect_err("a device").to_string();
    assert!(error.contains("not a regular file"), "{error}");
}

#[test]
fn mistakes_are_told() {
    let cases = [
        ("[]", "not a JSON object"),
        (r#"{"plugins":[{"type":"a"}]}"#, "\"name\" is missing"),
        (r#"{"name":7,"plugins":[{"type":"a"}]}"#, "\"name\" is not a text"),
        (r#"{"name":"a/b","plugins":[{"type":"a"}]}"#, "\"name\" \"a/b\" must begin"),
        (r#"{"name":"n"}"#, "there are no plugins"),
        (r#"{"name":"n","plugins":[]}"#, "\"plugins\" is empty"),
        (r#"{"name":"n","plugins":{}}"#, "\"plugins\" is not a list"),
        (r#"{"name":"n","plugins":[{}]}"#, "\"plugins\"[0]: \"type\" is missing"),
        (r#"{"name":"n","plugins":[{"type":"../x"}]}"#, "is a path"),
        (r#"{"name":"n","plugins":[{"type":"a","capabilities":{"x":1}}]}"#, "capability \"x\" is neither"),
        (r#"{"name":"n","cniVersion":"one","plugins":[{"type":"a"}]}"#, "cniVersion \"one\""),
        (r#"{"name":"n","disableGC":"maybe","plugins":[{"type":"a"}]}"#, "\"disableGC\" is neither"),
    ];
    for (text, want) in cases {
        let error = list(text).expect_err(text).to_string();
        assert!(error.contains(want), "{text} gave {error:?}, not {want:?}");
    }
}

#[test]
fn a_single_configuration_needs_a_type_and_becomes_a_list() {
    let directory = directory(&[("10-a.conf", ONE)]);
    let error = load(directory.path(), 1).expect_err("a list in a .conf file").to_string();
    assert!(error.contains("\"type\" is missing"), "{error}");
    let list = NetworkList::from_single(br#"{"name":"n","type":"ptp","mtu":1400}"#).expect("valid");
    assert_eq!((list.name.as_str(), list.version, list.plugins.len()), ("n", Version::OLDEST, 1));
    let again = NetworkList::parse(&list.bytes).expect("the bytes are a list");
    assert_eq!(again.plugins[0].raw["mtu"], 1400);
}

#[test]
fn the_highest_known_version_is_chosen() {
    let version = |text: &str| list(text).map(|list| list.version_text);
    let cases = [
        (r#"{"name":"n","plugins":[{"type":"a"}]}"#, ""),
        (r#"{"name":"n","cniVersion":"0.4.0","plugins":[{"type":"a"}]}"#, "0.4.0"),
        (
            r#"{"name":"n","cniVersion":"0.4.0","cniVersions":["1.1.0","0.3.1","2.0.0"],"plugins":[{"type":"a"}]}"#,
            "1.1.0",
        ),
        (r#"{"name":"n","cniVersion":"1.0.0","cniVersions":["9.0.0"],"plugins":[{"type":"a"}]}"#, "1.0.0"),
    ];
    for (text, want) in cases {
        assert_eq!(version(text).as_deref(), Ok(want), "{text}");
    }
}

#[test]
fn flags_may_be_texts() {
    let list = list(r#"{"name":"n","disableCheck":"TRUE","disableGC":true,"plugins":[{"type":"a"}]}"#)
        .expect("valid");
    assert!(list.disable_check && list.disable_gc);
}

#[test]
fn plugins_of_the_folder_come_after_the_inlined_and_into_the_bytes() {
    let directory = directory(&[
        ("10-a.conflist", ONE),
        ("one/20-tuning.conf", r#"{"type":"tuning","mtu":1300}"#),
        ("one/10-portmap.conf", r#"{"type":"portmap","capabilities":{"portMappings":true}}"#),
        ("one/readme", ""),
    ]);
    let kinds = |list: &NetworkList| {
        list.plugins.iter().map(|plugin| plugin.kind.clone()).collect::<Vec<_>>().join(" ")
    };
    let networks = load(directory.path(), 1).expect("valid");
    assert_eq!(kinds(&networks[0].list), "bridge portmap tuning");
    let cached = NetworkList::parse(&networks[0].list.bytes).expect("valid");
    assert_eq!(kinds(&cached), "bridge portmap tuning");
    // The cached copy does not load them a second time.
    let cached = NetworkList::with_folder(&networks[0].list.bytes, directory.path()).expect("valid");
    assert_eq!(kinds(&cached), "bridge portmap tuning");

    std::fs::write(directory.path().join("10-a.conflist"), r#"{"name":"one"}"#).expect("written");
    let networks = load(directory.path(), 1).expect("a list without plugins of its own");
    assert_eq!(kinds(&networks[0].list), "portmap tuning");
    let only = r#"{"name":"one","loadOnlyInlinedPlugins":true}"#;
    std::fs::write(directory.path().join("10-a.conflist"), only).expect("written");
    assert!(load(directory.path(), 1).is_err());
}

#[test]
fn input_passes_the_rest_through_and_gives_declared_capabilities_only() {
    let list = list(
            r#"{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"portmap","name":"x","snat":true,
            "deep":{"number":18446744073709551615},"capabilities":{"portMappings":true,"dns":false,"aliases":true}}]}"#,
        )
        .expect("valid");
    let args = json!({"portMappings": [{"HostPort": 1}], "dns": {}, "bandwidth": {}});
    let previous = json!({"cniVersion": "1.0.0"});
    let input =
        list.plugins[0].input(&list, &[("prevResult", &previous)], args.as_object().expect("an object"));
    let input: Value = serde_json::from_slice(&input).expect("JSON");
    let want = json!({
        "type": "portmap", "name": "n", "cniVersion": "1.0.0", "snat": true,
        "deep": {"number": 18446744073709551615u64},
        "capabilities": {"portMappings": true, "dns": false, "aliases": true},
        "prevResult": {"cniVersion": "1.0.0"},
        "runtimeConfig": {"portMappings": [{"HostPort": 1}]},
    });
    assert_eq!(input, want);
    let input: Value = serde_json::from_slice(&list.plugins[0].input(&list, &[], &Map::new())).expect("JSON");
    assert!(input.get("runtimeConfig").is_none() && input.get("prevResult").is_none());
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in ".{0,80}", inner in ".{0,20}") {
        let _ = NetworkList::parse(text.as_bytes());
        let wrapped = json!({"name": inner, "cniVersion": text, "plugins": [{"type": text}]});
        let _ = NetworkList::parse(wrapped.to_string().as_bytes());
    }
}
