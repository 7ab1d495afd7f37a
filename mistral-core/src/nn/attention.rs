//! Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) over the cache.

use burn::tensor::Tensor;

use super::{Linear, Rotation};
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

    /// `x: [t, dim]` at positions `start..start + t` → `[t, dim]`.
    pub fn forward(
        &self,
        x: Tensor<2>,
        start: usize,
        rotation: &Rotation,
        cache: &mut LayerCache,
    ) -> Tensor<2> {
        let [q, k, v] = Linear::triple([&self.wq, &self.wk, &self.wv], x);
        cache.write(start, k, v, &rotation.keys); // [t, n_kv_heads * head_dim]
        let r = cache.attend(q, &rotation.queries, start, self.n_heads, self.window); // [t, n_heads * head_dim]
        self.wo.forward(r)
    }
}
