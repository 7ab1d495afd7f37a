//! Talks to a model on this machine.
//!
//! `cargo run --release --example chat` fetches SmolLM2-135M-Instruct once (98 MB) and asks it a question. `--model PATH`, `--prompt TEXT`, `--device NAME`,
//! `--max-tokens N`, `--temperature T`, `--seed N` and `--threads N` change that; without `--prompt`, on a terminal, it is a conversation.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program prints")]

#[path = "../../tests/support/smollm2.rs"]
mod smollm2;

use std::error::Error;
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Instant;

use mistral_core::{Control, Model, ModelOptions, Progress, Session, SessionOptions};
use serde_json::{Value, json};

const QUESTION: &str = "What is the capital of Japan?";

struct Arguments {
    model: Option<PathBuf>,
    prompt: Option<String>,
    options: ModelOptions,
    request: Value,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = arguments()?;
    let mut progress = |p: Progress| eprint!("\r{} {:3}%", p.phase, 100 * p.done / p.total.max(1));
    let path = match arguments.model {
        Some(path) => path,
        None => smollm2::path(&mut progress)?,
    };
    let model = Model::open(&path, &arguments.options, &mut Control::none().with_progress(&mut progress))?;
    eprintln!("\r{} on {}, {} threads", path.display(), arguments.options.device, model.threads());
    let mut session = model.session(&SessionOptions::default())?;
    let mut messages = Vec::new();
    if arguments.prompt.is_none() && std::io::stdin().is_terminal() {
        while let Some(question) = ask()? {
            answer(&mut session, &mut messages, &arguments.request, question)?;
        }
        return Ok(());
    }
    let question = arguments.prompt.unwrap_or_else(|| QUESTION.to_owned());
    println!("> {question}");
    answer(&mut session, &mut messages, &arguments.request, question)
}

/// One turn: streams the answer, and prints how fast the prompt was read and the answer written.
fn answer(
    session: &mut Session,
    messages: &mut Vec<Value>,
    options: &Value,
    question: String,
) -> Result<(), Box<dyn Error>> {
    messages.push(json!({"role": "user", "content": question}));
    let mut request = options.clone();
    request["messages"] = json!(messages);
    let start = Instant::now();
    let mut first = None;
    let response = session.chat(
        &request,
        &mut |chunk| {
            first.get_or_insert_with(|| start.elapsed());
            print!("{}", chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
            // A closed pipe shows at the next line that is printed.
            let _ = std::io::stdout().flush();
        },
        &mut Control::none(),
    )?;
    println!();
    let (read, total) = (first.unwrap_or_default().as_secs_f64(), start.elapsed().as_secs_f64());
    let usage = |key: &str| response["usage"][key].as_u64().unwrap_or(0);
    let cached = response["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
    let (prompt, answer) = (usage("prompt_tokens") - cached, usage("completion_tokens"));
    eprintln!(
        "prompt: {prompt} tokens, {:.0} tokens/s; answer: {answer} tokens, {:.0} tokens/s",
        prompt as f64 / read,
        answer as f64 / (total - read)
    );
    messages.push(response["choices"][0]["message"].clone());
    Ok(())
}

/// The next line of the user, or `None` at the end of the input.
fn ask() -> std::io::Result<Option<String>> {
    print!("> ");
    std::io::stdout().flush()?;
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line)?;
    Ok((read > 0).then(|| line.trim().to_owned()).filter(|line| !line.is_empty()))
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments {
        model: None,
        prompt: None,
        options: ModelOptions::default(),
        request: json!({"stream": true, "max_tokens": 512, "temperature": 0}),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let number = || value.parse::<f64>().map_err(|_| format!("{word}: `{value}` is not a number"));
        let count = || value.parse::<u64>().map_err(|_| format!("{word}: `{value}` is not a whole number"));
        match word.as_str() {
            "--model" => parsed.model = Some(value.into()),
            "--prompt" => parsed.prompt = Some(value),
            "--device" => parsed.options.device = value,
            "--threads" => parsed.options.threads = Some(count()? as usize),
            "--max-tokens" => parsed.request["max_tokens"] = count()?.into(),
            "--temperature" => parsed.request["temperature"] = number()?.into(),
            "--seed" => parsed.request["seed"] = count()?.into(),
            _ => {
                return Err(format!(
                    "unknown option {word}; there are --model, --prompt, --device, --threads, --max-tokens, --temperature, --seed"
                ));
            }
        }
    }
    Ok(parsed)
}
