//! Detaching pods, whatever has happened before.

use super::*;

#[test]
fn an_address_is_freed_when_the_namespace_is_gone() {
    with_plugins(|| async {
        for is_known in [true, false] {
            let scene =
                Scene::bridged("", json!([{"type": "portmap", "capabilities": {"portMappings": true}}]));
            let mut pod = scene.pod().await;
            scene.attach(&pod).await.expect("attaches");
            netns::remove(pod.netns.as_deref().expect("a namespace")).await.expect("removed");
            if is_known {
                pod.netns = None;
            } else {
                // As a reboot leaves it.
                std::fs::write(pod.netns.as_deref().expect("a path"), "").expect("a file");
            }
            scene.detached(&pod).await;
            assert_eq!(scene.leases("first"), Vec::<String>::new());
        }
    });
}

#[test]
fn removal_needs_no_configuration_directory() {
    with_plugins(|| async {
        let mut scene = Scene::bridged("", json!([]));
        let (first, second, third) = (scene.pod().await, scene.pod().await, scene.pod().await);
        for pod in [&first, &second, &third] {
            scene.attach(pod).await.expect("attaches");
        }
        std::fs::write(scene.path("net.d/10-net.conflist"), "{").expect("broken");
        scene.network.reload();
        let error = scene.attach(&scene.pod().await).await.expect_err("no new pods");
        assert!(error.message().contains("10-net.conflist"), "{error}");
        scene.network.detach(&first).await.expect("detaches");
        std::fs::remove_dir_all(scene.path("net.d")).expect("removed");
        scene.network.reload();
        scene.network.detach(&second).await.expect("detaches");
        scene.restart();
        scene.detached(&third).await;
        assert_eq!(scene.leases("first"), Vec::<String>::new());
        // Nothing is known of it at all.
        scene.network.detach(&scene.pod().await).await.expect("nothing to do");
    });
}

#[test]
fn a_changed_configuration_does_not_concern_pods_that_are_there() {
    with_plugins(|| async {
        let scene = Scene::bridged("", json!([]));
        let pod = scene.pod().await;
        scene.attach(&pod).await.expect("attaches");
        scene.script("fake");
        scene.configure("10-net.conflist", &fake("other", "1.0.0"));
        scene.detached(&pod).await;
        assert_eq!((scene.leases("first"), scene.log()), (vec![], vec![]));
    });
}

#[test]
fn without_a_cache_the_loaded_configuration_serves() {
    with_plugins(|| async {
        for damage in [false, true] {
            let scene = Scene::bridged("", json!([]));
            let pod = scene.pod().await;
            scene.attach(&pod).await.expect("attaches");
            for name in scene.entries("cache/results") {
                let path = scene.path("cache/results").join(name);
                if damage {
                    std::fs::write(path, "\0\0").expect("written")
                } else {
                    std::fs::remove_file(path).expect("removed")
                }
            }
            scene.detached(&pod).await;
            assert_eq!(scene.leases("first"), Vec::<String>::new());
        }
    });
}

