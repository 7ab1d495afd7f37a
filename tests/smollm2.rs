//! A real model, SmolLM2-135M-Instruct: its answers against the reference, and everything that a host does with an answer.
//!
//! `tests/fixtures/smollm2/README.md` says where the reference comes from.

#[path = "support/smollm2.rs"]
mod download;
mod support;

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, LazyLock};

use mistral_core::kernels::{Activation, CacheType};
use mistral_core::quant::Format;
use mistral_core::sampler::SamplingParams;
use mistral_core::session::PREFILL_CHUNK;
use mistral_core::testing::{self, TempFolder, TensorData};
use mistral_core::{
    CancelToken, Control, Error, Event, FinishReason, GenerateOptions, Model, ModelOptions, Progress,
    Session, SessionOptions, device, weights,
};
use serde_json::{Value, json};
use support::{fixture, max_diff, npy_f32};

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| download::path(&mut |_| ()).unwrap_or_else(|e| panic!("{e}")));
static MODEL: LazyLock<Arc<Model>> = LazyLock::new(|| open(&FILE, &ModelOptions::default()));
/// The same with f32 activations.
static EXACT: LazyLock<Arc<Model>> =
    LazyLock::new(|| open(&FILE, &ModelOptions { activation: Activation::F32, ..ModelOptions::default() }));
static REFERENCE: LazyLock<Reference> = LazyLock::new(Reference::read);

/// A prompt and its greedy answer.
struct Reference {
    prompt: String,
    ids: Vec<u32>,
    /// The answer; the last token ends it.
    greedy: Vec<u32>,
    answer: String,
    /// After the prompt.
    logits: Vec<f32>,
}

impl Reference {
    fn read() -> Self {
        let text = std::fs::read_to_string(fixture("smollm2/greedy.json")).unwrap();
        let mut json: Value = serde_json::from_str(&text).unwrap();
        let mut ids = |key: &str| serde_json::from_value::<Vec<u32>>(json[key].take()).unwrap();
        Self {
            ids: ids("ids"),
            greedy: ids("greedy"),
            prompt: json["text"].as_str().unwrap().to_owned(),
            answer: json["greedy_text"].as_str().unwrap().trim_end_matches("<|im_end|>").to_owned(),
            logits: npy_f32(&fixture("smollm2/last_logits.npy")),
        }
    }
}

fn open(path: &Path, options: &ModelOptions) -> Arc<Model> {
    Model::open(path, options, &mut Control::none()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn session(model: &Arc<Model>, context: usize) -> Session {
    model.session(&SessionOptions { context: Some(context), ..SessionOptions::default() }).unwrap()
}

fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens: Some(max_tokens), ..GenerateOptions::default() }
}

/// All events that follow `ids`.
fn events(session: &mut Session, ids: &[u32], options: &GenerateOptions) -> Vec<Event> {
    let mut control = Control::none();
    let mut generation = session.generate(ids, options, &mut control).unwrap();
    let events: Vec<Event> =
        std::iter::from_fn(|| generation.next(&mut control)).map(Result::unwrap).collect();
    let (last, others) = events.split_last().unwrap();
    assert!(last.finish_reason.is_some() && others.iter().all(|event| event.finish_reason.is_none()));
    assert_eq!(generation.generated(), events.len());
    events
}

/// The answer of `model` to the prompt of the reference.
fn answer(model: &Arc<Model>, options: &GenerateOptions) -> Vec<Event> {
    events(&mut session(model, 256), &REFERENCE.ids, options)
}

fn tokens(events: &[Event]) -> Vec<u32> {
    events.iter().map(|event| event.token).collect()
}

fn text(events: &[Event]) -> String {
    events.iter().map(|event| event.text.as_str()).collect()
}

fn finish(events: &[Event]) -> FinishReason {
    events.last().unwrap().finish_reason.unwrap()
}

/// Distinct tokens, spread over the vocabulary.
fn some_ids(count: usize) -> Vec<u32> {
    (0..count).map(|i| 100 + (i * 7919 % 40_000) as u32).collect()
}

/// The root mean square of `values`.
fn rms(values: impl Iterator<Item = f32> + Clone) -> f64 {
    let count = values.clone().count() as f64;
    (values.map(|x| f64::from(x).powi(2)).sum::<f64>() / count).sqrt()
}

