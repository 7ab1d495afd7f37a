use super::*;

fn sampler(params: SamplingParams, vocab_size: usize) -> Sampler {
    Sampler::new(params, vocab_size).unwrap()
}

fn greedy_with(change: impl FnOnce(&mut SamplingParams), vocab_size: usize) -> Sampler {
    let mut params = SamplingParams::greedy();
    change(&mut params);
    sampler(params, vocab_size)
}

fn token(sampler: &mut Sampler, logits: &[f32]) -> u32 {
    sampler.sample(logits, None).unwrap().token
}

/// The logits as they are after bias, penalties and mask.
fn adjusted(sampler: &mut Sampler, logits: &[f32]) -> Vec<f32> {
    sampler.sample(logits, None).unwrap();
    sampler.adjusted.clone()
}

/// Computed outside this library, from the key stream of OpenSSL's `enc -chacha20` by the rule of the module's
/// documentation in double precision: never change these figures.
#[test]
fn golden_draws_of_chacha20_v1() {
    assert_eq!(GENERATOR, "chacha20-v1");
    let draws = |seed| {
        let mut sampler = sampler(SamplingParams { seed, ..Default::default() }, 1000);
        (0..16).map(|_| token(&mut sampler, &[0.0; 1000])).collect::<Vec<_>>()
    };
    assert_eq!(draws(0), GOLDEN_0);
    assert_eq!(draws(0x0123_4567_89ab_cdef), GOLDEN_1);
    let logits: Vec<f32> = (0..1000).map(|token| ((token * 7919) % 1000) as f32 * 0.01).collect();
    let params = SamplingParams {
        temperature: 0.7,
        top_k: 50,
        top_p: 0.9,
        min_p: 0.02,
        seed: 42,
        ..Default::default()
    };
    let mut sampler = sampler(params, 1000);
    assert_eq!((0..8).map(|_| token(&mut sampler, &logits)).collect::<Vec<_>>(), GOLDEN_2);
}

const GOLDEN_0: [u32; 16] = [563, 159, 105, 777, 551, 215, 111, 524, 477, 50, 411, 927, 262, 832, 273, 434];
const GOLDEN_1: [u32; 16] = [311, 987, 972, 514, 820, 826, 614, 559, 290, 117, 653, 984, 626, 773, 373, 55];
const GOLDEN_2: [u32; 8] = [457, 741, 704, 173, 877, 383, 198, 803];

#[test]
fn draws_follow_the_distribution() {
    let logits = [0.0, 1.0, 2.0, 3.0f32];
    let total: f32 = logits.iter().map(|logit| logit.exp()).sum();
    let mut sampler = sampler(SamplingParams { seed: 3, ..Default::default() }, 4);
    let mut counts = [0u32; 4];
    for _ in 0..100_000 {
        counts[token(&mut sampler, &logits) as usize] += 1;
    }
    // Pearson's chi-squared with three degrees of freedom stays below 16.27 in 999 of 1,000 seeds.
    let deviation = |(count, logit): (u32, f32)| {
        let expected = 100_000.0 * logit.exp() / total;
        (count as f32 - expected).powi(2) / expected
    };
    let chi_squared: f32 = counts.into_iter().zip(logits).map(deviation).sum();
    assert!(chi_squared < 16.27, "{counts:?}: {chi_squared}");
}

#[test]
fn greedy_takes_the_lowest_of_the_largest_and_draws_nothing() {
    let mut sampler = sampler(SamplingParams::greedy(), 5);
    let untouched = sampler.generator.clone();
    assert_eq!(token(&mut sampler, &[1.0, 3.0, 3.0, -1.0, 3.0]), 1);
    assert!(sampler.generator == untouched);
}

#[test]
fn bias_is_added() {
    let mut sampler = greedy_with(|params| params.logit_bias = vec![(2, 1.5), (0, -100.0)], 3);
    assert_eq!(adjusted(&mut sampler, &[2.0, 1.0, 0.0]), [-98.0, 1.0, 1.5]);
}

#[test]
fn repetition_looks_at_prompt_and_answer_the_others_at_the_answer() {
    let all = |params: &mut SamplingParams| {
        params.repetition_penalty = 2.0;
        params.presence_penalty = 0.5;
        params.frequency_penalty = 0.25;
    };
    let mut sampler = greedy_with(all, 4);
    sampler.accept_prompt(&[0, 0]).unwrap();
    for token in [1, 1, 2] {
        sampler.accept(token).unwrap();
    }
    assert_eq!(adjusted(&mut sampler, &[4.0, 4.0, -4.0, 4.0]), [2.0, 1.0, -8.75, 4.0]);
}

