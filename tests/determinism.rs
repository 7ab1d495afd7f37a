//! The option `reproducible`: the same prompts give the same tokens, and the same bits of the last logits, every time (D1), alone or while other sessions
//! run on the model (D2), and with one thread or two (D3).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mistral_core::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, RopeStyle};
use mistral_core::quant::Format;
use mistral_core::sampler::SamplingParams;
use mistral_core::testing::{TempFolder, write_random_gguf};
use mistral_core::{Control, GenerateOptions, LoadOptions, Model, ModelOptions, Session, SessionOptions};
use serde_json::json;

const RUNS: usize = 3;
const PROMPTS: usize = 200;
const CONTEXT: usize = 256;

/// A prompt, and how its answer is chosen.
struct Case {
    prompt: Vec<u32>,
    options: GenerateOptions,
}

/// Tokens of an answer, and the bits of the logits after it.
type Answer = (Vec<u32>, Vec<u32>);

/// Every second greedy, the others sampled, each with a seed of its own.
fn cases(prompts: Vec<Vec<u32>>, max_tokens: usize) -> Vec<Case> {
    let case = |(i, prompt)| {
        let sampled =
            SamplingParams { temperature: 0.9, top_p: 0.95, seed: i as u64, ..SamplingParams::greedy() };
        let sampling = if i % 2 == 0 { SamplingParams::greedy() } else { sampled };
        let options = GenerateOptions {
            sampling,
            max_tokens: Some(max_tokens),
            ignore_eos: true,
            ..GenerateOptions::default()
        };
        Case { prompt, options }
    };
    prompts.into_iter().enumerate().map(case).collect()
}

fn session(model: &Arc<Model>) -> Session {
    model.session(&SessionOptions { context: Some(CONTEXT), ..SessionOptions::default() }).unwrap()
}

fn answer(session: &mut Session, case: &Case) -> Answer {
    let mut control = Control::none();
    let mut tokens = Vec::new();
    let mut generation = session.generate(&case.prompt, &case.options, &mut control).unwrap();
    while let Some(event) = generation.next(&mut control) {
        tokens.push(event.unwrap().token);
    }
    (tokens, session.logits().iter().map(|logit| logit.to_bits()).collect())
}

/// The same prompt as it may also be given: in two calls, after a longer one of which the beginning is kept, or on a session that was saved.
fn answer_otherwise(model: &Arc<Model>, case: &Case, way: usize) -> Answer {
    let mut control = Control::none();
    let (first, rest) = case.prompt.split_at(case.prompt.len() / 2);
    let mut session = session(model);
    if !first.is_empty() {
        session.prefill(first, &mut control).unwrap();
    }
    match way % 3 {
        0 => {}
        1 => {
            session.prefill(&[1, 2, 3], &mut control).unwrap();
            session.trim(first.len()).unwrap();
        }
        _ => {
            let saved = session.save(None, &mut control).unwrap();
            session =
                Session::load(Arc::clone(model), &saved, &LoadOptions::default(), &mut control).unwrap();
        }
    }
    answer(&mut session, &Case { prompt: rest.to_vec(), options: case.options.clone() })
}

/// What `run` returns while two other sessions prefill and generate on the same model.
fn among_others<T>(model: &Arc<Model>, cases: &[Case], run: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for other in 0..2 {
            let stop = &stop;
            scope.spawn(move || {
                for case in cases.iter().skip(7 * other).cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    answer(&mut session(model), case);
                }
            });
        }
        let result = run();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

/// Every way to run the cases gives the answers of the first.
fn holds(path: &Path, options: &ModelOptions, cases: &[Case]) {
    let mut expected: Option<Vec<Answer>> = None;
    for threads in [1, 2] {
        for others in [false, true] {
            for run in 0..RUNS {
                // A model of its own, as another process would open it.
                let options = ModelOptions { threads: Some(threads), reproducible: true, ..options.clone() };
                let model = Model::open(path, &options, &mut Control::none()).unwrap();
                let all = || -> Vec<Answer> {
                    let one = |(i, case)| match run {
                        2 => answer_otherwise(&model, case, i),
                        _ => answer(&mut session(&model), case),
                    };
                    cases.iter().enumerate().map(one).collect()
                };
                let answers = if others { among_others(&model, cases, all) } else { all() };
                let expected = expected.get_or_insert_with(|| answers.clone());
                let wrong = answers.iter().zip(&*expected).position(|(a, b)| a != b);
                assert_eq!(wrong, None, "{options:?}, others {others}, run {run}");
            }
        }
    }
    let answers = expected.unwrap();
    assert_eq!(answers.len(), PROMPTS);
    let tokens: std::collections::BTreeSet<_> = answers.iter().flat_map(|(tokens, _)| tokens).collect();
    assert!(tokens.len() > 20, "{} different tokens only: this would show nothing", tokens.len());
}

