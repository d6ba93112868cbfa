//! Attaching pods.

use super::*;

#[test]
fn a_pod_gets_an_address_and_gives_everything_back() {
    with_plugins(|| async {
        let scene = Scene::bridged("", json!([{"type": "portmap", "capabilities": {"portMappings": true}}]));
        let mut pod = scene.pod().await;
        let port = PortMapping { container_port: 80, host_port: 18080, ..Default::default() };
        pod.config = Arc::new(PodSandboxConfig { port_mappings: vec![port], ..(*pod.config).clone() });
        let attachment = scene.attach(&pod).await.expect("attaches");
        assert_eq!(ips(&attachment), ["10.66.0.2"]);
        assert_eq!((scene.leases("first"), veths()), (vec!["10.66.0.2".to_owned()], 1));
        assert_eq!(interfaces_of(&pod).await, ["lo", "eth0"]);
        let rules = || {
            let output = Command::new("iptables").args(["-t", "nat", "-S"]).output().expect("iptables");
            String::from_utf8_lossy(&output.stdout).matches("18080").count()
        };
        assert!(rules() > 0, "the host's port leads to the pod");

        let netns = pod.netns.as_ref().expect("a namespace").to_str().expect("text").to_owned();
        let found = &attachment.result["Interfaces"];
        assert_eq!(found["eth0"]["IPConfigs"], json!([{"IP": "10.66.0.2", "Gateway": "10.66.0.1"}]));
        assert_eq!((&found["eth0"]["Sandbox"], &found["lo"]["Sandbox"]), (&json!(netns), &json!(netns)));
        assert_eq!(found["lo"]["IPConfigs"][0]["IP"], "127.0.0.1");
        assert_eq!(attachment.result["DNS"], json!([{}, {}]));
        assert_eq!(attachment.result["Routes"], json!([{"dst": "0.0.0.0/0"}]));

        scene.detached(&pod).await;
        assert_eq!((scene.leases("first"), veths(), rules()), (vec![], 0, 0));
        scene.detached(&pod).await;
        assert_eq!(scene.network.check(&pod).await.expect_err("nothing is known").kind(), Kind::NotFound);
        netns::remove(pod.netns.as_deref().expect("a namespace")).await.expect("removed");
    });
}

#[test]
fn check_tells_what_has_been_taken_away() {
    with_plugins(|| async {
        let scene = Scene::bridged("", json!([]));
        let pod = scene.pod().await;
        scene.attach(&pod).await.expect("attaches");
        scene.network.check(&pod).await.expect("all is as it was left");
        let netns = pod.netns.as_deref().expect("a namespace");
        let removed = crate::sys::netns::within(netns, || {
            Ok(Command::new("ip").args(["link", "del", "eth0"]).status()?.success())
        });
        assert!(removed.await.expect("ip runs"));
        let error = scene.network.check(&pod).await.expect_err("the interface is gone");
        assert!(
            error.message().starts_with("CNI CHECK of network \"first\": plugin \"bridge\": "),
            "{error}"
        );
        scene.detached(&pod).await;
    });
}

#[test]
fn a_failure_in_the_middle_rolls_back() {
    with_plugins(|| async {
        let scene = Scene::bridged("", json!([{"type": "fake"}, {"type": "never"}]));
        scene.script("fake");
        scene.script("never");
        let pod = scene.pod().await;
        let netns = pod.netns.as_deref().and_then(Path::to_str).expect("a path");
        let complaint = json!({"code": 7, "msg": "no luck", "details": format!("in {netns}")});
        scene.order("fake.ADD.fail", &complaint.to_string());
        let stage = Stage::default();
        let error = scene.network.attach(&pod, &stage).await.expect_err("it fails");
        assert_eq!(
            error.message(),
            "CNI ADD of network \"first\": plugin \"fake\": no luck; in the pod's network namespace (CNI error 7)"
        );
        assert_eq!(scene.log(), ["fake.ADD eth0", "never.DEL eth0", "fake.DEL eth0"]);
        assert_eq!((scene.leases("first"), veths()), (vec![], 0));
        assert_eq!(scene.entries("cache/results"), Vec::<String>::new());
        // The next attempt of the same pod goes well.
        std::fs::remove_file(scene.path("bin/fake.ADD.fail")).expect("removed");
        for name in ["fake", "never"] {
            scene.order(&format!("{name}.ADD.out"), &result("1.0.0", "10.66.0.9/24"));
        }
        assert_eq!(ips(&scene.attach(&pod).await.expect("attaches")), ["10.66.0.9"]);
        scene.detached(&pod).await;
    });
}

