use super::*;

/// Rows to test on: small and large, peaked and flat, with many ties.
fn rows() -> Vec<(&'static str, Vec<f32>)> {
    let mut state = 7u64;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let mut normal = move || (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
    let mut row = |n: usize, spread: f32| (0..n).map(|_| normal() * spread).collect::<Vec<f32>>();
    let ties = row(5000, 1.0).into_iter().map(|logit| (logit * 2.0).round()).collect();
    let zeros = (0..300).map(|token| if token % 2 == 0 { 0.0 } else { -0.0 }).collect();
    let masked = row(3000, 3.0).into_iter().enumerate();
    let masked =
        masked.map(|(token, logit)| if token % 7 == 3 { logit } else { f32::NEG_INFINITY }).collect();
    let ascending = (0..2000).map(|token| token as f32 * 0.01).collect();
    vec![
        ("one", vec![-3.0]),
        ("two", vec![1.0, 1.0]),
        ("flat", row(4096, 0.5)),
        ("peaked", row(20_011, 4.0)),
        ("sharp", row(1000, 60.0)),
        ("ties", ties),
        ("zeros", zeros),
        ("masked", masked),
        ("ascending", ascending),
        ("extreme", vec![f32::MAX, f32::MIN, 0.0, f32::MAX, 1e30, -1e30]),
    ]
}

fn settings() -> Vec<SamplingParams> {
    let mut all = Vec::new();
    for temperature in [1e-30, 0.15, 1.0, 1.7, 100.0] {
        for top_k in [0, 1, 2, 40, 900, 100_000] {
            for top_p in [0.0, 0.1, 0.5, 0.95, 0.999_999, 1.0] {
                for min_p in [0.0, 0.05, 1.0] {
                    all.push(SamplingParams { temperature, top_k, top_p, min_p, ..Default::default() });
                }
            }
        }
    }
    all
}

/// The tokens kept and their weights, by ascending id: everything sorted, every rule as it is written down.
fn reference(logits: &[f32], params: &SamplingParams) -> Vec<(u32, u64)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| exp((logit - max) / params.temperature);
    let mut kept: Vec<(u32, f32)> =
        (0..).zip(logits.iter().copied()).filter(|(_, logit)| *logit != f32::NEG_INFINITY).collect();
    kept.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    if params.top_k > 0 {
        kept.truncate(params.top_k as usize);
    }
    let total: u64 = kept.iter().map(|&(_, logit)| fixed(weight(logit))).sum();
    let (mut sum, mut length) = (0, 0);
    while params.top_p < 1.0
        && length < kept.len()
        && (length == 0 || (sum as f64) < f64::from(params.top_p) * total as f64)
    {
        sum += fixed(weight(kept[length].1));
        length += 1;
    }
    if params.top_p < 1.0 {
        kept.truncate(length);
    }
    kept.retain(|&(_, logit)| weight(logit) >= params.min_p);
    kept.sort_by_key(|&(token, _)| token);
    kept.into_iter().map(|(token, logit)| (token, fixed(weight(logit)))).collect()
}

/// The smallest random number for which the draw falls on `point` of `total`.
fn random_for(point: u64, total: u64) -> u64 {
    (u128::from(point) << 64).div_ceil(u128::from(total)) as u64
}

#[test]
fn the_kept_tokens_and_their_probabilities_are_those_of_a_full_sort() {
    for (name, logits) in rows() {
        let mut row = Row::default();
        row.scan(&logits);
        for params in settings() {
            let expected = reference(&logits, &params);
            let total: u64 = expected.iter().map(|&(_, weight)| weight).sum();
            // Each kept token is drawn at the first and the last point of its share: the distribution is the same,
            // exactly.
            let mut start = 0;
            let step = 1 + expected.len() / 20;
            for (index, &(token, weight)) in expected.iter().enumerate() {
                if weight > 0 && (index % step == 0 || index + 1 == expected.len()) {
                    for point in [start, start + weight - 1] {
                        let drawn = row.draw(&logits, &params, random_for(point, total));
                        assert_eq!(drawn, token, "{name}, {params:?}, {point} of {total}");
                    }
                }
                start += weight;
            }
        }
    }
}