fn config() -> ModelConfig {
    let layer = |window| LayerConfig { window, feed_forward: FeedForwardConfig::Dense };
    ModelConfig {
        architecture: "llama".to_owned(),
        dim: 64,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 16,
        hidden_dim: 128,
        vocab_size: 320,
        norm_eps: 1e-5,
        max_context: 512,
        rope: RopeConfig { theta: 1e4, style: RopeStyle::Interleaved, scaling: RopeScaling::None },
        query_scaling: None,
        tied_embeddings: false,
        layers: vec![layer(None), layer(None)],
    }
}

/// 200 prompts of 2 to 60 tokens.
fn random_prompts(vocab_size: u32) -> Vec<Vec<u32>> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    (0..PROMPTS).map(|_| (0..2 + next() % 59).map(|_| next() % vocab_size).collect()).collect()
}

fn model_of(folder: &TempFolder, format: Format) -> PathBuf {
    let path = folder.path().join(format!("{}.gguf", format.name()));
    write_random_gguf(&path, &config(), format, 5).unwrap();
    path
}

#[test]
fn the_same_tokens_with_any_threads_alone_and_among_others() {
    let folder = TempFolder::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
    let cases = cases(random_prompts(320), 10);
    // Packed blocks and those of a file with activations of 8 bits, and numbers with f32.
    for format in [Format::Q4_0, Format::Q8_0, Format::F16] {
        holds(&model_of(&folder, format), &ModelOptions::default(), &cases);
    }
}

/// Before, while and after the weights are moved to large pages, and where they stay in ordinary ones.
#[test]
fn where_the_weights_lie_changes_nothing() {
    let folder = TempFolder::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
    let path = folder.path().join("larger.gguf");
    let larger = ModelConfig { dim: 512, head_dim: 128, hidden_dim: 2048, ..config() };
    write_random_gguf(&path, &larger, Format::Q4_0, 5).unwrap();
    let open = |large_pages| {
        let options = ModelOptions { large_pages, ..ModelOptions::default() };
        Model::open(&path, &options, &mut Control::none()).unwrap()
    };
    let pages = |model: &Model| {
        let pages = &model.info()["weights"]["large_pages"];
        (pages["bytes"].as_u64().unwrap(), pages["of"].as_u64().unwrap())
    };
    let cases = cases(vec![vec![1, 2, 3]], 8);
    let ordinary = open(false);
    let expected = answer(&mut session(&ordinary), &cases[0]);
    assert_eq!(pages(&ordinary), (0, 0));
    let moved = open(true);
    loop {
        let (bytes, of) = pages(&moved);
        assert_eq!(answer(&mut session(&moved), &cases[0]), expected, "{bytes} of {of} bytes moved");
        if bytes == of {
            break;
        }
    }
}

#[test]
fn the_level_is_reported() {
    let folder = TempFolder::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
    let path = model_of(&folder, Format::Q8_0);
    let info = |reproducible| {
        let options = ModelOptions { reproducible, ..ModelOptions::default() };
        Model::open(&path, &options, &mut Control::none()).unwrap().info()["determinism"].clone()
    };
    let with = info(true);
    assert_eq!(with["levels"], json!(["D1", "D2", "D3"]));
    assert_eq!(with["self_test"]["tokens"], 8);
    assert!(with["scope"]["kernels"].is_string() && with["scope"]["device"] == "cpu", "{with}");
    let without = info(false);
    assert_eq!((&without["levels"], &without["self_test"]), (&json!([]), &json!(null)));
}

/// `cargo test --release -p mistral-core --test determinism -- --ignored` (SmolLM2 must lie in `models/`): some minutes.
#[test]
#[ignore = "takes minutes, and needs SmolLM2 in models/"]
fn smollm2_gives_the_same_tokens() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let model = Model::open(&path, &ModelOptions::default(), &mut Control::none()).unwrap();
    let stems = [
        "Write about",
        "What is",
        "Explain",
        "List three facts on",
        "A short poem on",
        "Translate:",
        "Why do people like",
        "The history of",
        "Once upon a time there was",
        "def",
    ];
    let subjects = [
        "rivers",
        "the moon",
        "bread",
        "prime numbers",
        "Paris",
        "a cat",
        "trains",
        "winter",
        "music",
        "law",
        "gold",
        "bees",
        "maps",
        "salt",
        "glass",
        "chess",
        "wind",
        "paper",
        "clocks",
        "tea",
    ];
    let tokenizer = model.tokenizer().unwrap();
    let prompts =
        stems.iter().flat_map(|stem| subjects.map(|subject| tokenizer.encode(&format!("{stem} {subject}"))));
    let cases = cases(prompts.collect(), 8);
    drop(model);
    holds(&path, &ModelOptions::default(), &cases);
}
