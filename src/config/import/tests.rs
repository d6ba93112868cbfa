//! Hand-written configurations of every format, with every key changed.

use super::*;
use crate::config::{Config, Overrides};

/// Imports `text` and checks that the result is valid; gives the file and what was lost.
fn imported(text: &str, generation: Generation) -> (File, Imported) {
    let files = Files::of_text(text).expect("TOML");
    let imported = import(&files, generation, "a test");
    let result = Config::from_text(&imported.text, std::path::Path::new("r"), &Overrides::default());
    let config = result.unwrap_or_else(|error| panic!("{error}\n{}", imported.text));
    (config.file, imported)
}

fn lost_keys(imported: &Imported) -> Vec<&str> {
    imported.lost.iter().map(|lost| lost.key.rsplit('.').next().expect("a key")).collect()
}

/// The file of an empty configuration of the plugin.
fn nothing(generation: Generation) -> File {
    let (file, imported) = imported("version = 2\n", generation);
    assert_eq!(imported.lost, []);
    file
}

#[test]
fn an_empty_configuration_is_the_plugins_defaults() {
    let one = nothing(Generation::One);
    let mut want = File {
        root: "/var/lib/containerd/io.containerd.grpc.v1.cri".into(),
        state: "/run/containerd/io.containerd.grpc.v1.cri".into(),
        ..File::default()
    };
    want.sandbox.unprivileged_ports = false;
    want.sandbox.unprivileged_icmp = false;
    want.container.enable_cdi = false;
    want.container.disable_hugetlb_controller = true;
    let handler = want.runtime.handlers.get_mut("runc").expect("a handler");
    handler.options.insert("SystemdCgroup".into(), Value::Boolean(false));
    assert_eq!(one, want);
    want.sandbox.unprivileged_ports = true;
    want.sandbox.unprivileged_icmp = true;
    want.container.enable_cdi = true;
    assert_eq!(nothing(Generation::Two), want);
}

/// What a key changes.
type Change = fn(&mut File);

/// The keys of the plugin's runtime part: a value, and what is expected of the file.
const RUNTIME: &[(&str, Change)] = &[
    ("max_container_log_line_size = -1", |file| file.container.log_line_bytes_max = 0),
    ("disable_apparmor = true", |file| file.container.disable_apparmor = true),
    ("restrict_oom_score_adj = true", |file| file.sandbox.restrict_oom_score_adj = "yes".into()),
    ("disable_proc_mount = true", |file| file.container.disable_proc_mount = true),
    ("unset_seccomp_profile = \"runtime/default\"", |file| {
        file.container.unset_seccomp_profile = "RuntimeDefault".into();
    }),
    ("unset_seccomp_profile = \"localhost//p.json\"", |file| {
        file.container.unset_seccomp_profile = "localhost//p.json".into();
    }),
    ("tolerate_missing_hugetlb_controller = false", |file| {
        file.container.tolerate_missing_hugetlb_controller = false;
    }),
    ("disable_hugetlb_controller = false", |file| file.container.disable_hugetlb_controller = false),
    ("device_ownership_from_security_context = true", |file| {
        file.container.device_ownership_from_security_context = true;
    }),
    ("enable_cdi = true", |file| file.container.enable_cdi = true),
    ("enable_cdi = false", |file| file.container.enable_cdi = false),
    ("cdi_spec_dirs = [\"/x\", \"/y\"]", |file| {
        file.container.cdi_spec_dirs = vec!["/x".into(), "/y".into()]
    }),
    ("containerd.ignore_rdt_not_enabled_errors = true", |file| {
        file.container.ignore_rdt_not_enabled_errors = true;
    }),
    ("containerd.ignore_blockio_not_enabled_errors = true", |file| {
        file.container.ignore_blockio_not_enabled_errors = true;
    }),
    ("ignore_image_defined_volumes = true", |file| file.container.ignore_image_volumes = true),
    ("netns_mounts_under_state_dir = true", |file| file.cni.netns_dir = file.state.join("netns")),
    ("enable_unprivileged_ports = true\nenable_unprivileged_icmp = true", |file| {
        (file.sandbox.unprivileged_ports, file.sandbox.unprivileged_icmp) = (true, true);
    }),
    ("enable_unprivileged_ports = false\nenable_unprivileged_icmp = false", |file| {
        (file.sandbox.unprivileged_ports, file.sandbox.unprivileged_icmp) = (false, false);
    }),
    ("drain_exec_sync_io_timeout = \"1m\"", |file| file.container.exec_drain_timeout_s = 60),
    ("ignore_deprecation_warnings = [\"a\"]", |file| {
        file.server.ignore_deprecation_warnings = vec!["a".into()];
    }),
    ("enable_selinux = true\nselinux_category_range = 64", |file| {
        (file.sandbox.enable_selinux, file.sandbox.selinux_category_range) = (true, 64);
    }),
    ("cni.bin_dir = \"/b\"", |file| file.cni.bin_dirs = vec!["/b".into()]),
    ("cni.bin_dirs = [\"/a\", \"/b\"]", |file| file.cni.bin_dirs = vec!["/a".into(), "/b".into()]),
    ("cni.conf_dir = \"/c\"", |file| file.cni.conf_dir = "/c".into()),
    ("cni.max_conf_num = 0", |file| file.cni.max_conf_num = 0),
    ("cni.setup_serially = true", |file| file.cni.serial = true),
    ("cni.conf_template = \"/t\"", |file| file.cni.conf_template = "/t".into()),
    ("cni.ip_pref = \"cni\"", |file| file.cni.ip_preference = "cni".into()),
    ("cni.use_internal_loopback = true", |_| ()),
    (
        "containerd.default_runtime_name = \"b\"\ncontainerd.runtimes.b.runtime_type = \"io.containerd.b.v2\"\n\
      containerd.runtimes.runc.runtime_type = \"io.containerd.runc.v2\"",
        |file| {
            file.runtime.default = "b".into();
            let b = file::Handler { kind: "io.containerd.b.v2".into(), ..file::Handler::default() };
            file.runtime.handlers.insert("b".into(), b);
        },
    ),
];