#[test]
fn the_prompt_becomes_the_tokens_of_the_reference() {
    assert_eq!(MODEL.tokenizer().unwrap().encode_with_special(&REFERENCE.prompt), REFERENCE.ids);
}

/// f32 activations compute what the reference computes, in f32 too; only the order of the sums differs.
#[test]
fn logits_with_f32_activations_equal_the_reference() {
    for device in device::names() {
        let options = ModelOptions {
            device: device.to_owned(),
            activation: Activation::F32,
            ..ModelOptions::default()
        };
        let mut session = open(&FILE, &options)
            .session(&SessionOptions { context: Some(64), cache_type: CacheType::F32 })
            .unwrap();
        session.prefill(&REFERENCE.ids, &mut Control::none()).unwrap();
        let diff = max_diff(session.logits(), &REFERENCE.logits);
        assert!(diff <= 1e-4, "{device}: {diff:e}");
    }
}

/// 8-bit activations round each number to 1/127 of the largest of its 32: for normally distributed ones (largest of 32: about 2.1 σ) an error of
/// 2.1 / 127 / √12 ≈ 0.5% of a product, of random sign. 30 layers add 60 such products to the residual stream: √60 × 0.5% ≈ 4%.
///
/// Over all positions of the prompt: one by itself has 2 to 19%, by which way its roundings fall.
#[test]
fn logits_with_int8_activations_are_near_those_with_f32() {
    let [want, found] =
        [&EXACT, &MODEL].map(|model| session(model, 64).score(&REFERENCE.ids, &mut Control::none()).unwrap());
    let mean = want.iter().sum::<f32>() / want.len() as f32;
    let spread = rms(want.iter().map(|x| x - mean));
    let error = rms(found.iter().zip(&want).map(|(a, b)| a - b));
    assert!(error <= 0.05 * spread, "an error of {error} in logits that spread by {spread}");
    assert!(error > 0.001 * spread, "activations were not quantised: the test tests nothing");
}

/// Beyond one prompt: over 240 positions of an English text, the distribution of the next token is nearly the one with f32 activations. Divergences (Kullback-Leibler)
/// of 0.0026 to 0.0029 nats and 96% of the tokens are what rounding to 8 bits makes of this model on a longer text (PERFORMANCE.md); here are fewer positions, so twice that.
#[test]
fn int8_activations_predict_what_f32_ones_predict() {
    const TEXT: &str = include_str!("../benches/texts/alice.txt");
    let ids = &MODEL.tokenizer().unwrap().encode(&TEXT[..2000])[..240];
    let [ours, exact] = [&MODEL, &EXACT].map(|model| log_probabilities(session(model, 256), ids));
    let divergence = divergence(&exact, &ours);
    assert!(divergence < 0.006, "a mean divergence of {divergence}");
    let most_likely = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
    let same = exact.iter().zip(&ours).filter(|(a, b)| most_likely(a) == most_likely(b)).count();
    assert!(same * 100 >= 93 * ids.len(), "the same token {same} times of {}", ids.len());
}

/// Keys and values of 8 bits change the distribution of the next token by less than half of what activations of 8 bits do.
#[test]
fn a_cache_of_eight_bits_predicts_what_one_of_sixteen_does() {
    const TEXT: &str = include_str!("../benches/texts/alice.txt");
    let ids = &MODEL.tokenizer().unwrap().encode(&TEXT[..2000])[..240];
    let [ours, exact] = [CacheType::Q8_0, CacheType::F16].map(|cache_type| {
        let options = SessionOptions { context: Some(256), cache_type };
        log_probabilities(EXACT.session(&options).unwrap(), ids)
    });
    let divergence = divergence(&exact, &ours);
    assert!(divergence < 0.0015, "a mean divergence of {divergence}");
    assert!(divergence > 1e-6, "the cache was not quantised: the test tests nothing");
}

/// Of the token after each of `ids`.
fn log_probabilities(mut session: Session, ids: &[u32]) -> Vec<Vec<f64>> {
    let rows = session.score(ids, &mut Control::none()).unwrap();
    rows.chunks_exact(MODEL.vocab_size()).map(log_softmax).collect()
}

