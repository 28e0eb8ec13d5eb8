//! Every decoder's first inputs, and some thousands of changes of these: a
//! fuzzer's first minute, the same each time.

use bulkhead_fuzz::TARGETS;
use std::{fs, path::Path};

/// For each decoder; some take a tenth of a millisecond each.
const ROUNDS: u64 = 4000;

/// splitmix64: the same numbers for the same seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }
}

/// What fuzzers do first: bits, bytes, numbers at their ends, pieces doubled, dropped or moved.
fn change(bytes: &mut Vec<u8>, numbers: &mut Numbers) {
    for _ in 0..=numbers.below(3) {
        let (at, other) = (numbers.below(bytes.len()), numbers.below(bytes.len()));
        let (from, to) = (at.min(other), at.max(other));
        match numbers.below(8) {
            _ if bytes.is_empty() => bytes.push(b'{'),
            0 => bytes[at] ^= 1 << numbers.below(8),
            1 => bytes[at] = [0, 0xff, 0x7f, 0x80, b'"', b'\n', b'-', b'9'][numbers.below(8)],
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(from..to)),
            4 => {
                let piece = bytes[from..to].to_vec();
                bytes.splice(at..at, piece);
            }
            5 => bytes.insert(at, bytes[other]),
            6 => bytes.swap(at, other),
            _ => bytes[at..].iter_mut().take(4).for_each(|byte| *byte = 0xff),
        }
    }
    bytes.truncate(64 << 10);
}

#[test]
fn no_decoder_panics_or_reads_two_ways() {
    for target in TARGETS {
        let mut inputs = (target.seeds)();
        assert!(!inputs.is_empty(), "{} has no first input", target.name);
        // Changes of what is refused at its first byte find nothing.
        assert!(inputs.iter().all(|input| (target.run)(input)), "{} refuses a first input", target.name);
        // What fuzzing has found.
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
        if corpus.exists() {
            for entry in fs::read_dir(corpus).unwrap() {
                inputs.push(fs::read(entry.unwrap().path()).unwrap());
            }
        }
        for input in &inputs {
            (target.run)(input);
        }
        let mut numbers = Numbers(target.name.len() as u64);
        for round in 0..ROUNDS {
            let mut bytes = inputs[numbers.below(inputs.len())].clone();
            change(&mut bytes, &mut numbers);
            let caught = std::panic::catch_unwind(|| (target.run)(&bytes));
            assert!(caught.is_ok(), "{} in round {round}: {}", target.name, String::from_utf8_lossy(&bytes));
        }
    }
}