/// Of the part for images, of which some stood elsewhere before: both places, if so.
const IMAGES: &[(&str, &str, Change)] = &[
    ("containerd.snapshotter = \"s\"", "snapshotter = \"s\"", |file| file.image.snapshotter = "s".into()),
    ("sandbox_image = \"r.example/p:1\"", "pinned_images.sandbox = \"r.example/p:1\"", |file| {
        file.sandbox.image = "r.example/p:1".into();
    }),
    ("max_concurrent_downloads = 7", "", |file| file.image.max_concurrent_downloads = 7),
    ("image_pull_progress_timeout = \"90s\"", "", |file| file.image.pull_progress_timeout_s = 90),
    ("image_pull_progress_timeout = \"0\"", "", |file| file.image.pull_progress_timeout_s = 0),
];

/// Of the part that is a server, which kept its place.
const SERVER: &[(&str, Change)] = &[
    ("stream_server_address = \"0.0.0.0\"", |file| file.stream.address = "0.0.0.0".into()),
    ("stream_server_port = \"10010\"", |file| file.stream.port = 10010),
    ("stream_idle_timeout = \"1h\"", |file| file.stream.idle_timeout_s = 3600),
    (
        "enable_tls_streaming = true\nx509_key_pair_streaming.tls_cert_file = \"/c\"\n\
         x509_key_pair_streaming.tls_key_file = \"/k\"",
        |file| (file.stream.tls_cert_file, file.stream.tls_key_file) = ("/c".into(), "/k".into()),
    ),
    ("enable_tls_streaming = true", |file| file.stream.tls_self_signed = true),
];

fn cri(rest: &str) -> String {
    rest.lines().map(|line| format!("plugins.\"io.containerd.grpc.v1.cri\".{line}\n")).collect()
}

fn part(name: &str, rest: &str) -> String {
    rest.lines().map(|line| format!("plugins.\"io.containerd.cri.v1.{name}\".{line}\n")).collect()
}

