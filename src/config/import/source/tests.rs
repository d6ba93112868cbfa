use super::*;

#[test]
fn patterns_are_gos() {
    for (pattern, name, want) in [
        ("*.toml", "a.toml", true),
        ("*.toml", "a.tml", false),
        ("a?[0-9]*", "ab7", true),
        ("a?[^0-9]", "ab7", false),
        ("[ab]-", "b-", true),
        ("\\*", "*", true),
        ("[", "[", false),
    ] {
        assert_eq!(is_match(pattern.as_bytes(), name.as_bytes()), want, "{pattern} {name}");
    }
}

#[test]
fn generations_are_told_by_the_version() {
    for (version, want) in
        [("1.6.20~ds1", Some(Generation::One)), ("v2.3.4", Some(Generation::Two)), ("dev", None)]
    {
        assert_eq!(Generation::of_version(version), want);
    }
    assert_eq!(Generation::of_format(4), Generation::Two);
}

fn value(files: &Files, generation: Generation, path: &[&str]) -> Option<Value> {
    files.merge(generation).take(path).map(|entry| entry.value)
}

/// In every format a key has one place, and is named as written.
#[test]
fn formats_become_one() {
    let line = |head: &str, rest: &str| format!("{head}.max_container_log_line_size = 1\n{head}.{rest}\n");
    for (text, written) in [
        (line("plugins.cri", "sandbox_image = \"p\""), "plugins.cri.sandbox_image"),
        (
            "version = 2\n".to_owned()
                + &line("plugins.\"io.containerd.grpc.v1.cri\"", "sandbox_image = \"p\""),
            "plugins.\"io.containerd.grpc.v1.cri\".sandbox_image",
        ),
        (
            "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\"]\nmax_container_log_line_size = 1\n\
                 [plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = \"p\"\n"
                .to_owned(),
            "plugins.\"io.containerd.cri.v1.images\".pinned_images.sandbox",
        ),
    ] {
        let files = Files::of_text(&text).expect("valid");
        let mut source = files.merge(Generation::of_format(files.format()));
        let size = source.take(&["runtime", "max_container_log_line_size"]).expect("there");
        assert_eq!(size.value, Value::Integer(1));
        let image = source.take(&["images", "pinned_images", "sandbox"]).expect("there");
        assert_eq!((image.written.as_str(), image.value.as_str()), (written, Some("p")));
        assert_eq!(source.rest().count(), 0);
    }
}

/// In a file without a version, 1.x does not know the long name.
#[test]
fn a_long_name_in_a_file_without_a_version_is_read_by_the_newer_one_only() {
    let files = Files::of_text("[plugins.\"io.containerd.grpc.v1.cri\"]\ndisable_apparmor = true\n");
    let files = files.expect("valid");
    let key = ["runtime", "disable_apparmor"];
    assert_eq!(value(&files, Generation::Two, &key), Some(Value::Boolean(true)));
    assert_eq!(value(&files, Generation::One, &key), None);
    assert!(value(&files, Generation::One, &["unread", "disable_apparmor"]).is_some());
}

/// Imports: relative, by pattern, of imports, in circles; lists are joined, sections
/// replaced or merged.
#[test]
fn imports_go_over_what_imports_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("a file");
    std::fs::create_dir(folder.path().join("conf.d")).expect("a folder");
    write(
        "config.toml",
        "version = 2\nimports = [\"conf.d/*.toml\", \"last.toml\"]\nroot = \"/a\"\n\
             disabled_plugins = [\"x.y\"]\n[plugins.\"io.containerd.grpc.v1.cri\"]\n\
             disable_apparmor = true\nmax_concurrent_downloads = 1\n",
    );
    write(
        "conf.d/2.toml",
        "version = 2\ndisabled_plugins = [\"z.y\"]\nroot = \"\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nmax_concurrent_downloads = 2\n",
    );
    write("conf.d/1.toml", "version = 2\nroot = \"/b\"\nimports = [\"../config.toml\"]\n");
    write("conf.d/none.txt", "[\n");
    write("last.toml", "state = \"/s\"\n");
    let files = Files::read(&folder.path().join("config.toml")).expect("valid");
    assert_eq!(files.paths().count(), 4);
    let value = |generation, path: &[&str]| value(&files, generation, path);
    for generation in [Generation::One, Generation::Two] {
        assert_eq!(value(generation, &["images", "max_concurrent_downloads"]), Some(Value::Integer(2)));
        assert_eq!(value(generation, &["top", "state"]), Some(Value::String("/s".into())));
    }
    assert_eq!(value(Generation::One, &["runtime", "disable_apparmor"]), None);
    assert_eq!(value(Generation::Two, &["runtime", "disable_apparmor"]), Some(Value::Boolean(true)));
    assert_eq!(value(Generation::Two, &["top", "root"]), Some(Value::String("/b".into())));
    let disabled = value(Generation::Two, &["top", "disabled_plugins"]).expect("there");
    assert_eq!(texts(Some(&disabled)), ["x.y", "z.y"]);
    assert_eq!(files.address(), DEFAULT_ADDRESS);
}

#[test]
fn what_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.toml");
    std::fs::write(&path, "imports = [\"missing.toml\"]\n").expect("a file");
    let error = Files::read(&path).expect_err("missing");
    assert!(error.contains("missing.toml: "), "{error}");
    std::fs::write(&path, "a = 1\n[plugins\n").expect("a file");
    let error = Files::read(&path).expect_err("broken");
    assert!(error.contains("config.toml: line 2: "), "{error}");
}

#[test]
fn keys_and_values_stay_in_one_line() {
    assert_eq!(dotted(&["a".into(), "b.c".into(), "d\n\"e".into()]), "a.\"b.c\".\"d\\u000A\\\"e\"");
    assert_eq!(one_line(&Value::String("a\nb".into())), "\"a\\u000Ab\"");
    assert!(!one_line(&Value::Array(vec![Value::String("a\nb".into())])).contains('\n'));
}
