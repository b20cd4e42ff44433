//! The fuzz targets on any toolchain: their corpora, and simple mutations of them, replayed.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fs;
use std::path::Path;

use trilog_tests::fuzz::{TARGETS, Target};

/// Mutations of each file.
const MUTATIONS: usize = 1_500;

/// The inputs of a target that were worth keeping, by name.
fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target.name);
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.display().to_string(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

/// A generator good enough to choose where to do damage.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end.max(1)).unwrap();
        usize::try_from(self.next() % end).unwrap()
    }
}

/// A few small damages of the kinds that find something.
fn mutate(bytes: &[u8], other: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..=chance.below(3) {
        let at = chance.below(out.len());
        match chance.below(6) {
            0 => out.truncate(at),
            1 if !out.is_empty() => out[at] ^= 1 << chance.below(8),
            2 if !out.is_empty() => out[at] = [0, 1, 0x7f, 0x80, 0xff][chance.below(5)],
            3 => {
                let extreme = [0_u32, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff][chance.below(5)];
                for (slot, byte) in out.iter_mut().skip(at).zip(extreme.to_be_bytes()) {
                    *slot = byte;
                }
            }
            4 => {
                let from = chance.below(other.len());
                let len = chance.below(other.len() - from + 1);
                out.splice(at..at, other[from..from + len].iter().copied());
            }
            _ => {
                let end = at + chance.below(out.len() - at + 1);
                out.drain(at..end);
            }
        }
    }
    out
}

#[test]
fn every_corpus_and_its_mutations_pass() {
    for target in TARGETS {
        let files = corpus(target);
        assert!(!files.is_empty(), "{} has no corpus", target.name);
        let mut chance = Chance(7);
        for (name, bytes) in &files {
            run_and_tell(name, bytes, target);
            for _ in 0..MUTATIONS / target.cost {
                let other = &files[chance.below(files.len())].1;
                let mutant = mutate(bytes, other, &mut chance);
                run_and_tell(name, &mutant, target);
            }
        }
    }
}

/// Runs the target; if it panics, the test's output ends with the input that did it.
fn run_and_tell(name: &str, bytes: &[u8], target: &Target) {
    let run = || (target.run)(bytes);
    if let Err(panic) = std::panic::catch_unwind(run) {
        eprintln!(
            "{} failed on a mutation of {name}: {bytes:02x?}",
            target.name
        );
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn noise_of_any_length_passes() {
    let mut chance = Chance(11);
    for target in TARGETS {
        for len in (0..600).step_by(target.cost) {
            let noise: Vec<u8> = (0..len).map(|_| chance.next().to_le_bytes()[0]).collect();
            run_and_tell("noise", &noise, target);
        }
    }
}
