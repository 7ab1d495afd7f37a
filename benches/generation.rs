//! Speed and memory of one model on this machine.
//!
//! `cargo bench --bench generation -- --model PATH [--threads N] [--device NAME] [--repeat N] [--depths 0,2048] [--cache-type q8_0]`
//!
//! Prints a table and, on the last line, the same as JSON. Every figure is the median of the repeats, with the smallest and the largest; reading
//! memory is measured between them, so that the shares are of the same minutes: that of the adapter for `wgpu`, and what it multiplies at most.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

#[path = "support/read.rs"]
mod read;
#[path = "support/root.rs"]
mod root;

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use mistral_core::config::{FeedForwardConfig, LayerConfig};
use mistral_core::kernels::CacheType;
use mistral_core::{Control, Error, Model, ModelOptions, Result, Session, SessionOptions};

const PREFILL: [usize; 2] = [128, 512];
const DEPTHS: [usize; 3] = [0, 2048, 8192];
const DECODE_TOKENS: usize = 32;

struct Arguments {
    model: PathBuf,
    options: ModelOptions,
    repeat: usize,
    depths: Vec<usize>,
    cache_type: CacheType,
}

/// The results of one thing measured several times.
struct Figure {
    name: String,
    unit: &'static str,
    values: Vec<f64>,
}

fn main() -> Result<()> {
    let arguments = arguments()?;
    let start = Instant::now();
    let model = Model::open(root::from_root(&arguments.model), &arguments.options, &mut Control::none())?;
    let open = start.elapsed().as_secs_f64();
    let cache_type = arguments.cache_type;
    let mut first = model.session(&context(&model, 16, cache_type)?)?;
    first.prefill(&[1], &mut Control::none())?;
    let first_token = start.elapsed().as_secs_f64();
    drop(first);
    let bytes = model.bytes_per_token()?;
    // The peak of the model's own work: reading memory below takes buffers of its own.
    let longest = model.weights()?.config.max_context;
    prefill(&model, PREFILL[1].min(longest), cache_type)?;
    let deepest = arguments.depths.iter().copied().filter(|d| d + DECODE_TOKENS <= longest).max();
    decode(&model, deepest.unwrap_or(0), cache_type)?;
    let peak = peak_rss_mib();
    settle(&model);
    let mut figures = measure(&model, &arguments)?;
    figures.insert(0, Figure { name: "open".into(), unit: "s", values: vec![open] });
    figures.insert(1, Figure { name: "open to first token".into(), unit: "s", values: vec![first_token] });
    figures.push(Figure { name: "peak resident memory".into(), unit: "MiB", values: vec![peak] });
    let info = model.info();
    println!(
        "on {}",
        info["device_info"]["adapter"]["adapter"].as_str().or(info["device"].as_str()).unwrap_or("?")
    );
    report(&arguments, bytes, products(&model)?, &figures);
    Ok(())
}

fn measure(model: &Arc<Model>, arguments: &Arguments) -> Result<Vec<Figure>> {
    let longest = model.weights()?.config.max_context;
    let mut figures: Vec<Figure> = Vec::new();
    let mut add = |name: String, unit: &'static str, value: f64| match figures
        .iter_mut()
        .find(|figure| figure.name == name)
    {
        Some(figure) => figure.values.push(value),
        None => figures.push(Figure { name, unit, values: vec![value] }),
    };
    let limits = Limits::of(model);
    for _ in 0..arguments.repeat {
        limits.measure(&mut |name, unit, value| add(name.to_owned(), unit, value));
        for tokens in PREFILL.into_iter().filter(|&t| t <= longest) {
            add(format!("prefill {tokens}"), "token/s", prefill(model, tokens, arguments.cache_type)?);
        }
        for depth in arguments.depths.iter().copied().filter(|&d| d + DECODE_TOKENS <= longest) {
            add(format!("decode at {depth}"), "token/s", decode(model, depth, arguments.cache_type)?);
        }
    }
    Ok(figures)
}

/// What the machine, or its adapter, does at most.
struct Limits<'a> {
    model: &'a Model,
    /// Of a model on the processor.
    memory: Option<read::Memory>,
}

impl<'a> Limits<'a> {
    fn of(model: &'a Model) -> Self {
        let memory = (!model.device().has_own_memory()).then(|| read::Memory::new(model.threads()));
        Self { model, memory }
    }