#[test]
fn every_key_becomes_its_own_in_every_format() {
    let check = |text: &str, generation, change: fn(&mut File)| {
        let mut want = nothing(generation);
        change(&mut want);
        let (file, imported) = imported(text, generation);
        assert_eq!(file, want, "{text}");
        assert_eq!(imported.lost, [], "{text}");
    };
    for (rest, change) in RUNTIME {
        let one = rest.lines().map(|line| format!("plugins.cri.{line}\n")).collect::<String>();
        check(&one, Generation::One, *change);
        for generation in [Generation::One, Generation::Two] {
            check(&format!("version = 2\n{}", cri(rest)), generation, *change);
        }
        for version in [3, 4] {
            check(&format!("version = {version}\n{}", part("runtime", rest)), Generation::Two, *change);
        }
    }
    for (rest, change) in SERVER {
        check(&format!("version = 2\n{}", cri(rest)), Generation::One, *change);
        check(&format!("version = 3\n{}", cri(rest)), Generation::Two, *change);
    }
    for (old, new, change) in IMAGES {
        let new = if new.is_empty() { old } else { new };
        for generation in [Generation::One, Generation::Two] {
            check(&format!("version = 2\n{}", cri(old)), generation, *change);
        }
        check(&format!("version = 3\n{}", part("images", new)), Generation::Two, *change);
    }
    for (text, change) in [
        (
            "version = 3\nroot = \"/r\"\n",
            (|file| file.root = "/r/io.containerd.grpc.v1.cri".into()) as fn(&mut File),
        ),
        ("version = 3\nstate = \"/s\"\n", |file| file.state = "/s/io.containerd.grpc.v1.cri".into()),
        ("version = 2\n[grpc]\naddress = \"/a\"\n", |file| file.containerd.address = "/a".into()),
        ("version = 4\nplugins.\"io.containerd.server.v1.grpc\".address = \"/a\"\n", |file| {
            file.containerd.address = "/a".into();
        }),
        ("version = 3\nplugins.\"io.containerd.image-verifier.v1.bindir\".bin_dir = \"/v\"\n", |file| {
            file.image.verifier_dir = "/v".into();
        }),
        ("version = 3\nplugins.\"io.containerd.cri.v1.images\".use_local_image_pull = true\n", |file| {
            file.image.puller = "client".into();
        }),
        ("version = 3\nplugins.\"io.containerd.transfer.v1.local\".max_concurrent_downloads = 9\n", |file| {
            file.image.max_concurrent_downloads = 9;
        }),
        (
            "version = 3\nplugins.\"io.containerd.cri.v1.images\".pinned_images = { a = \"r/a:1\" }\n",
            |file| {
                file.image.pinned = vec!["r/a:1".into()];
            },
        ),
        (
            "version = 3\nplugins.\"io.containerd.service.v1.tasks-service\".rdt_config_file = \"/dev/null\"\n",
            |file| {
                file.container.rdt_config_file = "/dev/null".into();
            },
        ),
        (
            "version = 2\nplugins.\"io.containerd.service.v1.tasks-service\".blockio_config_file = \"/dev/null\"\n",
            |file| file.container.blockio_config_file = "/dev/null".into(),
        ),
        // Both are containerd's own business.
        ("version = 3\noom_score = -999\n[debug]\nlevel = \"debug\"\n", |_| ()),
    ] {
        check(text, Generation::Two, change);
    }
}

/// What has no counterpart is named, with its value and a reason, as is what is unknown.
#[test]
fn what_has_no_counterpart_is_named() {
    let old = "disable_cgroup = true\ncdi_spec_dirs = [\"x\"]\nstream_server_address = \"\"\n\
               stream_server_port = \"many\"\nstream_idle_timeout = \"0s\"\n\
               selinux_category_range = 1\n\
               disable_tcp_service = false\nimage_decryption.key_model = \"\"\nimage_pull_with_sync_fs = true\n\
               stats_collect_period = 5\ncontainerd.disable_snapshot_annotations = false\n\
               containerd.discard_unpacked_layers = true\nsystemd_cgroup = true\ncontainerd.no_pivot = true\n\
               mystery = 3\ncni.mystery = [1]\ncontainerd.mystery = \"x\"\nregistry.mystery = \"secret\"\n\
               containerd.default_runtime.privileged_without_host_devices = true\n\
               unset_seccomp_profile = \"bad\"\ncni.ip_pref = \"ipx\"\ncni.max_conf_num = -1\n\
               max_concurrent_downloads = 0\nmax_container_log_line_size = \"big\"\ncni.conf_dir = \"relative\"\n\
               cni.bin_dir = \"relative\"\ndrain_exec_sync_io_timeout = \"soon\"";
    let (file, found) = imported(&format!("version = 2\n{}", cri(old)), Generation::One);
    assert_eq!(file, nothing(Generation::One), "nothing else changes");
    let mut want: Vec<&str> = old
        .lines()
        .map(|line| line.split([' ', '.']).take_while(|part| *part != "=").last().expect("a key"))
        .collect();
    let mut keys = lost_keys(&found);
    want.sort_unstable();
    keys.sort_unstable();
    assert_eq!(keys, want);
    for Lost { key, value, reason } in &found.lost {
        let line = format!("# not carried over: {key} = {value}: {reason}\n");
        assert!(found.text.contains(&line) && reason.len() > 8, "{line}");
    }
    assert!(found.text.contains("plugins.\"io.containerd.grpc.v1.cri\".cni.mystery = [1]: is not a key"));
    assert!(!found.text.contains("secret"));

    let new = part(
        "runtime",
        "stats_collect_period = \"3s\"\nstats_retention_period = \"1h\"\nenable_criu = false\n\
         enable_experimental_restore_via_create = true",
    ) + &part(
        "images",
        "concurrent_layer_fetch_buffer = 5\nruntime_platforms.x.snapshotter = \"s\"\n\
         runtime_platforms.runc.platform = \"linux/riscv64\"",
    ) + &cri("containerd.snapshotter = \"native\"\nx509_key_pair_streaming.tls_cert_file = \"/c\"")
        + "plugins.\"io.containerd.nri.v1.nri\".plugin_path = \"/n\"\n\
           timeouts.\"io.containerd.timeout.cri.defercleanup\" = \"2m\"\n";
    let (file, found) = imported(&format!("version = 3\n{new}"), Generation::Two);
    assert_eq!(file, nothing(Generation::Two));
    assert_eq!(found.lost.len(), new.lines().count(), "{:#?}", found.lost);
}

