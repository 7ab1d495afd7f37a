//! The model on one page: embed → blocks → logits. It serves every family, file format and device.

use burn::tensor::{Device, Tensor};

use crate::cache::{KvCache, LayerCache};
use crate::error::Result;
use crate::nn::{Attention, Embedding, FeedForward, Linear, RmsNorm, Rope, Rotation};

/// A decoder-only transformer (Mistral 7B, arXiv:2310.06825; mistral-inference `transformer.py`).
#[derive(Debug)]
pub struct Transformer {
    /// Tokens to vectors.
    pub tok_embeddings: Embedding,
    /// The layers.
    pub layers: Vec<Block>,
    /// The last norm.
    pub norm: RmsNorm,
    /// Vectors to logits, `[vocab_size, dim]`.
    pub output: Linear,
    /// Positions to angles.
    pub rope: Rope,
}

/// One layer.
#[derive(Debug)]
pub struct Block {
    /// Where its weights and its cache are.
    pub device: Device,
    /// Before the attention.
    pub attention_norm: RmsNorm,
    /// Tokens look at earlier ones.
    pub attention: Attention,
    /// Before the feed-forward.
    pub ffn_norm: RmsNorm,
    /// Each token by itself.
    pub feed_forward: FeedForward,
}

impl Transformer {
    /// Runs `h: [t, dim]` (embedded tokens) at positions `cache.len..` through all layers, and advances the cache; `check` is called before
    /// each layer and after the last, and may stop the pass, which leaves the cache as it was.
    ///
    /// # Errors
    /// What `check` returns, and device failures.
    pub fn forward(
        &self,
        mut h: Tensor<2>,
        cache: &mut KvCache,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor<2>> {
        let [t, _] = h.dims();
        let mut rotation = self.rope.rotation(cache.len, t, &h.device());
        cache.written = cache.written.max(cache.len + t);
        let mut r = None;
        for (block, layer) in self.layers.iter().zip(&mut cache.layers) {
            check()?;
            if block.device != h.device() {
                h = sum(h, r.take()).to_device(&block.device);
                rotation = self.rope.rotation(cache.len, t, &block.device);
            }
            (h, r) = block.forward(h, r, cache.len, &rotation, layer)?;
        }
        check()?;
        cache.len += t;
        Ok(sum(h, r))
    }

    /// Bytes of weights that one decoded token reads.
    pub fn bytes_per_token(&self) -> u64 {
        let blocks =
            self.layers.iter().map(|block| block.attention.bytes() + block.feed_forward.bytes_per_token());
        blocks.sum::<u64>() + self.output.bytes()
    }

    /// `h: [t, dim]` → logits `[t, vocab_size]`.
    pub fn logits(&self, h: Tensor<2>) -> Tensor<2> {
        self.output.forward(self.norm.forward(h))
    }
}

impl Block {
    /// The residual stream is `h + r: [t, dim]`, before and after: the next norm adds them.
    fn forward(
        &self,
        h: Tensor<2>,
        r: Option<Tensor<2>>,
        start: usize,
        rotation: &Rotation,
        cache: &mut LayerCache,
    ) -> Result<(Tensor<2>, Option<Tensor<2>>)> {
        let [h, r] = self.attention.forward(self.attention_norm.of(h, r), start, rotation, cache);
        let [h, r] = self.feed_forward.forward(self.ffn_norm.of(h, Some(r)))?;
        Ok((h, Some(r)))
    }
}

fn sum(h: Tensor<2>, r: Option<Tensor<2>>) -> Tensor<2> {
    match r {
        Some(r) => h + r,
        None => h,
    }
}
