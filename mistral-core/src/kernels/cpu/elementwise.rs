//! Normalisation, rotary embedding and SwiGLU: everything between the matrices. Each row is computed alone.

use super::pool;
use super::simd::{Floats, MAX_LANES, simd_dispatch};
use crate::config::RopeStyle;

/// Elements of one task: below, a hand-over costs more than the work.
const TASK_ELEMENTS: usize = 16 * 1024;

/// Runs `body(row, that row of each of outs)` for each row of `width` elements, several rows a task.
fn for_rows<const N: usize>(
    outs: [&mut [f32]; N],
    width: usize,
    body: &(dyn Fn(usize, [&mut [f32]; N]) + Sync),
) {
    struct Outs<const N: usize>([*mut f32; N]);
    // SAFETY: tasks write disjoint rows.
    unsafe impl<const N: usize> Sync for Outs<N> {}
    impl<const N: usize> Outs<N> {
        /// # Safety
        /// The row lies in the buffers and no one else uses it.
        #[allow(clippy::mut_from_ref, reason = "the rows are disjoint")]
        unsafe fn row(&self, row: usize, width: usize) -> [&mut [f32]; N] {
            // SAFETY: the caller's promise.
            self.0.map(|out| unsafe { std::slice::from_raw_parts_mut(out.add(row * width), width) })
        }
    }
    let rows = outs[0].len() / width.max(1);
    assert!(outs.iter().all(|out| out.len() == outs[0].len()));
    let step = (TASK_ELEMENTS / width.max(1)).max(1);
    let outs = Outs(outs.map(|out| out.as_mut_ptr()));
    pool::run(rows.div_ceil(step), &|task| {
        for row in task * step..((task + 1) * step).min(rows) {
            // SAFETY: each row is visited once.
            body(row, unsafe { outs.row(row, width) });
        }
    });
}

/// `out = x / sqrt(mean(x²) + eps) · weight`, row by row (Zhang & Sennrich 2019, arXiv:1910.07467).
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    let width = weight.len();
    for_rows([out], width, &|row, [out]| norm_row(&x[row * width..(row + 1) * width], weight, eps, out));
}

/// `x += r`, and then `r` is [`rms_norm`] of that.
pub fn add_rms_norm(x: &mut [f32], r: &mut [f32], weight: &[f32], eps: f32) {
    for_rows([x, r], weight.len(), &|_, [x, r]| {
        x.iter_mut().zip(&*r).for_each(|(x, r)| *x += r);
        norm_row(x, weight, eps, r);
    });
}

simd_dispatch!(fn norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = norm_row_body);

#[inline(always)]
fn norm_row_body<V: Floats>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let n = x.len();
    assert!(weight.len() == n && out.len() == n);
    let whole = n / V::LANES * V::LANES;
    // SAFETY: every vector lies in the first `whole` elements; the arm was detected.
    unsafe {
        let mut acc = V::splat(0.0);
        for j in (0..whole).step_by(V::LANES) {
            let v = V::load(x.as_ptr().add(j));
            acc = v.fma(v, acc);
        }
        let squares = acc.sum() + x[whole..].iter().map(|v| v * v).sum::<f32>();
        let scale = 1.0 / (squares / n as f32 + eps).sqrt();
        for j in (0..whole).step_by(V::LANES) {
            let v = V::load(x.as_ptr().add(j)).mul(V::splat(scale));
            v.mul(V::load(weight.as_ptr().add(j))).store(out.as_mut_ptr().add(j));
        }
        for j in whole..n {
            out[j] = x[j] * scale * weight[j];
        }
    }
}

/// `gate = silu(gate) · up` (Shazeer 2020, arXiv:2002.05202), `silu(v) = v / (1 + e^-v)`.
pub fn swiglu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    let width = TASK_ELEMENTS.min(gate.len().max(1));
    let (whole, rest) = gate.split_at_mut(gate.len() / width * width);
    let (up, up_rest) = up.split_at(whole.len());
    for_rows([whole], width, &|row, [gate]| swiglu_run(gate, &up[row * width..(row + 1) * width]));
    swiglu_run(rest, up_rest);
}

simd_dispatch!(fn swiglu_run(gate: &mut [f32], up: &[f32]) = swiglu_body);

#[inline(always)]
fn swiglu_body<V: Floats>(gate: &mut [f32], up: &[f32]) {
    let n = gate.len();
    assert_eq!(up.len(), n);
    let mut j = 0;
    // SAFETY: every vector ends before `n`; the buffers of the rest have room for one; the arm was detected.
    unsafe {
        while j + V::LANES <= n {
            silu_times::<V>(gate.as_mut_ptr().add(j), up.as_ptr().add(j));
            j += V::LANES;
        }
        if j < n {
            let (mut g, mut u) = ([0.0; MAX_LANES], [0.0; MAX_LANES]);
            g[..n - j].copy_from_slice(&gate[j..]);
            u[..n - j].copy_from_slice(&up[j..]);
            silu_times::<V>(g.as_mut_ptr(), u.as_ptr());
            gate[j..].copy_from_slice(&g[..n - j]);
        }
    }
}

/// `gate = silu(gate) · up` for a vector.
///
/// # Safety
/// They are readable and writable; the arm of `V` was detected.
#[inline(always)]
unsafe fn silu_times<V: Floats>(gate: *mut f32, up: *const f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let v = V::load(gate);
        let e = V::splat(0.0).sub(v).exp();
        v.div(V::splat(1.0).add(e)).mul(V::load(up)).store(gate);
    }
}

/// Rotates each head of `x: [t, n_heads * head_dim]` by the angles whose `cos` and `sin: [t, head_dim / 2]` are given.
pub fn rope(x: &mut [f32], cos: &[f32], sin: &[f32], head_dim: usize, style: RopeStyle) {
    let half = head_dim / 2;
    let width = x.len() / (cos.len() / half).max(1);
    assert!(cos.len() == sin.len() && width.is_multiple_of(head_dim));
    for_rows([x], width, &|row, [x]| {
        let (cos, sin) = (&cos[row * half..(row + 1) * half], &sin[row * half..(row + 1) * half]);
        for head in x.chunks_exact_mut(head_dim) {
            match style {
                RopeStyle::Interleaved => rotate_pairs(head, cos, sin),
                RopeStyle::HalfSplit => rotate_halves(head, cos, sin),
            }
        }
    });
}

fn rotate_pairs(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((x, c), s) in x.as_chunks_mut().0.iter_mut().zip(cos).zip(sin) {
        let [a, b] = *x;
        *x = [a * c - b * s, a * s + b * c];
    }
}

fn rotate_halves(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = x.split_at_mut(cos.len());
    for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}