/// The mean divergence (Kullback-Leibler) of the second distributions from the first, in nats.
fn divergence(exact: &[Vec<f64>], ours: &[Vec<f64>]) -> f64 {
    let of =
        |(a, b): (&Vec<f64>, &Vec<f64>)| -> f64 { a.iter().zip(b).map(|(a, b)| a.exp() * (a - b)).sum() };
    exact.iter().zip(ours).map(of).sum::<f64>() / exact.len() as f64
}

/// The logarithms of the probabilities.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let total = logits.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
    logits.iter().map(|x| f64::from(*x) - total).collect()
}

/// What someone sees who tries the library. Along this answer no other token comes nearer than 0.9 to the best one in exact arithmetic: more than 8-bit activations and another order
/// of sums, which differs between instruction sets, can turn. (Asked for the capital of France the first token has 0.08.)
#[test]
fn the_question_of_the_examples_is_answered() {
    let request = json!({"messages": [{"role": "user", "content": "What is the capital of Japan?"}]});
    let reply = session(&MODEL, 256).chat(&request, &mut |_| (), &mut Control::none()).unwrap();
    assert_eq!(reply["choices"][0]["message"]["content"], json!("The capital of Japan is Tokyo."));
}

#[test]
fn the_greedy_answer_equals_the_reference() {
    // `wgpu` has a test of its own below.
    for device in device::names().into_iter().filter(|device| *device != "wgpu") {
        for activation in [Activation::Int8, Activation::F32] {
            let options = ModelOptions { device: device.to_owned(), activation, ..ModelOptions::default() };
            let events = answer(&open(&FILE, &options), &GenerateOptions::default());
            assert_eq!(tokens(&events), REFERENCE.greedy, "{device} {activation:?}");
            assert_eq!(text(&events), REFERENCE.answer);
            assert_eq!(finish(&events), FinishReason::Stop);
        }
    }
}

/// 64 tokens, past the end of the answer: the device computes in another order, and chooses the same.
#[test]
#[cfg(feature = "wgpu")]
fn a_long_greedy_answer_is_the_same_on_a_graphics_processor() {
    let [ours, theirs] = ["wgpu", "cpu"].map(|device| {
        let device = device.to_owned();
        let options = ModelOptions { device, activation: Activation::F32, ..ModelOptions::default() };
        let options = (open(&FILE, &options), GenerateOptions { ignore_eos: true, ..greedy(64) });
        tokens(&answer(&options.0, &options.1))
    });
    assert_eq!(ours.len(), 64);
    assert_eq!(ours, theirs);
    assert!(ours.starts_with(&REFERENCE.greedy));
}

/// The model as a folder of Hugging Face's layout, in bf16, which holds 8 of the 11 bits of a weight of Q4_1: not the same numbers.
#[test]
fn a_safetensors_conversion_answers_and_is_quantised_while_it_loads() {
    let folder = TempFolder::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
    convert(folder.path());
    let model = open(folder.path(), &ModelOptions::default());
    let tokenizer = model.tokenizer().unwrap();
    assert_eq!(tokenizer.encode_with_special(&REFERENCE.prompt), REFERENCE.ids);
    let events = answer(&model, &GenerateOptions::default());
    assert_eq!(tokens(&events), REFERENCE.greedy);
    assert_eq!(text(&events), REFERENCE.answer);
    let stored = model.bytes_per_token().unwrap();
    for format in [Format::Q8_0, Format::Q4_0, Format::Q4_K] {
        let model = open(folder.path(), &ModelOptions { quantize: Some(format), ..ModelOptions::default() });
        let bytes = model.bytes_per_token().unwrap();
        // 8.5 of 16 bits. The rows of 576 are no whole blocks of Q4_K: only the 1536 columns of `w2` are quantised there.
        let most = if format == Format::Q4_K { 0.9 } else { 0.54 };
        assert!((bytes as f64) < most * stored as f64, "{format:?}: {bytes} of {stored} bytes");
        let answer = text(&answer(&model, &greedy(16)));
        assert!(answer.starts_with("The capital of France is Paris"), "{format:?}: {answer}");
        assert!(answer == REFERENCE.answer || format != Format::Q8_0, "{answer}");
    }
}