#[test]
fn plugins_are_told_exactly_this() {
    on_own_host(|| async {
        let list = json!({
            "cniVersion": "1.0.0", "name": "net",
            "plugins": [
                {"type": "fake", "keep": {"me": [1, 2.5, "ü"]}, "capabilities": {"portMappings": true, "io.kubernetes.cri.pod-annotations": true}},
                {"type": "next"},
            ],
        });
        let scene = Scene::new(&[("10-net.conflist", list)]);
        scene.script("fake");
        scene.script("next");
        scene.order("fake.ADD.out", &result("0.4.0", "10.0.0.1/8"));
        scene.order("next.ADD.out", &result("1.0.0", "10.0.0.2/8"));
        let mut pod = scene.pod().await;
        let port = |host_port| PortMapping { container_port: 80, host_port, ..Default::default() };
        pod.config =
            Arc::new(PodSandboxConfig { port_mappings: vec![port(8080), port(0)], ..(*pod.config).clone() });
        assert_eq!(ips(&scene.attach(&pod).await.expect("attaches")), ["10.0.0.2"]);

        let (id, path) = (&pod.id, scene.folder.path().display());
        let netns = pod.netns.as_deref().expect("a namespace").display();
        let environment = |verb: &str| {
            format!(
                "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID=u1\n\
                 CNI_COMMAND={verb}\nCNI_CONTAINERID={id}\nCNI_IFNAME=eth0\nCNI_NETNS={netns}\n\
                 CNI_PATH={path}/bin:/usr/lib/cni:/opt/cni/bin\n"
            )
        };
        let told = |name: &str| std::fs::read_to_string(scene.path("bin").join(name)).expect("it was called");
        assert_eq!(told("fake.ADD.env"), environment("ADD"));
        let runtime = json!({
            "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}],
            "io.kubernetes.cri.pod-annotations": {"a": "b"},
        });
        let capabilities = json!({"portMappings": true, "io.kubernetes.cri.pod-annotations": true});
        let mut want = json!({
            "type": "fake", "name": "net", "cniVersion": "1.0.0", "keep": {"me": [1, 2.5, "ü"]},
            "capabilities": capabilities, "runtimeConfig": runtime,
        });
        assert_eq!(scene.told("fake.ADD.stdin"), want);
        // The result of an older version is passed on in the configuration's.
        let between: Value = serde_json::from_str(&result("1.0.0", "10.0.0.1/8")).expect("JSON");
        let next = json!({"type": "next", "name": "net", "cniVersion": "1.0.0", "prevResult": between});
        assert_eq!(scene.told("next.ADD.stdin"), next);

        let last: Value = serde_json::from_str(&result("1.0.0", "10.0.0.2/8")).expect("JSON");
        scene.network.check(&pod).await.expect("fine");
        want["prevResult"] = last.clone();
        assert_eq!(
            (scene.told("fake.CHECK.stdin"), told("fake.CHECK.env")),
            (want.clone(), environment("CHECK"))
        );

        // Removal is told the same, whatever the pod's configuration is by then.
        pod.config = Arc::default();
        scene.detached(&pod).await;
        assert_eq!((scene.told("fake.DEL.stdin"), told("fake.DEL.env")), (want, environment("DEL")));
        assert_eq!(scene.told("next.DEL.stdin")["prevResult"], last);
        let log = ["fake.ADD", "next.ADD", "fake.CHECK", "next.CHECK", "next.DEL", "fake.DEL"];
        assert_eq!(scene.log(), log.map(|call| format!("{call} eth0")));
    });
}

