//! Chat requests to tokens, and tokens back to messages.

mod answer;
mod calls;
mod encode;
mod fields;
mod guard;
pub mod jinja;
mod jinja_message;
pub mod json;
mod json_parser;
pub mod message;
mod normalize;
mod pyregex;
pub mod request;
pub mod response;
mod schema;
mod settings;
mod strftime;
mod validate;

pub use answer::{Answer, AnswerCall, AnswerEvent, AnswerParser, BrokenCall, CallFault, new_id};
pub use encode::{ChatFormat, Fragment, Prompt};
pub use settings::ModelSettings;
pub use validate::ValidationMode;

#[cfg(test)]
mod corpus_tests;
