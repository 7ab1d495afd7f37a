//! The C interface of mistral: `include/mistral.h` is generated from this crate.
//!
//! Requests, options and reports are JSON; tokens, logits and text are plain pointers. Every function goes
//! through [`guard::call`], so that no panic leaves the library; handles are looked up, never followed
//! ([`handle`]); a failure leaves its message with the thread ([`failure`]).

#![allow(non_camel_case_types, reason = "the names are those of C")]
#![allow(clippy::missing_safety_doc, reason = "what the caller promises stands in the header, in C's terms")]

#[global_allocator]
static ALLOCATOR: wipe::Wiping = wipe::Wiping;

mod buffer;
mod cancel;
mod chat;
mod embed;
mod evidence;
mod failure;
mod generate;
mod guard;
mod handle;
mod input;
mod library;
mod log;
mod model;
mod options;
mod saved;
mod session;
mod status;
mod step;
#[doc(hidden)]
pub mod testing;
mod text;
mod types;
mod wipe;
