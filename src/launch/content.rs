//! Synthetic files whose pages are as similar and as compressible as those of real systems.
//!
//! Files of the machine would do, but they differ from one machine to the next, and a demo must not
//! depend on any. The mix of a boot image is a guess at a small Linux system: mostly machine code, some
//! text, some zeroes, some data that is compressed already.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use crate::units::{Bytes, PAGE_SIZE};

/// Words of the text pages.
const WORDS: [&str; 32] = [
    "the",
    "page",
    "of",
    "memory",
    "guest",
    "is",
    "host",
    "a",
    "frame",
    "to",
    "share",
    "and",
    "balloon",
    "swap",
    "in",
    "idle",
    "error:",
    "kernel",
    "limit",
    "=",
    "true",
    "socket",
    "/usr/lib",
    "config",
    "when",
    "not",
    "returns",
    "value",
    "0x1f",
    "[ok]",
    "thread",
    "started\n",
];

/// Patterns for the code pages: opcode bytes that recur, followed by operands that vary.
const OPCODES: [[u8; 3]; 16] = [
    [0x48, 0x89, 0xe5],
    [0x48, 0x8b, 0x45],
    [0x48, 0x83, 0xec],
    [0xe8, 0x00, 0x00],
    [0x0f, 0x1f, 0x44],
    [0x48, 0x8d, 0x3d],
    [0x89, 0xc7, 0x31],
    [0x74, 0x05, 0x48],
    [0xc3, 0x66, 0x90],
    [0x55, 0x41, 0x57],
    [0x41, 0x56, 0x53],
    [0xff, 0x25, 0x00],
    [0x85, 0xc0, 0x75],
    [0x4c, 0x89, 0xf6],
    [0x5b, 0x5d, 0xc3],
    [0x48, 0xc7, 0xc0],
];

/// What a page holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Code,
    Text,
    Zero,
    Random,
}

impl Kind {
    /// Of ten pages, one is zero and one is random. The others are code and text, about two to one.
    fn choose(rng: &mut StdRng) -> Self {
        match rng.random_range(0..100) {
            0..54 => Self::Code,
            54..80 => Self::Text,
            80..90 => Self::Zero,
            _ => Self::Random,
        }
    }
}

/// Writes a file of `size`, the same for the same `seed`; asks `may_go_on` about once a MiB.
pub(crate) fn write_file<E: From<io::Error>>(
    path: &Path,
    size: Bytes,
    seed: u64,
    mut may_go_on: impl FnMut() -> Result<(), E>,
) -> Result<(), E> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut file = BufWriter::with_capacity(1 << 20, File::create_new(path)?);
    for page in 0..size.pages().0 {
        if page.is_multiple_of(256) {
            may_go_on()?;
        }
        let kind = Kind::choose(&mut rng);
        file.write_all(&fill(kind, &mut rng))?;
    }
    Ok(file.flush()?)
}

fn fill(kind: Kind, rng: &mut StdRng) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    match kind {
        Kind::Zero => {}
        Kind::Random => rng.fill_bytes(&mut page),
        Kind::Text => fill_with(&mut page, || {
            let word = WORDS[rng.random_range(0..WORDS.len())];
            [word.as_bytes(), b" "].concat()
        }),
        Kind::Code => fill_with(&mut page, || {
            let first = rng.random_range(0..OPCODES.len() - 2);
            let length = rng.random_range(2..=3);
            let mut code = OPCODES[first..first + length].concat();
            code.push(rng.random_range(0..64));
            code
        }),
    }
    page
}

fn fill_with(page: &mut [u8], mut next: impl FnMut() -> Vec<u8>) {
    let mut rest: &mut [u8] = page;
    // The result is ignored: a write to a slice that is nearly full is short, but never an error.
    while !rest.is_empty() {
        let _ = rest.write(&next());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(seed: u64) -> Vec<u8> {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("image");
        let size = Bytes::from_mib(2);
        write_file::<io::Error>(&path, size, seed, || Ok(())).expect("write");
        std::fs::read(path).expect("read")
    }

    #[test]
    fn file_is_the_same_for_a_seed_and_differs_for_another() {
        let image = written(1);
        assert_eq!(image.len(), 2 << 20);
        assert!(image == written(1), "seed 1 twice");
        assert!(image != written(2), "seeds 1 and 2");
    }

    #[test]
    fn pages_compress_as_their_kind_should() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut compressed = |kind| lz4_flex::block::compress(&fill(kind, &mut rng)).len();
        assert!(compressed(Kind::Zero) < 100);
        assert!(compressed(Kind::Text) < 2048);
        assert!((1500..2500).contains(&compressed(Kind::Code)));
        assert!(compressed(Kind::Random) >= PAGE_SIZE);
    }

    #[test]
    fn writing_stops_when_it_may_not_go_on() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("image");
        let mut asked = 0;
        let stopped = write_file::<io::Error>(&path, Bytes::from_mib(8), 1, || {
            asked += 1;
            if asked == 3 {
                Err(io::Error::other("stop"))
            } else {
                Ok(())
            }
        });
        assert_eq!(stopped.expect_err("told to").to_string(), "stop");
        assert_eq!(asked, 3);
    }
}