#[test]
fn old_versions_get_no_result_at_removal_and_no_check() {
    on_own_host(|| async {
        let scene =
            Scene::new(&[("10-net.conf", json!({"cniVersion": "0.2.0", "name": "old", "type": "fake"}))]);
        scene.script("fake");
        scene.order("fake.ADD.out", r#"{"ip4":{"ip":"10.0.0.7/8","gateway":"10.0.0.1"}}"#);
        let pod = scene.pod().await;
        let attachment = scene.attach(&pod).await.expect("attaches");
        assert_eq!(ips(&attachment), ["10.0.0.7"]);
        assert_eq!(
            attachment.result["Interfaces"]["eth0"]["IPConfigs"],
            json!([{"IP": "10.0.0.7", "Gateway": "10.0.0.1"}])
        );
        scene.network.check(&pod).await.expect("nothing to ask");
        scene.detached(&pod).await;
        let want = json!({"cniVersion": "0.2.0", "name": "old", "type": "fake"});
        assert_eq!(scene.told("fake.DEL.stdin"), want);
        assert_eq!(scene.log(), ["fake.ADD eth0", "fake.DEL eth0"]);
    });
}

#[test]
fn several_networks_keep_their_order() {
    with_plugins(|| async {
        for serial in ["false", "true"] {
            let scene = Scene::with(&format!("max_conf_num = 0\nserial = {serial}"), &[]);
            let folder = scene.folder.path();
            scene.configure("10-a.conflist", &Scene::bridge(folder, "first", json!([])));
            scene.configure("20-b.conflist", &Scene::bridge(folder, "second", json!([])));
            let pod = scene.pod().await;
            let attachment = scene.attach(&pod).await.expect("attaches");
            assert_eq!(ips(&attachment).len(), 1, "only eth0's addresses are the pod's");
            assert!(ips(&attachment)[0].starts_with("10.66.0."));
            assert_eq!(interfaces_of(&pod).await.len(), 3);
            assert!(
                attachment.result["Interfaces"]["eth1"]["IPConfigs"][0]["IP"]
                    .as_str()
                    .expect("an address")
                    .starts_with("10.67.")
            );
            assert_eq!(attachment.result["DNS"], json!([{}, {}, {}]));
            scene.detached(&pod).await;
            assert_eq!((scene.leases("first"), scene.leases("second"), veths()), (vec![], vec![], 0));
        }
    });
}

#[test]
fn the_loopback_plugin_serves_where_configured() {
    with_plugins(|| async {
        let scene = Scene::bridged("loopback = \"plugin\"", json!([]));
        let pod = scene.pod().await;
        let attachment = scene.attach(&pod).await.expect("attaches");
        assert_eq!(scene.entries("cache/results").len(), 2);
        let lo = &attachment.result["Interfaces"]["lo"];
        assert_eq!(
            (&lo["Mac"], &lo["IPConfigs"][0]["IP"]),
            (&json!("00:00:00:00:00:00"), &json!("127.0.0.1"))
        );
        assert_eq!(attachment.result["DNS"], json!([{}, {}]));
        // A pod made so may be removed by a server that has no loopback plugin.
        let text = std::fs::read_to_string(scene.path("config.toml")).expect("the file");
        let text = text
            .replace("loopback = \"plugin\"", "")
            .replace(PLUGIN_DIRS[0], &format!("{}/only", scene.folder.path().display()));
        std::fs::create_dir(scene.path("only")).expect("a folder");
        for plugin in ["bridge", "host-local"] {
            let source = PLUGIN_DIRS.map(|directory| Path::new(directory).join(plugin));
            let source = source.iter().find(|path| path.exists()).expect("the plugin");
            std::os::unix::fs::symlink(source, scene.path("only").join(plugin)).expect("a link");
        }
        std::fs::write(scene.path("config.toml"), text).expect("written");
        let mut scene = scene;
        scene.restart();
        scene.detached(&pod).await;
    });
}

#[test]
fn a_pod_without_an_address_is_refused_and_removed() {
    on_own_host(|| async {
        let scene = Scene::new(&[("10-net.conflist", fake("net", "1.0.0"))]);
        scene.script("fake");
        for output in [
            r#"{"cniVersion":"1.0.0"}"#.to_owned(),
            result("1.0.0", "10.0.0.1/8").replace("eth0", "net7"),
            "oops".to_owned(),
        ] {
            scene.order("fake.ADD.out", &output);
            let pod = scene.pod().await;
            let error = scene.attach(&pod).await.expect_err("no address");
            assert!(error.message().contains("CNI ADD"), "{error}");
            assert_eq!(scene.log().last().map(String::as_str), Some("fake.DEL eth0"));
            assert_eq!(scene.entries("cache/results"), Vec::<String>::new());
        }
    });
}

#[test]
fn a_plugin_that_hangs_is_killed_and_removed() {
    on_own_host(|| async {
        let scene = Scene::with("timeout_s = 2", &[("10-net.conflist", fake("net", "1.0.0"))]);
        scene.script("fake");
        scene.order("fake.ADD.hang", "");
        let error = scene.attach(&scene.pod().await).await.expect_err("killed");
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        assert_eq!(scene.log(), ["fake.ADD eth0", "fake.DEL eth0"]);
    });
}

#[test]
fn what_is_wrong_with_the_pod_is_told_before_any_plugin_runs() {
    on_own_host(|| async {
        let scene = Scene::new(&[("10-net.conflist", fake("net", "1.0.0"))]);
        scene.script("fake");
        let good = scene.pod().await;
        let mut bandwidth = good.clone();
        let annotations = BTreeMap::from([("kubernetes.io/ingress-bandwidth".to_owned(), "1".to_owned())]);
        bandwidth.config = Arc::new(PodSandboxConfig { annotations, ..(*good.config).clone() });
        let id = PodNetwork { id: "../x".to_owned(), ..good.clone() };
        for pod in [bandwidth, id] {
            assert_eq!(scene.attach(&pod).await.expect_err("refused").kind(), Kind::InvalidArgument);
        }
        let error = scene.attach(&PodNetwork { netns: None, ..good }).await.expect_err("refused");
        assert_eq!(error.kind(), Kind::Internal);
        assert_eq!((scene.log(), scene.entries("cache/results")), (vec![], vec![]));
    });
}

#[test]
fn many_pods_at_once_get_addresses_of_their_own() {
    with_plugins(|| async {
        let scene = Scene::bridged("", json!([]));
        let mut pods = Vec::new();
        for _ in 0..6 {
            pods.push(scene.pod().await);
        }
        let attached = futures_util::future::join_all(pods.iter().map(|pod| scene.attach(pod))).await;
        let found: std::collections::BTreeSet<_> =
            attached.into_iter().flat_map(|attachment| ips(&attachment.expect("attaches"))).collect();
        assert_eq!(found.len(), 6);
        for result in futures_util::future::join_all(pods.iter().map(|pod| scene.network.detach(pod))).await {
            result.expect("detaches");
        }
        assert_eq!((scene.leases("first"), veths()), (vec![], 0));
    });
}

#[test]
fn the_stage_tells_network_and_plugin() {
    on_own_host(|| async {
        let scene = Scene::new(&[("10-net.conflist", fake("net", "1.0.0"))]);
        scene.script("fake");
        scene.order("fake.ADD.hang", "");
        let (joins, flow, gate) = (
            crate::flow::Joins::<()>::default(),
            crate::flow::Flow::default(),
            tokio_util::sync::CancellationToken::new(),
        );
        let (network, pod, stop) = (scene.network.clone(), scene.pod().await, gate.clone());
        let work = |stage: Stage| async move {
            tokio::select! {
                result = network.attach(&pod, &stage) => result.map(drop),
                () = stop.cancelled() => Ok(()),
            }
        };
        let first = joins.run(&flow, "pod", (*b"a").into(), work, |()| {});
        let other = async {
            while scene.log().is_empty() {
                tokio::task::yield_now().await;
            }
            let error = joins.run(&flow, "pod", (*b"b").into(), |_| async { Ok(()) }, |()| {}).await;
            gate.cancel();
            error.expect_err("the name is taken")
        };
        let (_, error) = tokio::join!(first, other);
        assert!(error.message().contains(r#"CNI ADD of network \"net\", plugin \"fake\""#), "{error}");
    });
}