/// Writes the model to `folder` as `config.json`, `model.safetensors` in bf16 and `tokenizer.json`.
fn convert(folder: &Path) {
    let checkpoint = weights::open(&FILE, &mut Control::none()).unwrap();
    let mut model = testing::Model::from_checkpoint(&checkpoint).unwrap();
    for tensor in &mut model.tensors {
        let mut values = vec![0.0; tensor.shape.iter().product()];
        tensor.format.dequantize(&tensor.bytes, &mut values).unwrap();
        let bytes = values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
        *tensor = TensorData {
            format: Format::BF16,
            bytes,
            ..std::mem::replace(tensor, TensorData::f32("", &[], &[]))
        };
    }
    model.write_hugging_face(folder).unwrap();
    let mut config = testing::config_json(&model.config);
    config["architectures"] = json!(["LlamaForCausalLM"]);
    config["model_type"] = json!("llama");
    config["eos_token_id"] = json!(checkpoint.eos_token_ids());
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let Some(weights::TokenizerSource::Gguf(metadata)) = checkpoint.tokenizer() else {
        panic!("no vocabulary")
    };
    let strings = |key: &str| metadata.strings(key).unwrap().unwrap().map(Result::unwrap);
    let vocab: serde_json::Map<_, _> =
        strings("tokenizer.ggml.tokens").zip(0..).map(|(text, id)| (text.to_owned(), json!(id))).collect();
    let merges: Vec<_> =
        strings("tokenizer.ggml.merges").map(|m| json!(m.split_once(' ').unwrap())).collect();
    const CONTROL: i32 = 3;
    let types = metadata.i32s("tokenizer.ggml.token_type").unwrap().unwrap();
    let added =
        strings("tokenizer.ggml.tokens").zip(types).zip(0..).filter(|((_, kind), _)| *kind == CONTROL);
    let added = added.map(|((content, _), id)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    });
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "added_tokens": added.collect::<Vec<_>>(), "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level]},
        "decoder": byte_level, "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// A timeline that grew in parts is the timeline in one, to the bit: prompts, answers and further prompts.
#[test]
fn a_session_goes_on_where_it_was() {
    let ids = &REFERENCE.ids;
    let mut parts = session(&MODEL, 256);
    parts.prefill(&ids[..5], &mut Control::none()).unwrap();
    parts.prefill(&ids[5..6], &mut Control::none()).unwrap();
    parts.prefill(&ids[6..], &mut Control::none()).unwrap();
    let mut answered = tokens(&events(&mut parts, &[], &greedy(3)));
    answered.extend(tokens(&events(&mut parts, &[], &GenerateOptions::default())));
    assert_eq!(answered, REFERENCE.greedy);
    let question = "\n<|im_start|>user\nAnd of Italy?<|im_end|>\n<|im_start|>assistant\n";
    let next = MODEL.tokenizer().unwrap().encode_with_special(question);
    let second = events(&mut parts, &next, &greedy(20));
    assert!(text(&second).contains("Rome"), "{}", text(&second));

    let whole: Vec<u32> = [ids, &answered, &next].into_iter().flatten().copied().collect();
    let mut fresh = session(&MODEL, 256);
    assert_eq!(tokens(&events(&mut fresh, &whole, &greedy(20))), tokens(&second));
    assert_eq!(fresh.tokens(), parts.tokens());
    assert_eq!(fresh.logits(), parts.logits());

    parts.reset();
    assert!(parts.tokens().is_empty() && parts.logits().is_empty());
    assert_eq!(tokens(&events(&mut parts, ids, &GenerateOptions::default())), REFERENCE.greedy);
}

#[test]
fn a_seed_gives_the_same_tokens_whatever_the_number_of_threads() {
    let sampled = |model: &Arc<Model>, seed: u64| {
        let sampling = SamplingParams {
            temperature: 1.2,
            top_p: 0.95,
            repetition_penalty: 1.1,
            seed,
            ..SamplingParams::default()
        };
        let options = GenerateOptions { sampling, ignore_eos: true, ..greedy(24) };
        let mut session = session(model, 64);
        let tokens = tokens(&events(&mut session, &REFERENCE.ids, &options));
        (tokens, session.logits().to_vec())
    };
    let of = |threads| open(&FILE, &ModelOptions { threads: Some(threads), ..ModelOptions::default() });
    let one = of(1);
    let want = sampled(&one, 7);
    assert_eq!(sampled(&one, 7), want);
    assert_ne!(sampled(&one, 8).0, want.0);
    for threads in [2, 3] {
        assert_eq!(sampled(&of(threads), 7), want, "{threads} threads");
    }
}

