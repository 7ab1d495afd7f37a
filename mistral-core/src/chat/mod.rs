//! Chat requests to tokens, and tokens back to messages.

mod encode;
mod fields;
mod guard;
pub mod jinja;
pub mod json;
pub mod message;
mod normalize;
pub mod request;
mod schema;
mod settings;
mod strftime;
mod validate;

pub use encode::{ChatFormat, Fragment, Prompt};
pub use settings::ModelSettings;
pub use validate::ValidationMode;

#[cfg(test)]
mod corpus_tests;