#[test]
fn the_probabilities_are_the_softmax() {
    for (name, logits) in rows() {
        for temperature in [0.3, 1.0, 2.0] {
            let params = SamplingParams { temperature, ..Default::default() };
            let kept = reference(&logits, &params);
            let total: u64 = kept.iter().map(|&(_, weight)| weight).sum();
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exact = |logit: f32| ((f64::from(logit) - f64::from(max)) / f64::from(temperature)).exp();
            let exact_total: f64 = logits.iter().map(|&logit| exact(logit)).sum();
            for (token, weight) in kept {
                let probability = weight as f64 / total as f64;
                let difference = (probability - exact(logits[token as usize]) / exact_total).abs();
                assert!(difference < 1e-6, "{name}: token {token} is off by {difference:e}");
            }
        }
    }
}

#[test]
fn top_and_argmax_put_the_lowest_id_first_among_equals() {
    for (name, logits) in rows() {
        let mut row = Row::default();
        row.scan(&logits);
        let mut sorted: Vec<u32> =
            (0..logits.len() as u32).filter(|&t| logits[t as usize] > f32::NEG_INFINITY).collect();
        sorted.sort_by(|&a, &b| logits[b as usize].partial_cmp(&logits[a as usize]).unwrap().then(a.cmp(&b)));
        assert_eq!(row.argmax(&logits), sorted[0], "{name}");
        for n in [0, 1, 2, 20, 500] {
            assert_eq!(row.top(&logits, n), sorted[..n.min(sorted.len())], "{name}, {n}");
        }
    }
}

#[test]
fn a_row_is_scanned_at_every_position() {
    let mut row = Row::default();
    assert!(!row.scan(&[]));
    for n in [1, 7, 8, 63, 64, 65, 200] {
        for token in 0..n {
            let mut logits = vec![-1.0; n];
            logits[token] = 2.0;
            assert!(row.scan(&logits));
            assert_eq!((row.max(), row.argmax(&logits)), (2.0, token as u32));
            for wrong in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                logits[token] = wrong;
                assert!(!row.scan(&logits), "{wrong} at {token} of {n}");
            }
        }
    }
}

#[test]
fn exp_is_accurate_and_one_at_zero() {
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(fixed(exp(f32::NEG_INFINITY)), 0);
    for step in 0..870_000 {
        let x = -(step as f32) * 1e-4;
        let exact = f64::from(x).exp();
        let error = (f64::from(exp(x)) - exact).abs() / exact;
        assert!(error < 2f64.powi(-22), "exp({x}) is off by {error:e}");
    }
}

#[test]
fn keys_order_by_logit_then_id_and_give_both_back() {
    let logits = [f32::MAX, 3.5, 1.0, f32::MIN_POSITIVE, 0.0, -f32::MIN_POSITIVE, -1.0, -3.5, f32::MIN];
    for pair in logits.windows(2) {
        assert!(key(9, pair[0]) < key(0, pair[1]), "{pair:?}");
    }
    assert!(key(1, 2.0) < key(2, 2.0));
    assert_eq!(key(1, -0.0), key(1, 0.0));
    for value in logits {
        assert_eq!((token(key(77, value)), logit(key(77, value))), (77, value));
    }
}

#[test]
fn fixed_rounds_to_multiples_of_two_to_the_minus_forty() {
    assert_eq!(fixed(1.0), 1 << 40);
    assert_eq!(fixed(0.0), 0);
    assert_eq!(fixed(2f32.powi(-40)), 1);
    assert_eq!(fixed(0.75 * 2f32.powi(-40)), 1);
    assert_eq!(fixed(0.25 * 2f32.powi(-40)), 0);
    assert_eq!(fixed(0.1), (f64::from(0.1f32) * ONE).round() as u64);
}

#[test]
fn a_mask_allows_set_bits_and_nothing_beyond_its_end() {
    let mut logits = vec![1.0; 70];
    mask(&mut logits, &[u32::MAX, 0b101]);
    let allowed: Vec<usize> = (0..70).filter(|&token| logits[token] == 1.0).collect();
    assert_eq!(allowed, (0..32).chain([32, 34]).collect::<Vec<_>>());
    assert!(logits[33] == f32::NEG_INFINITY && logits[69] == f32::NEG_INFINITY);
}
