//! Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) over the cache.

use burn::tensor::Tensor;

use super::{Linear, Normed, Rotation};
use crate::cache::LayerCache;

/// `wq`, `wk`, `wv`, `wo` of one layer.
#[derive(Clone, Debug)]
pub struct Attention {
    /// `[n_heads * head_dim, dim]`
    pub wq: Linear,
    /// `[n_kv_heads * head_dim, dim]`
    pub wk: Linear,
    /// `[n_kv_heads * head_dim, dim]`
    pub wv: Linear,
    /// `[dim, n_heads * head_dim]`
    pub wo: Linear,
    /// Query heads.
    pub n_heads: usize,
    /// Key j is visible to query i iff `i - window < j <= i`.
    pub window: Option<usize>,
}

impl Attention {
    /// Bytes of the weights.
    pub fn bytes(&self) -> u64 {
        [&self.wq, &self.wk, &self.wv, &self.wo].into_iter().map(Linear::bytes).sum()
    }

    /// The residual stream, and what is to be added to it: `x: [t, dim]`, its norm, at positions `start..start + t` → `[t, dim]`.
    pub fn forward(
        &self,
        x: Normed,
        start: usize,
        rotation: &Rotation,
        cache: &mut LayerCache,
    ) -> [Tensor<2>; 2] {
        let (h, qkv) = Linear::triple([&self.wq, &self.wk, &self.wv], x);
        let angles = [&rotation.queries, &rotation.keys];
        let r = cache.attend(start, qkv, angles, self.n_heads, self.window); // [t, n_heads * head_dim]
        [h, self.wo.forward(r)]
    }
}
