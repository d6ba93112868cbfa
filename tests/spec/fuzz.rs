//! Broken requests: generated ones, encoded, and then cut, mixed and overwritten, together
//! with the JSON of an image and of a base spec.
//!
//! | variable | meaning |
//! |---|---|
//! | `LONGSHORE_FUZZ_SECONDS` | how long; 3 |
//! | `LONGSHORE_FUZZ_SEED` | where to begin; 1 |

use std::time::{Duration, Instant};

use longshore::proto::cri::{ContainerConfig, PodSandboxConfig};
use longshore::spec::ImageConfig;
use prost::Message;
use serde_json::Value;

use crate::invariants::check;
use crate::random::Random;
use crate::translation::Case;

fn number(variable: &str, otherwise: u64) -> u64 {
    let Ok(text) = std::env::var(variable) else { return otherwise };
    text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is no number"))
}

/// Nothing that a client, an image or a base spec says makes the translation panic, or
/// break a promise.
#[test]
fn fuzz_spec() {
    let end = Instant::now() + Duration::from_secs(number("LONGSHORE_FUZZ_SECONDS", 3));
    let first = number("LONGSHORE_FUZZ_SEED", 1);
    let (mut seed, mut decoded, mut pauses, mut containers) = (first, 0u64, 0u64, 0u64);
    while Instant::now() < end {
        let result = std::panic::catch_unwind(|| one(seed));
        let Ok(Counts { is_decoded, has_pause, has_container }) = result else {
            panic!("seed {seed}: LONGSHORE_FUZZ_SEED={seed} LONGSHORE_FUZZ_SECONDS=1 shows it first");
        };
        decoded += u64::from(is_decoded);
        pauses += u64::from(has_pause);
        containers += u64::from(has_container);
        seed += 1;
    }
    let all = seed - first;
    println!("{all} requests, {decoded} decoded, {pauses} pause specs, {containers} container specs");
    assert!(all > 0);
}

#[derive(Default)]
struct Counts {
    is_decoded: bool,
    has_pause: bool,
    has_container: bool,
}

fn one(seed: u64) -> Counts {
    let mut random = Random::new(seed);
    let mut case = Case::generate(&mut random);
    let other = Case::generate(&mut random);
    let pod = broken(&mut random, case.pod.encode_to_vec(), &other.pod.encode_to_vec());
    let config = broken(&mut random, case.config.encode_to_vec(), &other.config.encode_to_vec());
    let (Ok(pod), Ok(config)) =
        (PodSandboxConfig::decode(pod.as_slice()), ContainerConfig::decode(config.as_slice()))
    else {
        return Counts::default();
    };
    (case.pod, case.config) = (pod, config);
    let image = image_json(&case.image);
    if let Ok(image) = serde_json::from_slice::<ImageConfig>(&broken(&mut random, image, b"null")) {
        case.image = image;
    }
    if let Some(base) = case.base_spec.take() {
        let text = broken(&mut random, base.to_string().into_bytes(), b"{\"process\":null}");
        // A base spec is an object, or the server does not start.
        case.base_spec = serde_json::from_slice::<Value>(&text).ok().filter(Value::is_object);
        // Broken ones say anything of devices and capabilities, which is then the owner's will.
        if case.base_spec.as_ref() != Some(&base) {
            let specs = case.translate();
            return Counts {
                is_decoded: true,
                has_pause: specs.pause.is_ok(),
                has_container: specs.container.is_ok(),
            };
        }
    }
    case.accounts.0 = broken(&mut random, case.accounts.0, b"x:x:0:0:\n");
    case.accounts.1 = broken(&mut random, case.accounts.1, b"x:x:0:web,,\n");
    case.profile =
        String::from_utf8_lossy(&broken(&mut random, case.profile.into_bytes(), b"{}")).into_owned();
    check(&case);
    let specs = case.translate();
    Counts { is_decoded: true, has_pause: specs.pause.is_ok(), has_container: specs.container.is_ok() }
}

fn image_json(image: &ImageConfig) -> Vec<u8> {
    let volumes: serde_json::Map<String, Value> =
        image.volumes.iter().map(|target| (target.clone(), Value::Object(Default::default()))).collect();
    serde_json::json!({
        "User": image.user, "Env": image.env, "Entrypoint": image.entrypoint, "Cmd": image.cmd,
        "Volumes": volumes, "WorkingDir": image.working_dir, "StopSignal": image.stop_signal,
    })
    .to_string()
    .into_bytes()
}

/// `bytes` with none to some things done to it; `other` is of the same sort.
fn broken(random: &mut Random, mut bytes: Vec<u8>, other: &[u8]) -> Vec<u8> {
    let times = random.pick(&[0, 0, 1, 1, 2, 4]);
    for _ in 0..times {
        let place = random.below(bytes.len() + 1);
        match random.below(8) {
            // Two messages after each other are one: fields of both, lists of both.
            0 | 1 => bytes.extend_from_slice(other),
            2 => {
                let piece = other.get(random.below(other.len() + 1)..).unwrap_or_default().to_vec();
                bytes.splice(place..place, piece);
            }
            3 => bytes.truncate(place),
            4 => {
                let end = (place + random.below(16)).min(bytes.len());
                bytes.drain(place..end);
            }
            5 => {
                let byte = random.pick(&[0, 1, 0x7f, 0x80, 0xff, b'/', b'.']);
                bytes.insert(place, byte);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
    }
    bytes
}