/// Every part of the answer as a stop text: the stream is the answer up to it, wherever the borders of the tokens are.
#[test]
fn stop_texts_end_the_answer_and_never_show() {
    let answer_text = &REFERENCE.answer;
    for start in (0..answer_text.len()).step_by(2) {
        let stop = &answer_text[start..(start + 1 + start % 7).min(answer_text.len())];
        let options =
            GenerateOptions { stop: vec![stop.to_owned(), "no such text".to_owned()], ..greedy(20) };
        let events = answer(&MODEL, &options);
        assert_eq!(text(&events), answer_text[..answer_text.find(stop).unwrap()], "{stop:?}");
        assert_eq!(finish(&events), FinishReason::Stop);
        // Only the tokens that the stop text needs.
        let all = answer_text.find(stop).unwrap() + stop.len();
        let decoded =
            |n: usize| MODEL.tokenizer().unwrap().decode(&REFERENCE.greedy[..n], true).unwrap().len();
        assert!(decoded(events.len()) >= all && decoded(events.len() - 1) < all, "{stop:?}");
    }
    // What could have been the beginning of a stop text comes at the end.
    let options = GenerateOptions { stop: vec![" Paris. It".to_owned(), "Paris!".to_owned()], ..greedy(20) };
    let events = answer(&MODEL, &options);
    assert_eq!(text(&events), *answer_text);
    assert!(events.last().unwrap().text.ends_with("Paris."), "{events:?}");
}

#[test]
fn each_end_has_its_reason() {
    let of = |options: &GenerateOptions| {
        let events = answer(&MODEL, options);
        (events.len(), finish(&events))
    };
    let all = REFERENCE.greedy.len();
    assert_eq!(of(&greedy(100)), (all, FinishReason::Stop));
    assert_eq!(of(&greedy(all)), (all, FinishReason::Stop));
    assert_eq!(of(&greedy(all - 1)), (all - 1, FinishReason::Length));
    assert_eq!(of(&greedy(1)), (1, FinishReason::Length));
    let stop_tokens = vec![REFERENCE.greedy[3]];
    assert_eq!(of(&GenerateOptions { stop_tokens, ..greedy(100) }), (4, FinishReason::Stop));
    // The model's own end is text like any other then, and shows if control tokens are to show.
    let options = GenerateOptions { ignore_eos: true, show_special: true, ..greedy(all + 3) };
    assert_eq!(of(&options), (all + 3, FinishReason::Length));
    assert!(text(&answer(&MODEL, &options)).contains("<|im_end|>"));
    // Without a bound, only the context ends it. The last token that fits needs no position of its own.
    let ignore_eos = GenerateOptions { ignore_eos: true, ..GenerateOptions::default() };
    let prompt = &REFERENCE.ids;
    for context in [prompt.len(), prompt.len() + 1, prompt.len() + 20] {
        let mut session = session(&MODEL, context);
        let events = events(&mut session, prompt, &ignore_eos);
        assert_eq!(finish(&events), FinishReason::ContextFull);
        assert_eq!(events.len(), (context - prompt.len()).max(1), "context of {context}");
        assert_eq!(session.capacity(), context);
        let error = session.generate(&[1], &ignore_eos, &mut Control::none()).map(drop).unwrap_err();
        assert!(matches!(error, Error::ContextFull { .. }), "{error}");
    }
}

