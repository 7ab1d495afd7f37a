//! How long a call goes on after it was cancelled.
//!
//! `cargo bench --bench cancel -- MODEL [ROUNDS]`; a model of a large shape: `cargo run --release --example random_model -- 7b:4 Q4_0 PATH`.
//!
//! Another thread cancels at a random moment of the call; measured is from there to the call's return.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

#[path = "support/root.rs"]
mod root;

use std::time::{Duration, Instant};

use mistral_core::session::PREFILL_CHUNK;
use mistral_core::testing::Random;
use mistral_core::{CancelToken, Control, Error, Model, ModelOptions, Result, SessionOptions};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let path = words.first().ok_or_else(|| Error::argument("MODEL", "nothing", "a path"))?;
    let rounds = words.get(1).and_then(|word| word.parse().ok()).unwrap_or(50);
    let path = root::from_root(path);
    let open = |control: &mut Control<'_>| Model::open(&path, &ModelOptions::default(), control);
    let model = open(&mut Control::none())?;
    measure("load", rounds, &mut |control| open(control).map(drop))?;
    let mut session = model.session(&SessionOptions { context: Some(512), ..SessionOptions::default() })?;
    let ids: Vec<u32> = (0..PREFILL_CHUNK).map(|i| 3 + (i * 7919 % 250) as u32).collect();
    for (name, ids) in [("one pass of prefill", &ids[..]), ("one token", &ids[..1])] {
        measure(name, rounds, &mut |control| {
            session.reset();
            session.prefill(ids, control)
        })?;
    }
    Ok(())
}

/// Runs `call` whole to know how long it takes, then cancels it again and again.
fn measure(name: &str, rounds: usize, call: &mut dyn FnMut(&mut Control<'_>) -> Result<()>) -> Result<()> {
    let mut random = Random::new(1);
    // The second time, when the file and the memory are there.
    call(&mut Control::none())?;
    let start = Instant::now();
    call(&mut Control::none())?;
    let whole = start.elapsed();
    let mut late = Vec::new();
    for _ in 0..rounds {
        let token = CancelToken::new();
        let wait = whole.mul_f32((random.unit() + 1.0) / 2.0);
        let (result, returned, cancelled) = std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                std::thread::sleep(wait);
                token.cancel();
                Instant::now()
            });
            let result = call(&mut Control::none().with_cancel(&token));
            let returned = Instant::now();
            (result, returned, other.join().unwrap_or(returned))
        });
        match result {
            Err(Error::Cancelled) => late.push(returned.saturating_duration_since(cancelled)),
            other => other?,
        }
    }
    late.sort();
    let ms = |time: Option<&Duration>| time.map_or(0.0, Duration::as_secs_f64) * 1e3;
    let (median, worst) = (ms(late.get(late.len() / 2)), ms(late.last()));
    println!(
        "{name}: {:.0} ms whole; {} of {rounds} cancelled: median {median:.1} ms, worst {worst:.1} ms",
        ms(Some(&whole)),
        late.len()
    );
    Ok(())
}
