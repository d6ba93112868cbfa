//! The spec files of some directories, and the devices in them.
//!
//! A later directory goes over an earlier one. Two files of one directory with the same
//! device cancel each other: nobody can say which is meant.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file::{self, Spec};

/// A spec file has at most this many bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// The most files that are read of a directory.
const FILES_MAX: usize = 4096;

/// What the directories hold.
#[derive(Default)]
pub(super) struct Loaded {
    devices: HashMap<String, Found>,
    /// What could not be used, and why.
    pub(super) problems: BTreeMap<PathBuf, String>,
}

/// Where a device is.
enum Found {
    /// In this file, at this place.
    Once(Arc<Spec>, usize, PathBuf),
    /// In several files.
    Conflict(Vec<PathBuf>),
}

/// A device and the file that it is from.
#[derive(Clone)]
pub(super) struct Device {
    pub(super) spec: Arc<Spec>,
    index: usize,
}

impl Device {
    /// The device's own edits.
    pub(super) fn edits(&self) -> &file::Edits {
        &self.spec.devices[self.index].container_edits
    }
}

impl Loaded {
    /// Reads all files.
    pub(super) fn read(directories: &[PathBuf]) -> Loaded {
        let mut loaded = Loaded::default();
        for directory in directories {
            let found = loaded.read_directory(directory);
            loaded.devices.extend(found);
        }
        loaded
    }

    /// The device of that name.
    ///
    /// # Errors
    /// Why there is none, for the one who asked.
    pub(super) fn device(&self, name: &str) -> Result<Device, String> {
        match self.devices.get(name) {
            Some(Found::Once(spec, index, _)) => Ok(Device { spec: spec.clone(), index: *index }),
            Some(Found::Conflict(paths)) => {
                let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
                Err(format!("it is in {}", paths.join(" and ")))
            }
            None => Err("no CDI spec has it".to_owned()),
        }
    }

    fn read_directory(&mut self, directory: &Path) -> HashMap<String, Found> {
        let mut devices: HashMap<String, Found> = HashMap::new();
        let paths = match files(directory) {
            Ok(paths) => paths,
            Err(error) => {
                self.problems.insert(directory.to_owned(), error);
                return devices;
            }
        };
        for path in paths {
            let spec = match read_file(&path) {
                Ok(spec) => Arc::new(spec),
                Err(problem) => {
                    self.problems.insert(path, problem);
                    continue;
                }
            };
            for (index, device) in spec.devices.iter().enumerate() {
                let name = format!("{}={}", spec.kind, device.name);
                let found = match devices.remove(&name) {
                    None => Found::Once(spec.clone(), index, path.clone()),
                    Some(Found::Once(_, _, other)) => Found::Conflict(vec![other, path.clone()]),
                    Some(Found::Conflict(mut others)) => {
                        others.push(path.clone());
                        Found::Conflict(others)
                    }
                };
                devices.insert(name, found);
            }
        }
        for (name, found) in &devices {
            let Found::Conflict(paths) = found else { continue };
            for path in paths {
                let text = self.problems.entry(path.clone()).or_default();
                let separator = if text.is_empty() { "" } else { "; " };
                text.push_str(&format!("{separator}device {name} is in another file of this directory, too"));
            }
        }
        devices
    }
}

/// The spec files of a directory, in the order of their names; none if it is not there.
fn files(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| error.to_string())?,
    };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is_spec_name(path) && !path.is_dir())
        .take(FILES_MAX + 1)
        .collect();
    if paths.len() > FILES_MAX {
        return Err(format!("there are more than {FILES_MAX} files"));
    }
    paths.sort_unstable();
    Ok(paths)
}

/// Whether a file of this name is a spec.
pub(super) fn is_spec_name(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "json" || end == "yaml")
}

