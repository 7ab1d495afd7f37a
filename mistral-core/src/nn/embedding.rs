//! The embedding table: rows are decoded from the mapped file when a token needs them.

use burn::tensor::{Device, Tensor, TensorData};
use bytes::Bytes;

use crate::error::{Error, Result};
use crate::quant::Format;
use crate::weights::Fp8Scale;

/// `tok_embeddings`: `[vocab_size, dim]`, never copied as a whole.
#[derive(Clone, Debug)]
pub struct Embedding {
    pub(crate) data: Bytes,
    format: Format,
    scale: Option<Fp8Scale>,
    vocab_size: usize,
    dim: usize,
    row_bytes: usize,
    device: Device,
}

impl Embedding {
    /// The table in `data`, row after row; `scale` is that of FP8.
    pub fn new(
        data: Bytes,
        format: Format,
        scale: Option<Fp8Scale>,
        vocab_size: usize,
        dim: usize,
        device: Device,
    ) -> Self {
        let row_bytes = data.len() / vocab_size.max(1);
        Self { data, format, scale, vocab_size, dim, row_bytes, device }
    }

    /// The rows of `tokens`: `[t, dim]`.
    ///
    /// # Errors
    /// [`Error::Argument`] for a token outside the vocabulary.
    pub fn forward(&self, tokens: &[u32]) -> Result<Tensor<2>> {
        let mut rows = vec![0.0; tokens.len() * self.dim];
        for ((i, &token), row) in tokens.iter().enumerate().zip(rows.chunks_exact_mut(self.dim)) {
            let token = token as usize;
            if token >= self.vocab_size {
                let expected = format!("a token below {}", self.vocab_size);
                return Err(Error::argument(format!("tokens[{i}]"), token, expected));
            }
            self.format.dequantize(&self.data[token * self.row_bytes..][..self.row_bytes], row)?;
            if let Some(scale) = &self.scale {
                scale.apply(token, row);
            }
        }
        Ok(Tensor::from_data(TensorData::new(rows, [tokens.len(), self.dim]), &self.device))
    }
}
