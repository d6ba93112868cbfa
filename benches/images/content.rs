//! Contents of files: always the same for a seed, and about as compressible as what is in
//! images of programs.

use std::io::{self, Write};

/// How much is made at once.
const PIECE_BYTES: usize = 64 << 10;
/// Words and instructions come in bands that are equally likely, each twice as wide as the
/// one before: the nth is about n times rarer than the first.
const BANDS: u64 = 12;
const SEPARATORS: [&str; 16] =
    [" ", " ", " ", " ", " ", ", ", "_", "_", ".", " = ", "(", ") ", "\n    ", ".\n", ";\n", ":\n        "];

/// What a file is like.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// Words and punctuation: sources, documents, scripts.
    Text,
    /// Instructions with their operands, tables and strings: programs and libraries.
    Program,
    /// What is compressed already: pictures, archives.
    Compressed,
}

/// A fixed sequence of numbers without a pattern (SplitMix64).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is far below 2³².
    pub(super) fn below(&mut self, limit: usize) -> usize {
        (((self.next() >> 32) * limit as u64) >> 32) as usize
    }

    /// A number from `least` to `least` · 2^`doublings`: each doubling is equally likely.
    pub(super) fn spread(&mut self, least: usize, doublings: usize) -> usize {
        let band = least << self.below(doublings);
        band + self.below(band)
    }
}

/// What contents are made of.
pub(super) struct Source {
    words: Vec<String>,
    instructions: Vec<Vec<u8>>,
    piece: Vec<u8>,
}

impl Source {
    pub(super) fn new() -> Source {
        let mut random = Random::new(1);
        let count = 1 << BANDS;
        let words = (0..count).map(|_| word(&mut random)).collect();
        let instruction = |_| (0..2 + random.below(7)).map(|_| random.next() as u8).collect();
        let instructions = (0..count).map(instruction).collect();
        Source { words, instructions, piece: Vec::with_capacity(2 * PIECE_BYTES) }
    }

    /// A word, the frequent ones more often.
    pub(super) fn word(&self, random: &mut Random) -> &str {
        &self.words[frequent(random.next())]
    }

    /// Writes `bytes` of a kind.
    pub(super) fn fill(
        &mut self,
        kind: Kind,
        bytes: usize,
        random: &mut Random,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let mut left = bytes;
        while left > 0 {
            self.piece.clear();
            match kind {
                Kind::Text => self.text(random),
                Kind::Program => self.program(random),
                Kind::Compressed => self.noise(random),
            }
            let part = left.min(PIECE_BYTES);
            out.write_all(&self.piece[..part])?;
            left -= part;
        }
        Ok(())
    }

    fn text(&mut self, random: &mut Random) {
        while self.piece.len() < PIECE_BYTES {
            let number = random.next();
            self.piece.extend_from_slice(self.words[frequent(number)].as_bytes());
            let separator = SEPARATORS[(number >> 60) as usize];
            self.piece.extend_from_slice(separator.as_bytes());
        }
    }

    fn program(&mut self, random: &mut Random) {
        match random.below(16) {
            // Room that is not used.
            0 => self.piece.resize(PIECE_BYTES, 0),
            // Names.
            1 => {
                while self.piece.len() < PIECE_BYTES {
                    let number = random.next();
                    self.piece.extend_from_slice(self.words[frequent(number)].as_bytes());
                    self.piece.push(if number >> 63 == 0 { b'_' } else { 0 });
                }
            }
            // A table of addresses that rise.
            2 | 3 => {
                let mut address = random.next() >> 40;
                while self.piece.len() < PIECE_BYTES {
                    address += 8 * (1 + random.next() % 64);
                    self.piece.extend_from_slice(&address.to_le_bytes());
                }
            }
            _ => {
                while self.piece.len() < PIECE_BYTES {
                    let number = random.next();
                    self.piece.extend_from_slice(&self.instructions[frequent(number)]);
                    // Some have an operand: a small number, a distance, a byte of anything.
                    match number >> 61 {
                        0 => self.piece.push((number >> 48) as u8 & 0x78),
                        1 => self.piece.extend_from_slice(&[
                            (number >> 48) as u8,
                            (number >> 56) as u8 & 7,
                            0,
                            0,
                        ]),
                        2 => self.piece.push((number >> 48) as u8),
                        _ => {}
                    }
                }
            }
        }
    }

    fn noise(&mut self, random: &mut Random) {
        while self.piece.len() < PIECE_BYTES {
            self.piece.extend_from_slice(&random.next().to_le_bytes());
        }
    }
}

/// The place of a word or an instruction that the lower 32 bits of a number choose.
fn frequent(number: u64) -> usize {
    let band = ((number & 0xFFFF) * BANDS) >> 16;
    let width = 1 << band;
    let place = (((number >> 16) & 0xFFFF) * width) >> 16;
    (width - 1 + place) as usize
}

fn word(random: &mut Random) -> String {
    const SYLLABLES: [&str; 24] = [
        "an", "ber", "con", "de", "er", "fi", "get", "he", "in", "ko", "la", "map", "ne", "o", "pre", "re",
        "sta", "set", "ti", "un", "ver", "wo", "x", "ing",
    ];
    (0..1 + random.below(4)).map(|_| SYLLABLES[random.below(SYLLABLES.len())]).collect()
}
