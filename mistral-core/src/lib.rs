//! Runs Mistral's open-weight language models, and the Llama-shaped ones that share their mathematics, on the host's own
//! hardware: no network, no environment, nothing printed.
//!
//! Data flows one way: bytes on disk → [`weights`] → the transformer on a device → logits → a sampled token → text.

pub mod chat;
pub mod config;
#[cfg(feature = "constraint")]
pub mod constraint;
pub mod control;
pub mod error;
pub mod quant;
pub mod sampler;
pub mod stop;
pub mod tokenizer;
pub mod weights;

pub use control::{CancelToken, Control, Progress};
pub use error::{Error, Result};
