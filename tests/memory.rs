//! The most memory that running a model takes: the file, the cache, 15% of both, and 60 MB.
//!
//! Each model runs in a process of its own (this program again), so that nothing else counts. What the system reports (`VmHWM`) includes the
//! pages of the mapped file that are in memory.
#![allow(clippy::print_stdout, reason = "a test program without a harness prints its results")]

#[path = "support/smollm2.rs"]
mod smollm2;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use mistral_core::cache::KvCache;
use mistral_core::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, RopeStyle};
use mistral_core::kernels::CacheType;
use mistral_core::quant::Format;
use mistral_core::session::PREFILL_CHUNK;
use mistral_core::testing::{TempFolder, write_random_gguf};
use mistral_core::{Control, Model, ModelOptions, SessionOptions};

const CONTEXT: usize = 2048;
/// Tokens that are decoded one by one after the prompt.
const STEPS: usize = 4;
/// The first argument of the process that is measured.
const MEASURE: &str = "--measure";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [command, model, prompt] = arguments.as_slice()
        && command == MEASURE
    {
        run(Path::new(model), prompt.parse().expect("a number"));
        return ExitCode::SUCCESS;
    }
    if !Path::new("/proc/self/status").exists() {
        println!("peak memory: not measured, this system does not tell it");
        return ExitCode::SUCCESS;
    }
    let folder = TempFolder::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("a temporary folder");
    let one_b = folder.path().join("1b.Q4_0.gguf");
    write_random_gguf(&one_b, &one_billion(), Format::Q4_0, 1).expect("a model file");
    // The whole context of the small model is used; that would take the large one too long.
    let small = smollm2::path(&mut |_| ()).unwrap_or_else(|e| panic!("{e}"));
    let cases = [("SmolLM2 135M Q4_1", small, CONTEXT - STEPS), ("1B Q4_0", one_b, 64)];
    let passed = cases.map(|(name, model, prompt)| check(name, &model, prompt));
    if passed.iter().all(|passed| *passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The shape of a model of a billion weights.
fn one_billion() -> ModelConfig {
    ModelConfig {
        architecture: "llama".to_owned(),
        dim: 2048,
        n_heads: 16,
        n_kv_heads: 4,
        head_dim: 128,
        hidden_dim: 7168,
        vocab_size: 32768,
        norm_eps: 1e-5,
        max_context: 4096,
        rope: RopeConfig { theta: 1e6, style: RopeStyle::Interleaved, scaling: RopeScaling::None },
        query_scaling: None,
        tied_embeddings: false,
        layers: vec![LayerConfig { window: None, feed_forward: FeedForwardConfig::Dense }; 16],
    }
}

/// Runs `model` in a process of its own and compares what it took with the bound.
fn check(name: &str, model: &PathBuf, prompt: usize) -> bool {
    let program = std::env::current_exe().expect("the path of this program");
    let output = Command::new(program).arg(MEASURE).arg(model).arg(prompt.to_string()).output();
    let output = output.expect("this program can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let ([peak, cache], true) = (numbers.as_slice(), output.status.success()) else {
        println!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        return false;
    };
    let file = model.metadata().expect("the file").len();
    let bound = (file + cache) * 115 / 100 + 60_000_000;
    let mb = |bytes: u64| bytes as f64 / 1e6;
    println!(
        "{name}: peak {:.1} MB, bound {:.1} MB (file {:.1}, cache {:.1}, 15% of both, 60)",
        mb(*peak),
        mb(bound),
        mb(file),
        mb(*cache)
    );
    *peak <= bound
}

/// Evaluates `prompt` tokens and a few more, then writes the peak of memory and the size of the cache, in bytes.
fn run(path: &Path, prompt: usize) {
    let model = Model::open(path, &ModelOptions::default(), &mut Control::none()).expect("a model");
    let options = SessionOptions { context: Some(CONTEXT), cache_type: CacheType::F16 };
    let mut session = model.session(&options).expect("a session");
    let id = |i: usize| (i * 7919 % model.vocab_size()) as u32;
    let ids: Vec<u32> = (0..prompt).map(id).collect();
    session.prefill(&ids, &mut Control::none()).expect("a prompt");
    for i in prompt..prompt + STEPS {
        session.prefill(&[id(i)], &mut Control::none()).expect("a token");
    }
    let config = &model.weights().expect("weights").config;
    let cache = KvCache::bytes(config, CONTEXT, PREFILL_CHUNK, CacheType::F16).expect("a size");
    println!("{} {cache}", peak_bytes());
}

/// The most memory that this process has had resident.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the status of this process");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("the peak of memory");
    let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number");
    kib * 1024
}
