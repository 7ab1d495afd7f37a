//! Chat requests to tokens, and tokens back to messages.

mod fields;
mod guard;
pub mod jinja;
pub mod json;
pub mod message;
pub mod request;
mod schema;
mod strftime;
