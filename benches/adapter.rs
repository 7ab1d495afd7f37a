//! The kernels of an adapter by themselves: how fast one token reads weights, how fast many are multiplied, what attention and a launch cost.
//!
//! `cargo bench --features wgpu --bench adapter [-- --device wgpu:N] [--formats Q4_0,F16] [--repeat N] [--shapes ROWSxCOLS,…]`
//!
//! Matrices are those of a 7B model, in memory that no cache of the adapter holds. Medians of the repeats; what the adapter reads and multiplies at most is measured
//! between them.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use mistral_core::kernels::{AttentionSpec, CacheSpec, CacheType};
use mistral_core::quant::Format;
use mistral_core::testing::Adapter;
use mistral_core::{Error, Result};
use serde_json::json;

const TOKENS: [usize; 4] = [1, 8, 128, 512];

struct Arguments {
    device: String,
    formats: Vec<Format>,
    shapes: Vec<(usize, usize)>,
    repeat: usize,
}

fn main() -> Result<()> {
    let arguments = arguments()?;
    let adapter = Adapter::new(&arguments.device)?;
    println!("on {}", adapter.name());
    let limits = (0..arguments.repeat).map(|_| adapter.limits()).collect::<Result<Vec<_>>>()?;
    let reading = median(limits.iter().map(|limits| limits.reading).collect());
    let multiplying = median(limits.iter().map(|limits| limits.f32_products).collect());
    println!("reads {reading:.0} GB/s, multiplies {multiplying:.0} G/s in f32");
    let [launch, trip] = adapter.launch()?.map(|seconds| 1e6 * seconds);
    println!("a launch among others {launch:.1} µs; logits of one token, there and back, {trip:.1} µs");
    let mut lines = Vec::new();
    for format in &arguments.formats {
        for &(rows, cols) in &arguments.shapes {
            let mut samples = vec![Vec::new(); TOKENS.len()];
            let mut bytes = 0;
            for _ in 0..arguments.repeat {
                let seconds;
                (bytes, seconds) = adapter.linear(*format, rows, cols, &TOKENS)?;
                samples.iter_mut().zip(seconds).for_each(|(samples, seconds)| samples.push(seconds));
            }
            let seconds: Vec<f64> = samples.into_iter().map(median).collect();
            let rate = bytes as f64 / seconds[0] / 1e9;
            print!("{:<6} {rows:>6} x {cols:<6}", format.name());
            print!(" one {:>7.1} µs {rate:>6.0} GB/s {:>3.0}%", 1e6 * seconds[0], 100.0 * rate / reading);
            for (tokens, seconds) in TOKENS.into_iter().zip(&seconds).skip(1) {
                let products = (tokens * rows * cols) as f64 / seconds / 1e9;
                print!(
                    "  {tokens} {:>8.1} µs {products:>6.0} G/s {:>3.0}%",
                    1e6 * seconds,
                    100.0 * products / multiplying
                );
            }
            println!();
            lines.push(json!({ "format": format.name(), "rows": rows, "cols": cols, "bytes": bytes, "seconds": seconds }));
        }
    }
    let mut attention = Vec::new();
    for (start, tokens) in [(0, 1), (255, 1), (2047, 1), (8191, 1), (0, 512), (1536, 512)] {
        let cache = CacheSpec { n_kv_heads: 8, capacity: 8192, head_dim: 128, cache_type: CacheType::F16 };
        let spec = AttentionSpec { cache, n_heads: 32, start, window: None, scale: 0.088 };
        let seconds =
            median((0..arguments.repeat).map(|_| adapter.attention(&spec, tokens)).collect::<Result<_>>()?);
        println!("attention of {tokens} after {start}: {:.1} µs", 1e6 * seconds);
        attention.push(json!({ "start": start, "tokens": tokens, "seconds": seconds }));
    }
    println!(
        "{}",
        json!({ "adapter": adapter.name(), "reading": reading, "f32": multiplying, "linear": lines, "attention": attention })
    );
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn arguments() -> Result<Arguments> {
    let mut parsed = Arguments {
        device: "wgpu".to_owned(),
        formats: vec![Format::Q4_0, Format::Q8_0, Format::Q4_K, Format::F16],
        shapes: vec![(4096, 4096), (14_336, 4096), (4096, 14_336)],
        repeat: 3,
    };
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| Error::argument(&word, "nothing", "a value"))?;
        let wrong = |expected: &'static str| Error::argument(&word, &value, expected);
        match word.as_str() {
            "--device" => parsed.device = value,
            "--repeat" => parsed.repeat = value.parse::<usize>().map_err(|_| wrong("a number"))?.max(1),
            "--formats" => {
                let find = |name| Format::all().find(|format| format.name() == name);
                parsed.formats =
                    value.split(',').map(find).collect::<Option<_>>().ok_or_else(|| wrong("formats"))?;
            }
            "--shapes" => {
                let shape = |text: &str| {
                    let (rows, cols) = text.split_once('x')?;
                    Some((rows.parse().ok()?, cols.parse().ok()?))
                };
                parsed.shapes =
                    value.split(',').map(shape).collect::<Option<_>>().ok_or_else(|| wrong("ROWSxCOLS"))?;
            }
            _ => return Err(wrong("--device, --formats, --shapes or --repeat")),
        }
    }
    Ok(parsed)
}
