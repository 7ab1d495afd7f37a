//! Fuzzing on the stable toolchain: seeds that are changed at random, by bytes and by structure, and read. Nothing may panic, hang or
//! take more memory than the target allows.
//!
//! `cargo test` runs a bounded number of rounds. For longer, or for one round again:
//!
//! ```console
//! $ cargo test --release -p mistral-core --test fuzz -- template --rounds 1000000 --seed 7
//! $ cargo test --release -p mistral-core --test fuzz -- template --first 4711 --rounds 1 --seed 7 --show
//! ```
//!
//! A round depends on the seed and its number alone. `tests/fuzz.sh` runs the same targets under libFuzzer and AddressSanitizer.
#![allow(clippy::print_stdout, reason = "a test program without a harness prints its results")]

mod files;
#[cfg(guided)]
mod guided;
mod memory;
mod mutate;
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mutate::Random;
use targets::Target;

/// A round that takes longer is reported as a hang, by a thread beside it: far more than any takes on a busy machine.
const HANG: Duration = Duration::from_secs(60);

/// The number of the round that runs, for the thread that watches it.
static ROUND: AtomicU64 = AtomicU64::new(0);

struct Options {
    names: Vec<String>,
    rounds: Option<u64>,
    first: u64,
    seed: u64,
    show: bool,
}

impl Options {
    /// Flags of the usual test harness mean nothing here.
    fn read(arguments: impl Iterator<Item = String>) -> Self {
        let mut options = Self { names: Vec::new(), rounds: None, first: 0, seed: 1, show: false };
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            let mut number = || arguments.next().and_then(|text| text.parse().ok()).expect("a number");
            match argument.as_str() {
                "--rounds" => options.rounds = Some(number()),
                "--first" => options.first = number(),
                "--seed" => options.seed = number(),
                "--show" => options.show = true,
                flag if flag.starts_with('-') => {}
                name => options.names.push(name.to_owned()),
            }
        }
        options
    }
}

/// `NAME FOLDER FLAG…`: a target under libFuzzer.
#[cfg(guided)]
fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [name, folder, flags @ ..] = &words[..] else { panic!("a target, a folder and flags of libFuzzer") };
    let mut targets = targets::TARGETS.into_iter().chain(files::TARGETS);
    let target = targets.find(|target| target.name == name).expect("the name of a target");
    let seeds = (target.seeds)();
    let run = move |input: &[u8]| {
        let (_, peak) = memory::peak_of(|| (target.run)(input));
        let bound = target.memory + 64 * input.len();
        assert!(peak <= bound, "took {peak} bytes, more than {bound}");
    };
    let words = target.words;
    let mutate = Box::new(move |seeds: &[Vec<u8>], input: &mut Vec<u8>, seed: u32| {
        mutate::change(input, seeds, words, &mut Random::new(seed.into(), 0));
    });
    let status = guided::drive(guided::Guided { seeds, mutate, run: Box::new(run) }, folder.as_ref(), flags);
    files::clean();
    status
}

#[cfg(not(guided))]
fn main() -> ExitCode {
    let options = Options::read(std::env::args().skip(1));
    std::thread::spawn(watch);
    let wanted =
        |target: &&Target| options.names.is_empty() || options.names.iter().any(|name| name == target.name);
    let failed: usize = targets::TARGETS
        .iter()
        .chain(&files::TARGETS)
        .filter(wanted)
        .map(|target| fuzz(target, &options))
        .sum();
    files::clean();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the rounds of a target; the number of those that failed.
fn fuzz(target: &Target, options: &Options) -> usize {
    let seeds = (target.seeds)();
    let rounds = options.rounds.unwrap_or(target.rounds);
    let (mut failed, mut accepted, mut most) = (0, 0, 0);
    let found = targets::FOUND.iter().filter(|(name, _)| *name == target.name);
    let found = found.map(|(_, input)| (u64::MAX - 1, input.as_bytes().to_vec()));
    let changed = (options.first..options.first + rounds)
        .map(|round| (round, mutate::input(&seeds, target, &mut Random::new(options.seed, round))));
    for (round, input) in found.chain(changed) {
        ROUND.store(round, Ordering::Relaxed);
        if options.show {
            println!("{}", String::from_utf8_lossy(&input));
        }
        let (result, peak) = memory::peak_of(|| catch_unwind(AssertUnwindSafe(|| (target.run)(&input))));
        most = most.max(peak);
        let wrong = match result {
            Ok(good) => {
                accepted += u64::from(good);
                let bound = target.memory + 64 * input.len();
                (peak > bound).then(|| format!("took {peak} bytes, more than {bound}"))
            }
            Err(_) => Some("panicked".to_owned()),
        };
        if let Some(wrong) = wrong {
            failed += 1;
            println!("fuzz {}: round {round} of seed {} {wrong}", target.name, options.seed);
        }
    }
    println!("fuzz {}: {rounds} rounds, {accepted} accepted, at most {most} bytes", target.name);
    // Inputs that are all refused at once would test nothing.
    let idle = options.rounds.is_none() && accepted * 200 < rounds;
    if idle {
        println!("fuzz {}: hardly any input was accepted", target.name);
    }
    failed + usize::from(idle)
}

/// Ends the process where a round does not end.
fn watch() {
    let mut seen = (u64::MAX, Instant::now());
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let round = ROUND.load(Ordering::Relaxed);
        if seen.0 != round {
            seen = (round, Instant::now());
        } else if seen.1.elapsed() > HANG {
            println!("round {round} does not end");
            std::process::exit(1);
        }
    }
}
