//! Random schemas of the JSON Schema Test Suite on a real model: what comes to an end is valid, says the package jsonschema.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mistral_core::constraint::Constraint;

use super::*;

#[path = "../support/smollm2.rs"]
mod download;

const PROMPT: &str = "<|im_start|>user\nWrite a short JSON value.<|im_end|>\n<|im_start|>assistant\n";
const MAX_TOKENS: usize = 96;

/// The script's answer to `input`.
fn script(arguments: &[&str], input: &Value) -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut python = Command::new("python3");
    python.args(["-B", "-I"]).arg(root.join("tests/fixtures/json_schemas.py")).arg(root.join("models"));
    let child = python.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.expect("python3 is installed");
    child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "json_schemas.py failed: PyPI is needed");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What became of the schemas.
#[derive(Default)]
struct Report {
    refused: Vec<(Value, String)>,
    cut_off: usize,
    /// Those that came to an end: schema and text.
    whole: Vec<Value>,
    compile: Vec<Duration>,
    masks: Vec<Duration>,
    /// The share of the masks in the time of each step.
    shares: Vec<f64>,
}

/// Generates under random schemas until `count` were honoured.
fn run(count: usize, seed: u64) -> Report {
    let model = open(&download::path(&mut |_| ()).unwrap_or_else(|e| panic!("{e}")), None);
    let prompt = model.tokenizer().unwrap().encode_with_special(PROMPT);
    let table = model.token_table().unwrap();
    let mut report = Report::default();
    let schemas = script(&["schemas", &seed.to_string()], &Value::Null);
    for (schema, seed) in schemas.as_array().unwrap().iter().zip(0..) {
        if report.whole.len() + report.cut_off == count {
            break;
        }
        let spec = ConstraintSpec::JsonSchema(schema.clone());
        let start = Instant::now();
        let constraint = match Constraint::new(&table, &spec) {
            Ok(constraint) => constraint,
            Err(error) => {
                assert!(!matches!(error, Error::Internal(_)), "{schema}: {error}");
                report.refused.push((schema.clone(), error.to_string()));
                continue;
            }
        };
        report.compile.push(start.elapsed());
        let options = GenerateOptions {
            sampling: SamplingParams { seed, ..SamplingParams::default() },
            max_tokens: Some(MAX_TOKENS),
            constraint: Some(spec),
            ..GenerateOptions::default()
        };
        let mut session =
            model.session(&SessionOptions { context: Some(256), ..SessionOptions::default() }).unwrap();
        let mut control = Control::none();
        let mut generation = session.generate(&prompt, &options, &mut control).unwrap();
        let (mut events, mut steps) = (Vec::new(), Vec::new());
        loop {
            let start = Instant::now();
            let Some(event) = generation.next(&mut control) else { break };
            steps.push(start.elapsed());
            events.push(event.unwrap_or_else(|e| panic!("{schema}: {e}")));
        }
        report.measure(&constraint, &events, &steps);
        match finish(&events) {
            FinishReason::Stop => report.whole.push(json!({"schema": schema, "text": text(&events)})),
            _ => report.cut_off += 1,
        }
    }
    report
}

impl Report {
    /// The cost of the masks alone, by going through the answer once more. The first step is left out: it has no forward pass.
    fn measure(&mut self, constraint: &Constraint, events: &[Event], steps: &[Duration]) {
        let mut state = constraint.start();
        for (i, (event, step)) in events.iter().zip(steps).enumerate() {
            let start = Instant::now();
            state.mask().unwrap();
            state.accept(event.token).unwrap();
            let mask = start.elapsed();
            if i > 0 {
                self.masks.push(mask);
                self.shares.push(mask.as_secs_f64() / step.as_secs_f64());
            }
        }
    }

    fn check(&self) {
        let faults = script(&["validate"], &Value::Array(self.whole.clone()));
        for (case, fault) in self.whole.iter().zip(faults.as_array().unwrap()) {
            assert!(fault.is_null(), "{case}: {fault}");
        }
    }
}

#[test]
fn answers_of_a_real_model_are_valid() {
    let report = run(20, 1);
    report.check();
    assert!(report.whole.len() >= 8, "{} of 20 came to an end", report.whole.len());
}

/// The figures of PERFORMANCE.md: `cargo test --release --test constraints -- --ignored --nocapture two_hundred`.
#[test]
#[ignore = "takes minutes"]
#[allow(clippy::print_stdout, reason = "it reports figures")]
fn two_hundred_schemas() {
    let mut report = run(200, 2);
    println!("{} whole, {} cut off at {MAX_TOKENS} tokens", report.whole.len(), report.cut_off);
    println!("{} refused:", report.refused.len());
    for (schema, reason) in &report.refused {
        println!("  {schema}\n    {reason}");
    }
    for (name, times) in [("compiling", &mut report.compile), ("mask", &mut report.masks)] {
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
        println!("{name}: median {:.0} µs, 95% {:.0} µs, most {:.0} µs", at(0.5), at(0.95), at(1.0));
    }
    report.shares.sort_by(f64::total_cmp);
    let share = |at: f64| 100.0 * report.shares[((report.shares.len() - 1) as f64 * at) as usize];
    println!("mask in a step: median {:.2}%, 95% {:.2}%", share(0.5), share(0.95));
    report.check();
}
