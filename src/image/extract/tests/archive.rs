//! Archives for tests, written byte by byte: also such that no program writes.

use std::fmt::Write;

/// An archive that is being written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Archive(Vec<Part>);

#[derive(Clone, Debug)]
enum Part {
    File(File),
    Raw(Vec<u8>),
}

/// An entry of an archive.
#[derive(Clone, Debug)]
pub(crate) struct File {
    kind: u8,
    name: Vec<u8>,
    link: Vec<u8>,
    mode: u32,
    owner: (u64, u64),
    mtime: u64,
    device: (u64, u64),
    data: Vec<u8>,
    /// What the header says, where that is not the length of the data.
    size: Option<u64>,
    records: Vec<u8>,
    /// Bytes of the header that are set last, before its checksum.
    patches: Vec<(usize, Vec<u8>)>,
}

impl Archive {
    /// With these entries, and no end yet.
    pub(crate) fn of(files: impl IntoIterator<Item = File>) -> Archive {
        files.into_iter().fold(Archive::default(), Archive::with)
    }

    pub(crate) fn with(mut self, file: File) -> Archive {
        self.0.push(Part::File(file));
        self
    }

    /// Adds bytes that are no entry.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Archive {
        self.0.push(Part::Raw(bytes.to_vec()));
        self
    }

    /// With `path` for each `@` in the names and links.
    pub(crate) fn named(mut self, path: &str) -> Archive {
        let put = |text: &mut Vec<u8>| {
            *text = text.split(|byte| *byte == b'@').collect::<Vec<_>>().join(path.as_bytes());
        };
        for part in &mut self.0 {
            if let Part::File(file) = part {
                put(&mut file.name);
                put(&mut file.link);
            }
        }
        self
    }

    /// The bytes, with two blocks of zeros at the end.
    pub(crate) fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).bytes()
    }

    /// The bytes so far.
    pub(crate) fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in &self.0 {
            match part {
                Part::File(file) => file.write(&mut bytes),
                Part::Raw(raw) => bytes.extend_from_slice(raw),
            }
        }
        bytes
    }
}

/// An entry of any kind.
pub(crate) fn entry(kind: u8, name: impl AsRef<[u8]>) -> File {
    File {
        kind,
        name: name.as_ref().to_vec(),
        link: Vec::new(),
        mode: if kind == b'5' { 0o755 } else { 0o644 },
        owner: (0, 0),
        mtime: 1_000_000_000,
        device: (0, 0),
        data: Vec::new(),
        size: None,
        records: Vec::new(),
        patches: Vec::new(),
    }
}

pub(crate) fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> File {
    File { data: data.as_ref().to_vec(), ..entry(b'0', name) }
}

pub(crate) fn folder(name: impl AsRef<[u8]>) -> File {
    entry(b'5', name)
}

pub(crate) fn symlink(name: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> File {
    File { link: to.as_ref().to_vec(), mode: 0o777, ..entry(b'2', name) }
}

pub(crate) fn hard_link(name: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> File {
    File { link: to.as_ref().to_vec(), ..entry(b'1', name) }
}

/// A whiteout of `base` in `folder`, which ends with a slash or is empty.
pub(crate) fn whiteout(folder: &str, base: &str) -> File {
    file(format!("{folder}.wh.{base}"), "")
}

pub(crate) fn opaque(folder: &str) -> File {
    whiteout(folder, ".wh..opq")
}

/// A PAX record.
pub(crate) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key, b"=", value, b"\n"].concat();
    let mut length = rest.len();
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    [length.to_string().as_bytes(), &rest].concat()
}

impl File {
    pub(crate) fn mode(self, mode: u32) -> File {
        File { mode, ..self }
    }

    pub(crate) fn owner(self, uid: u64, gid: u64) -> File {
        File { owner: (uid, gid), ..self }
    }

    pub(crate) fn mtime(self, mtime: u64) -> File {
        File { mtime, ..self }
    }

    pub(crate) fn device(self, major: u64, minor: u64) -> File {
        File { device: (major, minor), ..self }
    }

    pub(crate) fn data(self, data: impl AsRef<[u8]>) -> File {
        File { data: data.as_ref().to_vec(), ..self }
    }

    pub(crate) fn size(self, size: u64) -> File {
        File { size: Some(size), ..self }
    }

    /// With a PAX record.
    pub(crate) fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> File {
        self.records.extend(record(key.as_ref(), value.as_ref()));
        self
    }

    pub(crate) fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> File {
        self.pax(format!("SCHILY.xattr.{name}"), value)
    }

    /// With other bytes in its header.
    pub(crate) fn patch(mut self, at: usize, bytes: &[u8]) -> File {
        self.patches.push((at, bytes.to_vec()));
        self
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        let mut records = self.records.clone();
        for (key, value) in [("path", &self.name), ("linkpath", &self.link)] {
            if value.len() > 100 {
                records.extend(record(key.as_bytes(), value));
            }
        }
        if !records.is_empty() {
            File { data: records, ..entry(b'x', "PaxHeaders/0") }.write(bytes);
        }
        bytes.extend_from_slice(&self.header());
        bytes.extend_from_slice(&self.data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }

    fn header(&self) -> [u8; 512] {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, &octal(self.mode.into(), 8));
        put(108, &octal(self.owner.0, 8));
        put(116, &octal(self.owner.1, 8));
        put(124, &octal(self.size.unwrap_or(self.data.len() as u64), 12));
        put(136, &octal(self.mtime, 12));
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, &octal(self.device.0, 8));
        put(337, &octal(self.device.1, 8));
        for (at, bytes) in &self.patches {
            put(*at, bytes);
        }
        put(148, b"        ");
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        header[148..155].copy_from_slice(&octal(sum, 7));
        header
    }
}

/// A number in a field, in base 256 where it has no room in octal.
fn octal(value: u64, width: usize) -> Vec<u8> {
    let mut text = String::new();
    write!(text, "{value:0width$o}\0", width = width - 1).expect("a string grows");
    if text.len() == width {
        return text.into_bytes();
    }
    let mut field = vec![0; width.saturating_sub(8)];
    field.extend(&value.to_be_bytes()[8usize.saturating_sub(width)..]);
    field[0] |= 0x80;
    field
}
