//! The kernels by themselves: how fast one row reads weights, and how fast many rows are multiplied, for each format and, packed, each arm; how fast attention reads
//! keys and values.
//!
//! `cargo bench --bench kernels [-- --threads N] [--repeat N] [--formats Q4_0,BF16] [--depth N]`; `--formats none` for attention alone
//!
//! One row: a matrix that no cache holds, GB/s of its bytes, as a share of plain reading. 256 rows: products of a weight and an activation a second, as a share
//! of what the arm does with four-bit codes in the first-level cache; of numbers (F32, F16, BF16, FP8 with blocks of scales) as a share of what f32 vectors do in registers. Attention: one token after `--depth` others (2,047), of a layer: keys and values from memory, as a share of
//! plain reading, and from the last-level cache. Each figure is the median of the repeats, the limits are measured between them.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

#[path = "support/read.rs"]
mod read;

use std::time::Instant;

use mistral_core::kernels::{Activation, AttentionSpec, CacheSpec, CacheType};
use mistral_core::quant::Format;
use mistral_core::testing::{AttentionCase, KernelCase, NumbersCase, arms};
use mistral_core::{Error, Result};
use serde_json::{Value, json};

const PACKED: [Format; 10] = [
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q8_0,
    Format::Q4_K,
    Format::Q5_K,
    Format::Q6_K,
    Format::IQ4_NL,
    Format::IQ4_XS,
];
const NUMBERS: [Format; 4] = [Format::F32, Format::F16, Format::BF16, Format::F8E4M3];
/// Rows of those, whose elements are larger.
const NUMBERS_ROWS: usize = ROWS / 4;
/// Four matrices of a 7B model: 132 MB and more, several times the last-level cache.
const ROWS: usize = 57_344;
const COLS: usize = 4096;
const MANY: usize = 256;
/// Rounds of the loop that measures the limit of the arithmetic.
const ROUNDS: usize = 2_000_000;

fn main() -> Result<()> {
    let arguments = arguments()?;
    println!("{:<8} {:<12} {:>10} {:>10} {:>10} {:>10}", "", "", "GB/s", "of reading", "GMAC/s", "of limit");
    let mut lines = Vec::new();
    let memory = read::Memory::new(arguments.threads);
    for format in arguments.formats.iter().copied() {
        let numbers = NUMBERS.contains(&format);
        // The scalar arm is there for machines without the others, and slow.
        let arms = arms().into_iter().filter(|arm| *arm != "scalar" || arms().len() == 1);
        for arm in arms.take(if numbers { 1 } else { usize::MAX }) {
            let samples = if numbers {
                numbers_samples(format, &memory, &arguments)?
            } else {
                packed_samples(format, arm, &memory, &arguments)?
            };
            let [read, limit, mac, peak] = samples.map(median);
            let (of_reading, of_limit) = (100.0 * read / limit, 100.0 * mac / peak);
            let arm = if numbers { "f32" } else { arm };
            println!(
                "{:<8} {arm:<12} {read:>10.2} {of_reading:>9.0}% {mac:>10.1} {of_limit:>9.0}%",
                format.name()
            );
            lines.push(json!({ "format": format.name(), "arm": arm, "gb_per_s": read, "read_gb_per_s": limit, "gmac_per_s": mac, "peak_gmac_per_s": peak }));
        }
    }
    let attention = attention(&memory, &arguments)?;
    println!(
        "{}",
        json!({ "threads": arguments.threads, "rows": ROWS, "cols": COLS, "kernels": lines, "depth": arguments.depth, "attention": attention })
    );
    Ok(())
}

/// GB/s of one row, and of plain reading; GMAC/s of many rows, and of the limit.
type Samples = [Vec<f64>; 4];

fn packed_samples(
    format: Format,
    arm: &str,
    memory: &read::Memory,
    arguments: &Arguments,
) -> Result<Samples> {
    let case = KernelCase::new(format, ROWS, COLS, arguments.threads)?;
    let (one, many) = (vec![0.5; COLS], vec![0.5; MANY * COLS]);
    let int8 = Activation::Int8;
    let mut samples = Samples::default();
    for _ in 0..arguments.repeat {
        let [read, plain, mac, peak] = &mut samples;
        timed(read, || case.run(arm, int8, &one, 1), |_| case.bytes())?;
        plain.push(memory.bandwidth());
        timed(mac, || case.run(arm, int8, &many, MANY), |_| MANY * ROWS * COLS)?;
        timed(peak, || case.peak(arm, ROUNDS), |products| products.as_ref().map_or(0, |n| *n as usize))?;
    }
    Ok(samples)
}

