//! What concerns the node, not a pod.

use super::*;

#[test]
fn readiness_asks_the_plugins_and_remembers_the_answer() {
    on_own_host(|| async {
        let scene = Scene::new(&[]);
        scene.script("fake");
        let error = scene.network.ready().await.expect_err("no configuration");
        let directory = scene.path("net.d");
        assert!(error.message().starts_with("cni plugin not initialized: "), "{error}");
        assert!(error.message().contains(directory.to_str().expect("text")), "{error}");
        assert_eq!(scene.network.load_status().len(), 1);
        assert!(scene.network.load_status()[0].1.is_err());

        scene.configure("10-net.conflist", &fake("net", "1.0.0"));
        scene.network.ready().await.expect("an older version is not asked");
        assert_eq!(scene.log(), Vec::<String>::new());

        scene.configure("10-net.conflist", &fake("net", "1.1.0"));
        scene.order("fake.STATUS.fail", r#"{"code":50,"msg":"daemon is away"}"#);
        for _ in 0..3 {
            let error = scene.network.ready().await.expect_err("not ready");
            assert_eq!(
                error.message(),
                "CNI STATUS of network \"net\": plugin \"fake\": daemon is away (CNI error 50)"
            );
        }
        assert_eq!(scene.log(), ["fake.STATUS "], "asked once");
        assert_eq!(scene.told("fake.STATUS.stdin")["cniVersion"], "1.1.0");
        // A new configuration is asked at once, and concurrent callers share the answer.
        std::fs::remove_file(scene.path("bin/fake.STATUS.fail")).expect("removed");
        scene.configure("10-net.conflist", &fake("new", "1.1.0"));
        let (a, b) = tokio::join!(scene.network.ready(), scene.network.ready());
        assert_eq!((a, b, scene.log().len()), (Ok(()), Ok(()), 2));
        assert_eq!(scene.network.load_status(), [(String::new(), Ok(()))]);
    });
}

/// CNI-22: plugins may take longer than who asks for the node's status waits.
#[test]
fn an_answer_that_is_late_is_known_to_the_next_who_asks() {
    on_own_host(|| async {
        let scene = Scene::new(&[("10-net.conflist", fake("net", "1.1.0"))]);
        scene.script("fake");
        scene.order("fake.STATUS.hang", "");
        assert!(scene.network.last_status().is_none());
        let soon = tokio::time::timeout(Duration::from_millis(50), scene.network.ready()).await;
        assert!(soon.is_err(), "{soon:?}");
        std::fs::remove_file(scene.path("bin/fake.STATUS.hang")).expect("removed");
        scene.network.ready().await.expect("ready");
        assert_eq!(scene.network.last_status(), Some(Ok(())));
        assert_eq!(scene.log(), ["fake.STATUS "], "asked once");
        scene.configure("10-net.conflist", &fake("new", "1.1.0"));
        assert!(scene.network.last_status().is_none(), "that of another network");
    });
}

#[test]
fn the_description_has_the_built_in_plugins_form() {
    let scene = Scene::with("loopback = \"plugin\"", &[("10-net.conflist", fake("net", "1.0.0"))]);
    let described = scene.network.describe();
    assert_eq!(described["PluginConfDir"], json!(scene.path("net.d")));
    assert_eq!((&described["PluginMaxConfNum"], &described["Prefix"]), (&json!(1), &json!("eth")));
    let networks = described["Networks"].as_array().expect("a list");
    assert_eq!(
        (&networks[0]["IFName"], &networks[0]["Config"]["Name"]),
        (&json!("lo"), &json!("cni-loopback"))
    );
    assert_eq!(
        (&networks[1]["IFName"], &networks[1]["Config"]["CNIVersion"]),
        (&json!("eth0"), &json!("1.0.0"))
    );
    let plugin = &networks[1]["Config"]["Plugins"][0];
    assert_eq!((&plugin["Network"]["type"], &plugin["Network"]["ipam"]), (&json!("fake"), &json!({})));
    assert!(plugin["Source"].as_str().expect("text").contains("\"fake\""));
    assert!(networks[1]["Config"]["Source"].as_str().expect("text").contains("plugins"));
}

#[test]
fn handlers_may_have_networks_of_their_own() {
    on_own_host(|| async {
        let mut scene = Scene::new(&[("10-net.conflist", fake("net", "1.0.0"))]);
        scene.script("fake");
        scene.order("fake.ADD.out", &result("1.0.0", "10.0.0.1/8"));
        std::fs::create_dir(scene.path("kata.d")).expect("a folder");
        let text = std::fs::read_to_string(scene.path("config.toml")).expect("the file");
        let section = format!(
            "[runtime.handlers.runc]\n[runtime.handlers.kata]\ncni_conf_dir = {:?}\n",
            scene.path("kata.d")
        );
        std::fs::write(scene.path("config.toml"), text + &section).expect("written");
        scene.restart();
        scene.network.ready().await.expect("the default network counts");
        let status = scene.network.load_status();
        assert_eq!((&status[0].0[..], &status[1].0[..]), ("", "kata"));
        assert!(status[0].1.is_ok() && status[1].1.is_err());
        let pod = PodNetwork { handler: "kata".to_owned(), ..scene.pod().await };
        let error = scene.attach(&pod).await.expect_err("nothing there");
        assert!(error.message().contains("kata.d"), "{error}");
        std::fs::write(scene.path("kata.d/1.conflist"), fake("vm", "1.0.0").to_string()).expect("written");
        scene.network.reload();
        scene.attach(&pod).await.expect("attaches");
        assert_eq!(scene.told("fake.ADD.stdin")["name"], "vm");
        scene.detached(&pod).await;
        for handler in ["", "runc"] {
            let pod = PodNetwork { handler: handler.to_owned(), ..scene.pod().await };
            scene.attach(&pod).await.expect("attaches");
            assert_eq!(scene.told("fake.ADD.stdin")["name"], "net");
            scene.detached(&pod).await;
        }
    });
}

#[tokio::test]
async fn a_configuration_is_made_from_the_template_where_there_is_none() {
    let scene = Scene::new(&[]);
    let text = std::fs::read_to_string(scene.path("config.toml")).expect("the file");
    let text = format!("{text}conf_template = {:?}\n", scene.path("template"));
    std::fs::write(scene.path("config.toml"), text).expect("written");
    let without = scene.network.clone();
    let mut scene = scene;
    scene.restart();
    let file = scene.path("net.d/10-containerd-net.conflist");
    let template = concat!(
        r#"{"cniVersion":"1.0.0","name":"made","plugins":[{"type":"ptp","ipam":{"type":"host-local","subnet":"{{.PodCIDR}}","#,
        r#""ranges":[{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],"#,
        r#""routes":[{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]}}]}"#,
    );
    for (template, cidr, fails) in [
        (template, "", false),
        (template, "10.0.0.0/33", true),
        (template, "10.0.0.0/24,", true),
        ("{{.Nope}}", "10.0.0.0/24", true),
        ("{\"name\": \"no plugins\"}", "10.0.0.0/24", true),
    ] {
        std::fs::write(scene.path("template"), template).expect("written");
        assert_eq!(scene.network.write_from_template(cidr).await.is_err(), fails, "{template} {cidr}");
        assert!(!file.exists());
    }
    assert_eq!(
        without.write_from_template("nonsense").await.expect_err("checked").kind(),
        Kind::InvalidArgument
    );
    without.write_from_template("10.0.0.0/24").await.expect("no template, nothing to do");
    assert!(!file.exists());

    std::fs::write(scene.path("template"), template).expect("written");
    scene.network.write_from_template("10.0.0.0/24, 2001:db8::/64").await.expect("written");
    let made: Value = serde_json::from_slice(&std::fs::read(&file).expect("the file")).expect("JSON");
    let want = json!({
        "type": "host-local", "subnet": "10.0.0.0/24",
        "ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "2001:db8::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    });
    assert_eq!(made["plugins"][0]["ipam"], want);
    scene.network.ready().await.expect("it is loaded");
    scene.network.write_from_template("10.9.0.0/24").await.expect("nothing to do");
    let again: Value = serde_json::from_slice(&std::fs::read(&file).expect("the file")).expect("JSON");
    assert_eq!(again, made, "a valid network is left alone");
    assert_eq!(scene.entries("net.d").len(), 1, "no temporary files");
}
