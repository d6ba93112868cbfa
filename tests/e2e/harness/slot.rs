//! Numbers that no two running tests have at the same time, on the whole machine.
//!
//! A slot is a locked file. It holds the path of its owner's folder for as long as there
//! is something to clean up: who takes the slot after a test that was killed finds it there
//! and cleans up first.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The same for all users of this machine, whatever their TMPDIR: bridges are, too.
const FOLDER: &str = "/tmp/ls-slots";
/// As many as there are third bytes of an address.
const SLOTS: u8 = 250;

/// A slot that is held.
pub(crate) struct Slot {
    /// Its number.
    pub(crate) number: u8,
    file: File,
}

impl Slot {
    /// Takes a free slot for `owner`; gives also the folder that its last owner left.
    pub(crate) fn take(owner: &Path) -> (Slot, Option<PathBuf>) {
        std::fs::create_dir_all(FOLDER).expect("a folder for slots");
        for number in 0..SLOTS {
            let path = Path::new(FOLDER).join(number.to_string());
            let options = File::options().read(true).write(true).create(true).truncate(false).open(&path);
            let file = options.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            match file.try_lock() {
                Ok(()) => {
                    let mut slot = Slot { number, file };
                    let left = slot.read();
                    slot.write(&owner.to_string_lossy());
                    return (slot, left);
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => panic!("lock {}: {error}", path.display()),
            }
        }
        panic!("all {SLOTS} slots in {FOLDER} are taken");
    }

    /// Says that nothing is left to clean up.
    pub(crate) fn clear(&mut self) {
        self.write("");
    }

    fn read(&mut self) -> Option<PathBuf> {
        let mut text = String::new();
        self.file.read_to_string(&mut text).expect("a slot is read");
        (!text.is_empty()).then(|| text.into())
    }

    fn write(&mut self, text: &str) {
        self.file.set_len(0).expect("a slot is written");
        self.file.seek(SeekFrom::Start(0)).expect("a slot is written");
        self.file.write_all(text.as_bytes()).expect("a slot is written");
    }
}
