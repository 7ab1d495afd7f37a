//! The parts of the transformer. None of them knows a file format, a storage format or a device.

pub mod attention;
pub mod embedding;
pub mod feed_forward;
pub mod linear;
pub mod norm;
pub mod rope;

pub use attention::Attention;
pub use embedding::Embedding;
pub use feed_forward::FeedForward;
pub use linear::Linear;
pub use norm::{Normed, RmsNorm};
pub use rope::{Rope, Rotation};
