//! Guesses at what follows change nothing but the time.

use mistral_core::ConstraintSpec;
use mistral_core::generate::Event;

use super::*;

/// The events of a generation on a session of its own, and the logits after one more token.
fn run(
    model: &Arc<Model>,
    context: usize,
    prompt: &[u32],
    options: &GenerateOptions,
) -> (Vec<Event>, Vec<f32>) {
    let mut control = Control::none();
    let mut session = session(model, context);
    let mut generation = session.generate(prompt, options, &mut control).unwrap();
    let events = std::iter::from_fn(|| generation.next(&mut control)).map(|event| event.unwrap()).collect();
    drop(generation);
    if session.tokens().len() < context {
        session.prefill(&[5], &mut control).unwrap();
    }
    (events, session.logits().to_vec())
}

#[test]
fn an_answer_with_guesses_is_the_answer_without() {
    for device in device::names() {
        for case in CASES {
            let model = open(case, &ModelOptions { device: device.to_owned(), ..ModelOptions::default() });
            let greedy = SamplingParams { logprobs: Some(2), ..SamplingParams::greedy() };
            // Peaked enough to repeat itself, and penalties that depend on every token before.
            let drawn = SamplingParams { temperature: 0.3, top_p: 0.9, seed: 7, ..greedy.clone() };
            let penalized = SamplingParams { repetition_penalty: 1.05, seed: 8, ..drawn.clone() };
            // Windows that the ring has left behind, and a context that ends in the middle of guesses.
            for (start, context) in [(12, 90), (600, 700), (40, 63)] {
                let prompt: Vec<u32> =
                    (0..start).map(|i| 3 + [1, 4, 1, 5, 9, 2, 6][i as usize % 7]).collect();
                for sampling in [&greedy, &drawn, &penalized] {
                    let mut options = GenerateOptions { sampling: sampling.clone(), ..self::greedy(50) };
                    let plain = run(&model, context, &prompt, &options);
                    for most in [1, 3, 32] {
                        options.prompt_lookup = most;
                        let guessed = run(&model, context, &prompt, &options);
                        assert!(guessed == plain, "{device} {case} {start} {most} {sampling:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn guesses_are_tried_and_some_are_right() {
    // A bias leaves one token, so that every guess is right.
    let model = model("dense_swa");
    let sampling = SamplingParams { logit_bias: vec![(9, 100.0)], ..SamplingParams::greedy() };
    let passes = |prompt_lookup| {
        let options = GenerateOptions { sampling: sampling.clone(), prompt_lookup, ..greedy(200) };
        let mut session = session(&model, 256);
        assert_eq!(generate(&mut session, &[1, 2, 3], &options), [9; 200]);
        session.stats().decode.passes
    };
    assert_eq!(passes(0), 199);
    // Guesses of 2, 4, 8, 16 and then 32.
    assert!(passes(32) < 14, "{} passes", passes(32));
}

#[test]
fn guesses_obey_the_constraint() {
    let folder = temp();
    let model = chat::chat_model(folder.path(), true);
    let constraint = Some(ConstraintSpec::Regex("(ab ab |cd cd ){12}".to_owned()));
    for seed in 0..4 {
        let sampling = SamplingParams { temperature: 1.0, seed, ..SamplingParams::greedy() };
        let options =
            GenerateOptions { sampling, constraint: constraint.clone(), ..GenerateOptions::default() };
        let plain = run(&model, 256, &[1, 2, 3], &options);
        let guessed = run(&model, 256, &[1, 2, 3], &GenerateOptions { prompt_lookup: 8, ..options });
        assert!(guessed == plain, "seed {seed}");
    }
}

#[test]
fn too_many_guesses_are_refused() {
    let model = model("dense_swa");
    let options = GenerateOptions { prompt_lookup: 33, ..greedy(3) };
    let error = session(&model, 16).generate(&[1], &options, &mut Control::none()).map(drop).unwrap_err();
    assert!(error.to_string().contains("prompt_lookup"), "{error}");
}