/// Log-probabilities are those of the log-softmax of the logits.
#[test]
fn log_probabilities_are_those_of_the_model() {
    let sampling = SamplingParams { logprobs: Some(5), ..SamplingParams::greedy() };
    let events = answer(&MODEL, &GenerateOptions { sampling, ..GenerateOptions::default() });
    let mut session = session(&MODEL, 64);
    session.prefill(&REFERENCE.ids, &mut Control::none()).unwrap();
    for event in &events {
        let log_sum = session.logits().iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        let want = |token: u32| f64::from(session.logits()[token as usize]) - log_sum;
        let logprob = event.logprob.unwrap();
        assert!((f64::from(logprob) - want(event.token)).abs() < 1e-5);
        let top = &event.top_logprobs;
        assert_eq!((top.len(), top[0].token, top[0].logprob), (5, event.token, logprob));
        assert!(top.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob));
        assert!(top.iter().all(|one| (f64::from(one.logprob) - want(one.token)).abs() < 1e-5));
        let others =
            session.logits().iter().zip(0u32..).filter(|(_, id)| top.iter().all(|one| one.token != *id));
        let fifth = session.logits()[top[4].token as usize];
        assert!(others.into_iter().all(|(logit, _)| *logit <= fifth));
        session.prefill(&[event.token], &mut Control::none()).unwrap();
    }
    let events = answer(&MODEL, &GenerateOptions::default());
    assert!(events.iter().all(|event| event.logprob.is_none() && event.top_logprobs.is_empty()));
}

/// The pieces are whole characters and make what the tokens decode to, whatever the tokens are.
#[test]
fn the_stream_is_the_decoded_answer() {
    // Most of these tokens are parts of characters: the biases make the answer of them, in any order.
    let tokenizer = MODEL.tokenizer().unwrap();
    let mut parts = tokenizer.encode("日本語 🦀é ∑");
    parts.sort_unstable();
    parts.dedup();
    let logit_bias = parts.iter().map(|token| (*token, 100.0)).collect();
    let sampling = SamplingParams { temperature: 5.0, logit_bias, ..SamplingParams::default() };
    let events = answer(&MODEL, &GenerateOptions { sampling, ignore_eos: true, ..greedy(60) });
    assert_eq!(text(&events), tokenizer.decode(&tokens(&events), true).unwrap());
    assert!(events.iter().any(|event| event.text.is_empty()), "nothing was held back: {}", text(&events));
    assert!(text(&events).chars().filter(|c| !c.is_ascii()).count() > 10, "{}", text(&events));
}

#[test]
fn cancelling_from_another_thread_stops_within_one_step() {
    let token = CancelToken::new();
    let (to_host, from_engine) = mpsc::channel();
    let (to_engine, from_host) = mpsc::channel();
    let mut session = session(&MODEL, 256);
    let last = std::thread::scope(|scope| {
        let host = token.clone();
        scope.spawn(move || {
            from_engine.iter().nth(4).unwrap();
            host.cancel();
            to_engine.send(()).unwrap();
        });
        let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::default() };
        let mut control = Control::none().with_cancel(&token);
        let mut generation = session.generate(&REFERENCE.ids, &options, &mut control).unwrap();
        for _ in 0..5 {
            generation.next(&mut control).unwrap().unwrap();
            to_host.send(()).unwrap();
        }
        from_host.recv().unwrap();
        let last = generation.next(&mut control).unwrap();
        assert!(generation.next(&mut control).is_none());
        assert_eq!(generation.generated(), 5);
        last
    });
    assert!(matches!(last, Err(Error::Cancelled)), "{last:?}");
    // The session keeps its timeline and goes on, as if nothing had happened.
    let rest = events(&mut session, &[], &GenerateOptions::default());
    assert_eq!(tokens(&rest), REFERENCE.greedy[5..]);
}

/// Whenever it comes, no token that the host was told of is lost, and the answer can go on.
#[test]
fn cancelling_loses_no_token() {
    let options = GenerateOptions { ignore_eos: true, ..greedy(12) };
    let want = tokens(&answer(&MODEL, &options));
    for delay in 0..12 {
        let token = CancelToken::new();
        let mut session = session(&MODEL, 64);
        session.prefill(&REFERENCE.ids, &mut Control::none()).unwrap();
        let mut told = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(7 * delay));
                token.cancel();
            });
            let mut control = Control::none().with_cancel(&token);
            // Cancelled before it began, or while it goes on.
            let Ok(mut generation) = session.generate(&[], &options, &mut control) else { return };
            told.extend(
                std::iter::from_fn(|| generation.next(&mut control)).flatten().map(|event| event.token),
            );
        });
        assert_eq!(session.tokens(), [&REFERENCE.ids, told.as_slice()].concat(), "after {delay}");
        let left = want.len() - told.len();
        if left > 0 {
            told.extend(tokens(&events(
                &mut session,
                &[],
                &GenerateOptions { max_tokens: Some(left), ..options.clone() },
            )));
        }
        assert_eq!(told, want, "after {delay}");
    }
}

