//! Every target over its corpus and a fixed set of mutations: the bounded run that each change gets.
//!
//! The same inputs each time, so a failure is always the change's and can be had again. Finding new
//! inputs is libFuzzer's work (docs/fuzzing.md).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use v6pod_fuzz::{TARGETS, Target};

/// How many mutations each target gets.
const MUTATIONS: usize = 4000;
/// No mutation is longer, in bytes.
const LONGEST: usize = 16 * 1024;

fn names_in(folder: &str) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect()
}

/// The inputs in order of their names: a directory's own order differs from machine to machine.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| fs::read(file).unwrap()).collect()
}

/// SplitMix64: enough to choose places by, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        const TELLING: &[u8] = b"\0\x01\x04\x7f\x80\xff09afAZ+-_.:/%&=\"'\\{}[], \n6";
        if self.below(2) == 0 { TELLING[self.below(TELLING.len())] } else { self.below(256) as u8 }
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let (a, b) = (self.below(length + 1), self.below(length + 1));
        a.min(b)..a.max(b)
    }
}

fn mutate(dice: &mut Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[dice.below(seeds.len())].clone();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len());
        match dice.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, dice.byte()),
            2 => {
                let range = dice.range(bytes.len());
                bytes.drain(range);
            }
            3 => {
                let other = &seeds[dice.below(seeds.len())];
                let piece = other[dice.range(other.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let byte = dice.byte();
                bytes.get_mut(at).into_iter().for_each(|b| *b = byte);
            }
        }
    }
    bytes.truncate(LONGEST);
    bytes
}

fn hold(name: &str, target: Target, input: &[u8]) {
    let result = catch_unwind(AssertUnwindSafe(|| target(input)));
    assert!(result.is_ok(), "{name} does not hold for {:?}", input.escape_ascii().to_string());
}

#[test]
fn every_target_holds_for_its_corpus_and_what_is_near_it() {
    for (name, target) in TARGETS {
        let seeds = corpus(name);
        assert!(!seeds.is_empty(), "{name} has no corpus");
        seeds.iter().for_each(|seed| hold(name, *target, seed));
        hold(name, *target, b"");
        let mut dice = Dice(name.len() as u64);
        (0..MUTATIONS).for_each(|_| hold(name, *target, &mutate(&mut dice, &seeds)));
    }
}

#[test]
fn every_target_is_a_program_and_has_a_corpus() {
    let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names_in("fuzz_targets"), names);
    assert_eq!(names_in("corpus"), names);
}
