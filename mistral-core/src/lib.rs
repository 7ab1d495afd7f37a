//! Runs Mistral's open-weight language models, and the Llama-shaped ones that share their mathematics, on the host's own
//! hardware: no network, no environment, nothing printed.
//!
//! Data flows one way: bytes on disk → [`weights`] → [`transformer`] on a device → logits → a sampled token → text.

pub mod audit;
pub mod cache;
#[cfg(test)]
mod cancel_tests;
mod carried;
pub mod chat;
mod completion;
pub mod config;
pub mod constraint;
pub mod control;
pub mod determinism;
pub mod device;
pub mod embed;
pub mod engine;
pub mod error;
mod estimate;
pub mod generate;
pub mod kernels;
pub mod limits;
mod loader;
mod lookup;
pub mod marking;
pub mod nn;
pub mod placement;
pub mod provenance;
pub mod quant;
pub mod sampler;
pub mod session;
pub mod stop;
#[doc(hidden)]
pub mod testing;
mod text;
pub mod tokenizer;
pub mod transformer;
pub mod weights;

pub use constraint::ConstraintSpec;
pub use control::{CancelToken, Control, Progress};
pub use embed::{EmbedOptions, Pooling};
pub use engine::{Model, ModelOptions};
pub use error::{Error, Result};
pub use estimate::estimate;
pub use generate::{Event, FinishReason, GenerateOptions, Generation};
pub use limits::Limits;
pub use session::{LoadOptions, Session, SessionOptions};
pub use text::{ChatOptions, Written};

/// Compiles the program of the README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