#[test]
fn handlers_keep_all_that_they_have() {
    let runtimes = "default_runtime_name = \"crun\"\n\
        [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.crun]\n\
        runtime_type = \"io.containerd.runc.v2\"\nruntime_path = \"/shim\"\n\
        pod_annotations = [\"a.*\"]\ncontainer_annotations = [\"b.*\"]\n\
        privileged_without_host_devices = true\nprivileged_without_host_devices_all_devices_allowed = true\n\
        cgroup_writable = true\ncni_conf_dir = \"/n\"\ncni_max_conf_num = 2\nsnapshotter = \"native\"\n\
        sandboxer = \"podsandbox\"\nio_type = \"fifo\"\nbase_runtime_spec = \"\"\n\
        [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.crun.options]\n\
        BinaryName = \"crun\"\nsystemdcgroup = true\nIoUid = 5\nNoPivotRoot = false\n\
        [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\n\
        runtime_type = \"io.containerd.kata.v2\"\nsandbox_mode = \"shim\"\nio_type = \"streaming\"\nnews = 1\n\
        [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata.options]\n\
        ConfigPath = \"/k.toml\"\ninner = { a = 1 }\n\
        [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.bare]\n";
    let text = format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n{runtimes}");
    let (file, found) = imported(&text, Generation::One);
    assert_eq!(file.runtime.default, "crun");
    let names: Vec<&str> = file.runtime.handlers.keys().map(String::as_str).collect();
    assert_eq!(names, ["bare", "crun", "kata"]);
    let crun = file::Handler {
        kind: String::new(),
        path: "/shim".into(),
        snapshotter: "native".into(),
        network: String::new(),
        cni_conf_dir: "/n".into(),
        cni_max_conf_num: 2,
        pod_annotations: vec!["a.*".into()],
        container_annotations: vec!["b.*".into()],
        privileged_without_host_devices: true,
        privileged_without_host_devices_all_devices_allowed: true,
        cgroup_writable: true,
        base_runtime_spec: "".into(),
        options: toml::toml! { BinaryName = "crun"
        IoUid = 5
        SystemdCgroup = true },
    };
    assert_eq!(file.runtime.handlers["crun"], crun);
    let kata = &file.runtime.handlers["kata"];
    assert_eq!(kata.kind, "io.containerd.kata.v2");
    assert_eq!(
        kata.options,
        toml::toml! { ConfigPath = "/k.toml"
        inner = { a = 1 } }
    );
    assert_eq!(lost_keys(&found), ["io_type", "news", "sandbox_mode"]);
    // containerd 2.x lays the table over its default.
    assert!(imported(&text, Generation::Two).0.runtime.handlers.contains_key("runc"));
}

