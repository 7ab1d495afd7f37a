//! For the tests of this crate, which are Rust; no part of the interface.

use std::sync::Arc;

use mistral_core::Model;

use crate::handle;
use crate::model::ModelObject;
use crate::types::mistral_model;

/// A handle of a model that was opened in Rust, or NULL if there are too many.
pub fn adopt(model: Arc<Model>) -> *mut mistral_model {
    handle::insert(ModelObject(model)).unwrap_or(std::ptr::null_mut())
}