fn numbers_samples(format: Format, memory: &read::Memory, arguments: &Arguments) -> Result<Samples> {
    let case = NumbersCase::new(format, NUMBERS_ROWS, COLS, arguments.threads)?;
    let (one, many) = (vec![0.5; COLS], vec![0.5; MANY * COLS]);
    let mut samples = Samples::default();
    for _ in 0..arguments.repeat {
        let [read, plain, mac, peak] = &mut samples;
        timed(read, || case.run(&one, 1), |()| case.bytes());
        plain.push(memory.bandwidth());
        timed(mac, || case.run(&many, MANY), |()| MANY * NUMBERS_ROWS * COLS);
        timed(peak, || case.peak(ROUNDS), |products| *products as usize);
    }
    Ok(samples)
}

/// Adds the billions a second of the `work` that `run` did to the rates; returns what it returned.
fn timed<R>(rates: &mut Vec<f64>, run: impl FnOnce() -> R, work: impl FnOnce(&R) -> usize) -> R {
    let start = Instant::now();
    let result = run();
    rates.push(work(&result) as f64 / start.elapsed().as_secs_f64() / 1e9);
    result
}

/// Query heads, key heads, and the elements of each: of SmolLM2-135M, a 1B and a 7B model.
const HEADS: [(usize, usize, usize); 3] = [(9, 3, 64), (32, 8, 64), (32, 8, 128)];
/// Bytes of keys and values that no cache holds.
const FAR: usize = 128 << 20;
/// Runs over one layer, as one after the other as those over the layers of a model.
const NEAR: usize = 16;

fn attention(memory: &read::Memory, arguments: &Arguments) -> Result<Vec<Value>> {
    let (depth, threads) = (arguments.depth, arguments.threads);
    println!(
        "\n{:<14} {:<12} {:>10} {:>10} {:>10} {:>10}",
        "attention", "", "\u{b5}s", "GB/s", "of reading", "cached, \u{b5}s"
    );
    let mut lines = Vec::new();
    for (n_heads, n_kv_heads, head_dim) in HEADS {
        for (name, cache_type) in [("f16", CacheType::F16), ("q8_0", CacheType::Q8_0)] {
            let cache = CacheSpec { n_kv_heads, capacity: depth + 1, head_dim, cache_type };
            let layers = FAR.div_ceil(2 * cache.bytes()).max(2);
            let spec = AttentionSpec { n_heads, start: depth, window: None, scale: 0.125, cache };
            let far = AttentionCase::new(spec.clone(), layers, threads)?;
            let near = AttentionCase::new(spec, 1, threads)?;
            let bytes = near.bytes() as f64;
            let mut samples: [Vec<f64>; 3] = Default::default();
            for _ in 0..arguments.repeat {
                let seconds = |run: &dyn Fn()| {
                    let start = Instant::now();
                    run();
                    start.elapsed().as_secs_f64()
                };
                samples[0].push(seconds(&|| far.run(1)) / layers as f64);
                samples[1].push(seconds(&|| near.run(NEAR)) / NEAR as f64);
                samples[2].push(memory.bandwidth());
            }
            let [far, near, limit] = samples.map(median);
            let read = bytes / far / 1e9;
            let shape = format!("{n_heads}/{n_kv_heads} x {head_dim}");
            let (far, near) = (far * 1e6, near * 1e6);
            println!(
                "{shape:<14} {name:<12} {far:>10.0} {read:>10.1} {:>9.0}% {near:>10.0}",
                100.0 * read / limit
            );
            lines.push(json!({ "heads": n_heads, "kv_heads": n_kv_heads, "head_dim": head_dim, "cache": name, "us": far, "gb_per_s": read, "read_gb_per_s": limit, "cached_us": near }));
        }
    }
    Ok(lines)
}

fn formats() -> impl Iterator<Item = Format> {
    PACKED.into_iter().chain(NUMBERS)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

struct Arguments {
    threads: usize,
    repeat: usize,
    formats: Vec<Format>,
    depth: usize,
}

fn arguments() -> Result<Arguments> {
    let mut parsed = Arguments { threads: 2, repeat: 5, formats: formats().collect(), depth: 2047 };
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| Error::argument(&word, "nothing", "a value"))?;
        let number = || value.parse::<usize>().map_err(|_| Error::argument(&word, &value, "a whole number"));
        match word.as_str() {
            "--threads" => parsed.threads = number()?.max(1),
            "--repeat" => parsed.repeat = number()?.max(1),
            "--depth" => parsed.depth = number()?,
            "--formats" if value == "none" => parsed.formats.clear(),
            "--formats" => {
                let format = |name: &str| formats().find(|format| format.name() == name);
                let formats: Option<Vec<_>> = value.split(',').map(format).collect();
                parsed.formats =
                    formats.ok_or_else(|| Error::argument(&word, &value, "formats of the table, or none"))?;
            }
            _ => return Err(Error::argument("argument", &word, "--threads, --repeat, --formats or --depth")),
        }
    }
    Ok(parsed)
}