#[test]
fn a_failed_removal_can_be_repeated_and_holds_the_address_until_then() {
    with_plugins(|| async {
        let scene = Scene::bridged("", json!([{"type": "fake"}]));
        scene.script("fake");
        scene.order("fake.ADD.fail", r#"{"msg":"no"}"#);
        scene.order("fake.DEL.fail", r#"{"msg":"busy"}"#);
        let pod = scene.pod().await;
        let error = scene.attach(&pod).await.expect_err("it fails");
        assert!(error.message().ends_with("plugin \"fake\": no"), "the error of ADD, not of DEL: {error}");
        assert_eq!((scene.leases("first").len(), scene.entries("cache/results").len()), (1, 1));
        let error = scene.network.detach(&pod).await.expect_err("it fails again");
        assert_eq!(error.message(), "CNI DEL of network \"first\": plugin \"fake\": busy");
        assert_eq!(scene.leases("first").len(), 1);
        scene.order("fake.DEL.fail", r#"{"msg":"eth0 not found"}"#);
        scene.detached(&pod).await;
        assert_eq!(scene.leases("first"), Vec::<String>::new());
    });
}

#[test]
fn one_network_that_fails_is_told_after_all_were_removed() {
    with_plugins(|| async {
        let scene = Scene::with("max_conf_num = 0", &[]);
        scene.script("fake");
        scene.configure("10-a.conflist", &fake("bad", "1.0.0"));
        scene.configure("20-b.conflist", &Scene::bridge(scene.folder.path(), "second", json!([])));
        scene.order("fake.ADD.out", &result("1.0.0", "10.0.0.1/8"));
        let pod = scene.pod().await;
        scene.attach(&pod).await.expect("attaches");
        scene.order("fake.DEL.fail", r#"{"msg":"busy"}"#);
        let error = scene.network.detach(&pod).await.expect_err("one fails");
        assert!(error.message().contains("network \"bad\""), "{error}");
        assert_eq!(scene.leases("second"), Vec::<String>::new(), "the other one was removed");
        std::fs::remove_file(scene.path("bin/fake.DEL.fail")).expect("removed");
        scene.detached(&pod).await;
    });
}

#[test]
fn a_crash_during_add_leaves_what_removal_needs() {
    with_plugins(|| async {
        let mut scene = Scene::bridged("", json!([{"type": "fake"}]));
        scene.script("fake");
        scene.order("fake.ADD.hang", "");
        let pod = scene.pod().await;
        let stage = Stage::default();
        {
            let attaching = scene.network.attach(&pod, &stage);
            tokio::pin!(attaching);
            // The first plugin is done when the second one is called.
            while scene.log().is_empty() {
                tokio::select! {
                    biased;
                    _ = &mut attaching => panic!("it hangs"),
                    () = tokio::task::yield_now() => {}
                }
            }
        }
        assert_eq!(scene.leases("first").len(), 1);
        std::fs::remove_dir_all(scene.path("net.d")).expect("removed");
        scene.restart();
        scene.detached(&pod).await;
        assert_eq!((scene.leases("first"), veths()), (vec![], 0));
    });
}

#[test]
fn garbage_is_what_no_pod_holds() {
    on_own_host(|| async {
        let scene = Scene::new(&[("10-net.conflist", fake("net", "1.1.0"))]);
        scene.script("fake");
        let mut pods = Vec::new();
        for _ in 0..4 {
            let pod = scene.pod().await;
            let netns = pod.netns.as_deref().and_then(Path::to_str).expect("a path");
            scene.order("fake.ADD.out", &result("1.1.0", "10.0.0.1/8").replace("/ns", netns));
            scene.attach(&pod).await.expect("attaches");
            pods.push(pod);
        }
        let [live, gone, running, foreign] = &pods[..] else { panic!("four pods") };
        for pod in [live, gone, foreign] {
            netns::remove(pod.netns.as_deref().expect("a namespace")).await.expect("removed");
        }
        // Somebody else's container, whose arguments are not a pod's.
        let file = scene.path("cache/results").join(format!("net-{}-eth0", foreign.id));
        let text =
            std::fs::read_to_string(&file).expect("the file").replace("K8S_POD_INFRA_CONTAINER_ID", "X");
        std::fs::write(file, text).expect("written");
        scene.network.collect_garbage(std::slice::from_ref(&live.id)).await.expect("collects");
        assert_eq!(scene.log()[4..], ["fake.DEL eth0", "fake.GC "]);
        assert_eq!(scene.entries("cache/results").len(), 3, "one was abandoned");
        let told = std::fs::read_to_string(scene.path("bin/fake.DEL.env")).expect("it was called");
        assert!(
            told.contains(&format!("CNI_CONTAINERID={}", gone.id)) && told.contains("CNI_NETNS=\n"),
            "{told}"
        );
        let mut told = scene.told("fake.GC.stdin");
        let mut valid: Vec<_> = told["cni.dev/valid-attachments"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|one| (one["containerID"].as_str().expect("an id").to_owned(), one["ifname"].clone()))
            .collect();
        let mut want = [live, running, foreign].map(|pod| (pod.id.clone(), json!("eth0")));
        valid.sort_by(|a, b| a.0.cmp(&b.0));
        want.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(valid, want, "all but {}", gone.id);
        assert_eq!(told["cni.dev/attachments"].take(), told["cni.dev/valid-attachments"].take());
        // Older versions do not know the verb.
        scene.configure("10-net.conflist", &fake("net", "1.0.0"));
        let calls = scene.log().len();
        scene.network.collect_garbage(std::slice::from_ref(&live.id)).await.expect("nothing to do");
        assert_eq!(scene.log().len(), calls);
    });
}