    fn measure(&self, add: &mut dyn FnMut(&str, &'static str, f64)) {
        if let Some(memory) = &self.memory {
            return add("read memory", "GB/s", memory.bandwidth());
        }
        #[cfg(feature = "wgpu")]
        if let Some(limits) = mistral_core::testing::adapter_limits(self.model) {
            add("read memory", "GB/s", limits.reading);
            add("products in f32", "G/s", limits.f32_products);
            if let Some(products) = limits.f16_products {
                add("products in f16", "G/s", products);
            }
        }
        let _ = self.model;
    }
}

/// Products of one token with all matrices of the layers, in billions; the output layer sees the last position alone.
fn products(model: &Model) -> Result<f64> {
    let config = &model.weights()?.config;
    let attention = 2 * config.dim * config.head_dim * (config.n_heads + config.n_kv_heads);
    let feed_forward = |layer: &LayerConfig| match layer.feed_forward {
        FeedForwardConfig::Dense => 3 * config.dim * config.hidden_dim,
        FeedForwardConfig::Moe { n_experts_per_tok, .. } => {
            3 * config.dim * config.hidden_dim * n_experts_per_tok
        }
    };
    let all: usize = config.layers.iter().map(|layer| attention + feed_forward(layer)).sum();
    Ok(all as f64 / 1e9)
}

/// Waits for the large pages that the weights are moved to, up to half a minute.
fn settle(model: &Model) {
    for _ in 0..3000 {
        let pages = &model.info()["weights"]["large_pages"];
        if pages["bytes"].as_u64() >= pages["of"].as_u64() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn prefill(model: &Arc<Model>, tokens: usize, cache_type: CacheType) -> Result<f64> {
    let mut session = model.session(&context(model, tokens, cache_type)?)?;
    let start = Instant::now();
    session.prefill(&ids(model, 0, tokens), &mut Control::none())?;
    Ok(tokens as f64 / start.elapsed().as_secs_f64())
}

fn decode(model: &Arc<Model>, depth: usize, cache_type: CacheType) -> Result<f64> {
    let mut session = model.session(&context(model, depth + DECODE_TOKENS + 1, cache_type)?)?;
    // The first token warms the caches up and is not counted.
    session.prefill(&ids(model, 0, depth.max(1)), &mut Control::none())?;
    let start = Instant::now();
    for i in 0..DECODE_TOKENS {
        step(&mut session, ids(model, depth + i, 1)[0])?;
    }
    Ok(DECODE_TOKENS as f64 / start.elapsed().as_secs_f64())
}

fn step(session: &mut Session, token: u32) -> Result<()> {
    session.prefill(&[token], &mut Control::none())?;
    black_box(session.logits());
    Ok(())
}

fn context(model: &Arc<Model>, positions: usize, cache_type: CacheType) -> Result<SessionOptions> {
    let positions = positions.min(model.weights()?.config.max_context);
    Ok(SessionOptions { context: Some(positions), cache_type })
}

/// Tokens that are the same in every run, spread over the vocabulary.
fn ids(model: &Model, from: usize, count: usize) -> Vec<u32> {
    (from..from + count).map(|i| (i * 7919 % model.vocab_size()) as u32).collect()
}

/// The most memory that this process ever held, in MiB; 0 where the system does not tell.
fn peak_rss_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)).and_then(|kib| kib.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

fn report(arguments: &Arguments, bytes: u64, products: f64, figures: &[Figure]) {
    println!("{}", arguments.model.display());
    println!("{:<24} {:>10} {:>10} {:>10}", "", "median", "least", "most");
    let mut json = serde_json::Map::new();
    json.insert("model".into(), arguments.model.display().to_string().into());
    for Figure { name, unit, values } in figures {
        let [median, least, most] = spread(values);
        println!("{name:<24} {median:>10.2} {least:>10.2} {most:>10.2} {unit}");
        json.insert(name.replace(' ', "_"), median.into());
    }
    let value = |name: &str| figures.iter().find(|f| f.name == name).map(|f| spread(&f.values)[0]);
    if let (Some(decode), Some(read)) = (value("decode at 0"), value("read memory")) {
        let rate = decode * bytes as f64 / 1e9;
        println!(
            "decode reads {:.1} MB a token: {rate:.1} GB/s, {:.0}% of reading memory",
            bytes as f64 / 1e6,
            100.0 * rate / read
        );
        json.insert("decode_share_of_bandwidth".into(), (rate / read).into());
    }
    for kind in ["f32", "f16"] {
        let most = value(&format!("products in {kind}"));
        if let (Some(prefill), Some(most)) = (value(&format!("prefill {}", PREFILL[1])), most) {
            let rate = prefill * products;
            println!(
                "prefill: {rate:.0} G products a second, {:.0}% of those in {kind}",
                100.0 * rate / most
            );
            json.insert(format!("prefill_share_of_{kind}"), (rate / most).into());
        }
    }
    println!("{}", serde_json::Value::Object(json));
}

fn spread(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1]]
}

fn arguments() -> Result<Arguments> {
    let mut parsed = Arguments {
        model: PathBuf::new(),
        options: ModelOptions::default(),
        repeat: 5,
        depths: DEPTHS.to_vec(),
        cache_type: CacheType::default(),
    };
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| Error::argument(&word, "nothing", "a value"))?;
        let number = || value.parse::<usize>().map_err(|_| Error::argument(&word, &value, "a number"));
        match word.as_str() {
            "--model" => parsed.model = value.into(),
            "--device" => parsed.options.device = value,
            "--threads" => parsed.options.threads = Some(number()?),
            "--depths" => {
                let depths = value
                    .split(',')
                    .map(|depth| depth.parse().map_err(|_| Error::argument(&word, &value, "numbers")));
                parsed.depths = depths.collect::<Result<_>>()?;
            }
            "--cache-type" => {
                let known = [CacheType::F16, CacheType::F32, CacheType::Q8_0];
                let found = known.into_iter().find(|known| known.name() == value);
                parsed.cache_type =
                    found.ok_or_else(|| Error::argument(&word, &value, "f16, f32 or q8_0"))?;
            }
            "--repeat" => parsed.repeat = number()?.max(1),
            _ => {
                return Err(Error::argument(
                    &word,
                    value,
                    "--model, --device, --threads, --depths, --cache-type or --repeat",
                ));
            }
        }
    }
    if parsed.model.as_os_str().is_empty() {
        return Err(Error::argument("--model", "nothing", "a model file or folder"));
    }
    Ok(parsed)
}
