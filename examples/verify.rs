//! Verifies a model and prints the report.
//!
//! `cargo run --release --example verify -- MODEL --manifest FILE`, or `--signature FILE --key FILE` with a bundle of OpenSSF Model Signing and a
//! public key as PEM; `--ignore NAME` for what may lie in the folder besides. `--key` and `--ignore` may come several times.
#![allow(clippy::print_stdout, reason = "a program prints")]

use std::error::Error;

use mistral_core::Control;
use mistral_core::provenance::{VerifyOptions, verify};

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let model =
        words.next().ok_or("which model? verify MODEL --manifest FILE | --signature FILE --key FILE")?;
    let mut options = VerifyOptions::default();
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--manifest" => options.manifest = Some(value.into()),
            "--signature" => options.signature = Some(value.into()),
            "--key" => options.keys.push(std::fs::read_to_string(value)?),
            "--ignore" => options.ignore.push(value),
            _ => return Err(format!("unknown option {word}").into()),
        }
    }
    let report = verify(&model, &options, &mut Control::none())?;
    println!("{:#}", report.to_json());
    Ok(())
}