fn read_file(path: &Path) -> Result<Spec, String> {
    let found = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !found.is_file() {
        return Err("it is no regular file".into());
    }
    if found.len() > FILE_BYTES_MAX {
        return Err(format!("it has more than {FILE_BYTES_MAX} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    file::parse(&text, path.extension().is_some_and(|end| end == "json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, kind: &str, devices: &[&str]) {
        let devices: String = devices
            .iter()
            .map(|name| format!("- {{name: {name}, containerEdits: {{env: [FROM={}]}}}}\n", path.display()))
            .collect();
        let text = format!("cdiVersion: 0.5.0\nkind: {kind}\ndevices:\n{devices}");
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, text).expect("written");
    }

    fn from(loaded: &Loaded, name: &str) -> Result<String, String> {
        loaded.device(name).map(|device| device.edits().env[0].clone())
    }

    #[test]
    fn a_later_directory_goes_over_an_earlier_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let (low, high) = (folder.path().join("low"), folder.path().join("high"));
        write(&low.join("a.yaml"), "v.com/c", &["a", "b"]);
        write(&high.join("x.yaml"), "v.com/c", &["a"]);
        // Conflicts below are settled above.
        write(&low.join("c.yaml"), "v.com/d", &["a"]);
        write(&low.join("d.yaml"), "v.com/d", &["a"]);
        write(&high.join("d.yaml"), "v.com/d", &["a"]);
        let loaded = Loaded::read(&[low.clone(), folder.path().join("none"), high.clone()]);
        assert_eq!(from(&loaded, "v.com/c=a"), Ok(format!("FROM={}", high.join("x.yaml").display())));
        assert_eq!(from(&loaded, "v.com/c=b"), Ok(format!("FROM={}", low.join("a.yaml").display())));
        assert_eq!(from(&loaded, "v.com/d=a"), Ok(format!("FROM={}", high.join("d.yaml").display())));
        assert_eq!(from(&loaded, "v.com/c=c"), Err("no CDI spec has it".into()));
        assert_eq!(loaded.problems.keys().collect::<Vec<_>>(), [&low.join("c.yaml"), &low.join("d.yaml")]);
    }

    #[test]
    fn a_device_that_is_twice_in_a_directory_is_nowhere() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = ["1.yaml", "2.yaml", "3.yaml"].map(|name| folder.path().join(name));
        for path in &paths {
            write(path, "v.com/c", &["a", path.file_stem().expect("a name").to_str().expect("text")]);
        }
        let loaded = Loaded::read(&[folder.path().to_owned()]);
        let [first, second, third] = paths.each_ref().map(|path| path.display().to_string());
        assert_eq!(from(&loaded, "v.com/c=a"), Err(format!("it is in {first} and {second} and {third}")));
        for name in ["1", "2", "3"] {
            assert!(from(&loaded, &format!("v.com/c={name}")).is_ok(), "{name}");
        }
        assert_eq!(loaded.problems.len(), 3);
    }

    #[test]
    fn broken_files_do_not_disturb_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        write(&path("good.yaml"), "v.com/c", &["a"]);
        std::fs::write(path("broken.json"), "{").expect("written");
        std::fs::write(path("binary.yaml"), [0xff, 0xfe]).expect("written");
        std::fs::write(path("README.md"), "no spec").expect("written");
        std::fs::write(path("new.yaml.tmp"), "no spec").expect("written");
        std::fs::create_dir(path("folder.json")).expect("made");
        std::os::unix::fs::symlink("nowhere", path("link.json")).expect("linked");
        rustix::fs::mkfifoat(rustix::fs::CWD, path("pipe.json"), rustix::fs::Mode::RWXU).expect("made");
        std::fs::File::create(path("large.json"))
            .and_then(|file| file.set_len(FILE_BYTES_MAX + 1))
            .expect("made");
        let loaded = Loaded::read(&[folder.path().to_owned()]);
        assert!(from(&loaded, "v.com/c=a").is_ok());
        let broken: Vec<_> = loaded.problems.keys().filter_map(|path| path.file_name()?.to_str()).collect();
        assert_eq!(broken, ["binary.yaml", "broken.json", "large.json", "link.json", "pipe.json"]);
    }
}
