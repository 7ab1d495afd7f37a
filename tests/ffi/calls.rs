//! A bounded number of random programs for the C interface: `tests/fuzz/calls.rs` says what they are.

#[path = "../fuzz/calls.rs"]
mod calls;
#[cfg(guided)]
#[path = "../fuzz/guided.rs"]
mod guided;
mod support;

use std::time::{Duration, Instant};

use mistral_core::testing::Random;
use mistral_core::{Control, Model, ModelOptions};
use support::temp;
use support::tiny::write_tiny_model_of;

const PROGRAMS: usize = 6000;

/// What `tests/fuzz.sh calls` runs; `FUZZ` has the folder and the flags of libFuzzer.
#[test]
#[cfg(guided)]
#[ignore = "endless, but for its flags"]
fn guided_by_coverage() {
    let words = std::env::var("FUZZ").expect("a folder and flags in FUZZ");
    let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
    let [folder, flags @ ..] = &words[..] else { panic!("a folder and flags of libFuzzer") };
    let model = tiny_model() as usize;
    let target = guided::Guided {
        seeds: calls::seeds(),
        mutate: Box::new(|seeds, input, seed| {
            let mut random = Random::new(seed.into());
            let other = &seeds[random.bits() as usize % seeds.len()];
            let at = random.bits() as usize % (input.len() + 1);
            input.splice(at..at, other.iter().copied());
        }),
        run: Box::new(move |input| drop(calls::run(model as calls::Handle, input))),
    };
    guided::drive(target, folder.as_ref(), flags);
}

/// A handle of a tiny model, whose context is soon full: what is sought is in the calls.
fn tiny_model() -> calls::Handle {
    let folder = temp();
    let path = folder.path().join("tiny.gguf");
    write_tiny_model_of(&path, 1, 32);
    let options = ModelOptions { threads: Some(1), max_memory: Some(64 << 20), ..ModelOptions::default() };
    let model = Model::open(&path, &options, &mut Control::none()).expect("a model");
    mistral::testing::adopt(model).cast()
}

#[test]
fn no_sequence_of_calls_is_answered_by_a_bug() {
    let model = tiny_model();
    let (mut random, mut accepted, mut slowest) = (Random::new(1), 0, Duration::ZERO);
    let seeds = calls::seeds();
    for program in 0..PROGRAMS {
        let mut input = match program % 3 {
            0 => (0..80).map(|_| random.bits() as u8).collect(),
            _ => seeds[random.bits() as usize % seeds.len()].repeat(1 + program % 2),
        };
        for _ in 0..program % 7 {
            let at = random.bits() as usize % input.len();
            input[at] = random.bits() as u8;
        }
        let start = Instant::now();
        accepted += usize::from(calls::run(model, &input));
        slowest = slowest.max(start.elapsed());
    }
    calls::free(model);
    assert!(accepted > PROGRAMS / 2, "{accepted} programs did something");
    assert!(slowest < Duration::from_secs(60), "{slowest:?}");
}