#[test]
fn penalties_come_after_bias() {
    let both = |params: &mut SamplingParams| {
        params.repetition_penalty = 2.0;
        params.logit_bias = vec![(0, 3.0)];
    };
    let mut sampler = greedy_with(both, 2);
    sampler.accept(0).unwrap();
    assert_eq!(adjusted(&mut sampler, &[-1.0, 0.0]), [1.0, 0.0]);
}

#[test]
fn counts_follow_the_window() {
    for window in [0, 1, 2, 3, 100] {
        let windowed = |params: &mut SamplingParams| {
            params.frequency_penalty = 1.0;
            params.presence_penalty = 0.5;
            params.repetition_penalty = 2.0;
            params.penalty_window = Some(window);
        };
        let mut sampler = greedy_with(windowed, 4);
        let tokens = [3, 0, 1, 0, 2, 0, 0, 1];
        sampler.accept_prompt(&tokens[..3]).unwrap();
        for end in 3..tokens.len() {
            sampler.accept(tokens[end]).unwrap();
            let start = (end + 1).saturating_sub(window);
            let expected: Vec<f32> = (0..4)
                .map(|token| {
                    let seen = (start..=end).any(|at| tokens[at] == token);
                    let count = (start.max(3)..=end).filter(|&at| tokens[at] == token).count() as f32;
                    (if seen { 2.0 } else { 4.0 }) - count - if count > 0.0 { 0.5 } else { 0.0 }
                })
                .collect();
            let found = if window == 0 { vec![4.0; 4] } else { adjusted(&mut sampler, &[4.0; 4]) };
            assert_eq!(found, expected, "window {window}, end {end}");
            assert_eq!(sampler.adjusts(), window > 0);
        }
    }
}

#[test]
fn a_mask_is_obeyed_by_greedy_and_sampled_tokens() {
    let allowed = [0b0110u32];
    let logits = [9.0, 1.0, 2.0, 8.0, 7.0];
    let mut greedy = sampler(SamplingParams::greedy(), 5);
    assert_eq!(greedy.sample(&logits, Some(&allowed)).unwrap().token, 2);
    for params in [
        SamplingParams::default(),
        SamplingParams { top_p: 0.99, ..Default::default() },
        SamplingParams { top_k: 4, temperature: 5.0, ..Default::default() },
    ] {
        let mut sampled = sampler(params, 5);
        let mut seen = [0; 5];
        for _ in 0..200 {
            seen[sampled.sample(&logits, Some(&allowed)).unwrap().token as usize] += 1;
        }
        assert!(seen[1] > 0 && seen[2] > 0 && seen[1] + seen[2] == 200, "{seen:?}");
    }
}

#[test]
fn a_mask_that_allows_nothing_is_an_error_and_draws_nothing() {
    let mut sampler = sampler(SamplingParams::default(), 3);
    let untouched = sampler.generator.clone();
    for allowed in [&[][..], &[0], &[0b1000]] {
        let error = sampler.sample(&[0.0; 3], Some(allowed)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "argument `allowed`: found no token allowed, expected at least one token allowed"
        );
    }
    assert!(sampler.generator == untouched);
}

#[test]
fn log_probabilities_are_those_of_the_model() {
    let logits = [1.0, 3.0, 2.0, 3.0f32];
    let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    let params = SamplingParams {
        temperature: 0.0,
        logprobs: Some(3),
        logit_bias: vec![(0, 50.0)],
        repetition_penalty: 1.5,
        ..Default::default()
    };
    let mut sampler = sampler(params, 4);
    sampler.accept(2).unwrap();
    let sampled = sampler.sample(&logits, None).unwrap();
    assert_eq!(sampled.token, 0);
    let close =
        |found: f32, token: usize| (f64::from(found) - (f64::from(logits[token]) - total.ln())).abs() < 1e-6;
    assert!(close(sampled.logprob.unwrap(), 0));
    let tokens: Vec<u32> = sampled.top_logprobs.iter().map(|top| top.token).collect();
    assert_eq!(tokens, [1, 3, 2]);
    assert!(sampled.top_logprobs.iter().all(|top| close(top.logprob, top.token as usize)));
}

#[test]
fn log_probabilities_are_not_computed_unless_asked_for() {
    let sampled = sampler(SamplingParams::default(), 2).sample(&[0.0, 1.0], None).unwrap();
    assert_eq!((sampled.logprob, sampled.top_logprobs), (None, Vec::new()));
    let only_own = SamplingParams { logprobs: Some(0), ..Default::default() };
    let sampled = sampler(only_own, 2).sample(&[0.0, 0.0], None).unwrap();
    assert!((sampled.logprob.unwrap() + std::f32::consts::LN_2).abs() < 1e-6);
    assert!(sampled.top_logprobs.is_empty());
}