/// Not only between passes: a chunk of a prefill takes long.
#[test]
fn cancelling_stops_inside_of_a_pass() {
    let token = CancelToken::new();
    let mut session = session(&MODEL, PREFILL_CHUNK);
    let ids = some_ids(PREFILL_CHUNK);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            token.cancel();
        });
        let error = session.prefill(&ids, &mut Control::none().with_cancel(&token)).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
    });
    assert!(session.tokens().is_empty() && session.logits().is_empty());
    session.prefill(&ids[..16], &mut Control::none()).unwrap();
    let after = session.logits().to_vec();
    session.reset();
    session.prefill(&ids[..16], &mut Control::none()).unwrap();
    assert_eq!(session.logits(), after);
}

#[test]
fn prefill_reports_progress_and_can_be_cancelled() {
    let ids = some_ids(2 * PREFILL_CHUNK + 44);
    let mut seen = Vec::new();
    let mut report = |progress: Progress| seen.push(progress);
    let mut whole = session(&MODEL, 600);
    whole.prefill(&ids, &mut Control::none().with_progress(&mut report)).unwrap();
    let done: Vec<u64> = seen.iter().map(|progress| progress.done).collect();
    assert_eq!(done, [PREFILL_CHUNK as u64, 2 * PREFILL_CHUNK as u64, ids.len() as u64]);
    assert!(seen.iter().all(|progress| progress.phase == "prefill" && progress.total == ids.len() as u64));

    let token = CancelToken::new();
    let mut stop = |_: Progress| token.cancel();
    let mut session = session(&MODEL, 600);
    let mut control = Control::none().with_cancel(&token).with_progress(&mut stop);
    let error = session.prefill(&ids, &mut control).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    // What was evaluated stays, without logits, which no one computed; they are there when asked for.
    assert_eq!((session.tokens(), session.logits()), (&ids[..PREFILL_CHUNK], &[][..]));
    session.prefill(&[], &mut Control::none()).unwrap();
    whole.reset();
    whole.prefill(&ids[..PREFILL_CHUNK], &mut Control::none()).unwrap();
    assert_eq!(session.logits(), whole.logits());
    whole.prefill(&ids[PREFILL_CHUNK..], &mut Control::none()).unwrap();
    session.prefill(&ids[PREFILL_CHUNK..], &mut Control::none()).unwrap();
    assert_eq!(session.logits(), whole.logits());
}

#[test]
fn loading_reports_progress_and_can_be_cancelled() {
    let mut seen = Vec::new();
    let mut report = |progress: Progress| seen.push(progress);
    Model::open(&*FILE, &ModelOptions::default(), &mut Control::none().with_progress(&mut report)).unwrap();
    let total = FILE.metadata().unwrap().len();
    assert!(seen.iter().all(|progress| progress.phase == "load" && progress.total == total));
    assert!(seen.is_sorted_by_key(|progress| progress.done) && seen[0].done == 0);
    // All but the metadata and the norms.
    assert!(seen.last().unwrap().done > total / 10 * 9);

    for steps in [1, 2, 100] {
        let token = CancelToken::new();
        let mut left = steps;
        let mut stop = |_: Progress| {
            left -= 1;
            if left == 0 {
                token.cancel();
            }
        };
        let mut control = Control::none().with_cancel(&token).with_progress(&mut stop);
        let error = Model::open(&*FILE, &ModelOptions::default(), &mut control).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
        assert_eq!(left, 0, "it went on after the cancellation");
    }
}

/// Sessions of one model on several threads do not know of each other.
#[test]
fn sessions_run_beside_each_other() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope
                .spawn(|| assert_eq!(tokens(&answer(&MODEL, &GenerateOptions::default())), REFERENCE.greedy));
        }
    });
}