/// What 1.x had before handlers had names, and the shims that are gone.
#[test]
fn handlers_of_old_become_handlers() {
    let old = "plugins.cri.systemd_cgroup = true\nplugins.cri.containerd.no_pivot = true\n\
        [plugins.cri.containerd.default_runtime]\nruntime_type = \"io.containerd.runtime.v1.linux\"\n\
        runtime_engine = \"/runc\"\nruntime_root = \"/r\"\n\
        [plugins.cri.containerd.untrusted_workload_runtime]\nruntime_type = \"io.containerd.kata.v2\"\n";
    let (file, found) = imported(old, Generation::One);
    assert_eq!(file.runtime.default, "default");
    let options = &file.runtime.handlers["default"].options;
    assert_eq!(
        options,
        &toml::toml! { BinaryName = "/runc"
        NoPivotRoot = true
        Root = "/r"
        SystemdCgroup = true }
    );
    assert_eq!(file.runtime.handlers["untrusted"].kind, "io.containerd.kata.v2");
    assert_eq!(lost_keys(&found), ["runtime_type"]);
    let (file, found) = imported(old, Generation::Two);
    assert_eq!(file.runtime.default, "runc");
    assert_eq!(found.lost.len(), 6, "{:#?}", found.lost);
}

#[test]
fn runtime_platforms_give_a_handler_its_snapshotter() {
    let text = format!(
        "version = 3\n{}{}",
        part("runtime", "containerd.runtimes.k.runtime_type = \"io.containerd.k.v2\""),
        part("images", "runtime_platforms.k.snapshotter = \"native\""),
    );
    let (file, found) = imported(&text, Generation::Two);
    assert_eq!((file.runtime.handlers["k"].snapshotter.as_str(), found.lost.len()), ("native", 0));
}

#[test]
fn an_option_that_runcs_shim_does_not_have_is_named() {
    let text = part(
        "runtime",
        "containerd.runtimes.runc.options.Speed = 3\ncontainerd.runtimes.runc.options.IoUid = \"x\"",
    );
    let (_, found) = imported(&format!("version = 3\n{text}"), Generation::Two);
    assert_eq!(lost_keys(&found), ["IoUid", "Speed"]);
}

#[test]
fn registries_stay_in_containerds_file() {
    let head = "plugins.\"io.containerd.cri.v1.images\".registry";
    let text = format!(
        "version = 3\n{head}.mirrors.\"docker.io\".endpoint = [\"https://m\"]\n\
         {head}.configs.m.auth.password = \"hunter2\"\n{head}.headers.X = [\"v\"]\n{head}.auths.\"http://m\".auth = \"x\"\n"
    );
    let (_, found) = imported(&text, Generation::Two);
    assert_eq!(found.lost, []);
    let both = format!("{text}{head}.config_path = \"/c\"\n");
    let (_, found) = imported(&both, Generation::Two);
    assert_eq!(lost_keys(&found), ["endpoint"]);
    assert!(!found.text.contains("hunter2"));
}

/// The plugin has to be switched off, and cannot be while containerd requires it.
#[test]
fn hints_say_what_is_left_to_do() {
    let of = |text: &str, generation| imported(text, generation).1.hints;
    let off = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
    assert_eq!(of(off, Generation::One), Vec::<String>::new());
    let hints = of(off, Generation::Two);
    assert!(
        hints[0].contains("\"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\"]"),
        "{hints:?}"
    );
    assert!(of("", Generation::One)[0].contains("[\"cri\"]"));
    let required = format!("{off}required_plugins = [\"io.containerd.grpc.v1.cri\"]\n");
    assert!(of(&required, Generation::One)[0].contains("required_plugins"));
}

/// 1.x does not know a plugin by its long name in a file without a version.
#[test]
fn a_section_that_containerd_does_not_read_is_named() {
    let (_, found) = imported(&cri("disable_apparmor = true"), Generation::One);
    assert_eq!(lost_keys(&found), ["disable_apparmor"]);
    let (_, found) = imported("version = 3\nplugins.cri.disable_apparmor = true\n", Generation::Two);
    assert_eq!(lost_keys(&found), ["disable_apparmor"]);
}

/// Names and values of any kind make no broken file, and no second line of a comment.
#[test]
fn odd_names_and_values_are_written_so_that_they_can_be_read() {
    let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n\"a\\nb = 1\" = \"c\\n[server]\"\n\
        cni.conf_template = \"\"\"x\ny\"\"\"\n\
        [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.\"a.b c\"]\nruntime_type = \"io.containerd.\\\"x\"\n\
        [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n";
    let (file, found) = imported(text, Generation::One);
    assert_eq!(file.cni.conf_template, "x\ny");
    assert_eq!(file.runtime.handlers["a.b c"].kind, "io.containerd.\"x");
    assert_eq!(found.lost.len(), 1);
}