#[test]
fn broken_logits_are_an_internal_error() {
    let mut sampler = sampler(SamplingParams::default(), 3);
    for (logits, message) in [
        (vec![0.0, f32::NAN, 0.0], "internal error: the logit of token 1 is NaN: not a finite number"),
        (vec![0.0, 0.0, f32::INFINITY], "internal error: the logit of token 2 is inf: not a finite number"),
        (vec![f32::NEG_INFINITY; 3], "internal error: the logit of token 0 is -inf: not a finite number"),
        (vec![0.0; 4], "internal error: a row of 4 logits for 3 tokens"),
    ] {
        assert_eq!(sampler.sample(&logits, None).unwrap_err().to_string(), message);
    }
}

#[test]
fn extreme_settings_and_logits_stay_in_the_vocabulary() {
    let params = SamplingParams {
        temperature: f32::MIN_POSITIVE,
        repetition_penalty: f32::MIN_POSITIVE,
        frequency_penalty: 2.0,
        logit_bias: vec![(1, 100.0)],
        logprobs: Some(20),
        ..Default::default()
    };
    let mut sampler = sampler(params, 4);
    for token in [0, 1, 2, 3] {
        sampler.accept(token).unwrap();
    }
    for logits in [[f32::MAX; 4], [f32::MIN; 4], [f32::MAX, f32::MIN, 0.0, 1e-40]] {
        assert!(token(&mut sampler, &logits) < 4);
    }
}

#[test]
fn every_setting_has_a_range() {
    type Change = fn(&mut SamplingParams);
    let wrong: [(&str, Change); 20] = [
        ("temperature", |p| p.temperature = -0.1),
        ("temperature", |p| p.temperature = f32::NAN),
        ("temperature", |p| p.temperature = f32::INFINITY),
        ("top_p", |p| p.top_p = 1.01),
        ("top_p", |p| p.top_p = -0.01),
        ("top_p", |p| p.top_p = f32::NAN),
        ("min_p", |p| p.min_p = 1.5),
        ("min_p", |p| p.min_p = f32::NAN),
        ("repetition_penalty", |p| p.repetition_penalty = 0.0),
        ("repetition_penalty", |p| p.repetition_penalty = -1.0),
        ("repetition_penalty", |p| p.repetition_penalty = 101.0),
        ("presence_penalty", |p| p.presence_penalty = 2.1),
        ("presence_penalty", |p| p.presence_penalty = f32::NAN),
        ("frequency_penalty", |p| p.frequency_penalty = -2.1),
        ("frequency_penalty", |p| p.frequency_penalty = f32::NEG_INFINITY),
        ("logprobs", |p| p.logprobs = Some(21)),
        ("logit_bias[1]", |p| p.logit_bias = vec![(0, 1.0), (9, 101.0)]),
        ("logit_bias[0]", |p| p.logit_bias = vec![(10, 1.0)]),
        ("logit_bias[0]", |p| p.logit_bias = vec![(0, f32::NAN)]),
        ("logit_bias[2]", |p| p.logit_bias = vec![(0, 1.0), (9, 1.0), (0, 2.0)]),
    ];
    for (name, change) in wrong {
        let mut params = SamplingParams::default();
        change(&mut params);
        match Sampler::new(params, 10) {
            Err(Error::Argument { name: found, .. }) => assert_eq!(found, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    let message = SamplingParams { top_p: 1.5, ..Default::default() }.validate(10).unwrap_err().to_string();
    assert_eq!(message, "argument `top_p`: found 1.5, expected a number from 0 to 1");
    assert!(matches!(Sampler::new(SamplingParams::default(), 0), Err(Error::Argument { .. })));
    assert!(matches!(Sampler::new(SamplingParams::default(), usize::MAX), Err(Error::Argument { .. })));
}

#[test]
fn tokens_outside_the_vocabulary_are_refused_and_not_counted() {
    let mut sampler = greedy_with(|params| params.repetition_penalty = 2.0, 3);
    assert!(matches!(sampler.accept(3), Err(Error::Argument { .. })));
    assert!(matches!(sampler.accept_prompt(&[0, 1, 3]), Err(Error::Argument { .. })));
    assert_eq!(adjusted(&mut sampler, &[1.0; 3]), [1.0; 3]);
}
