//! Normalisation, rotary embedding and SwiGLU: everything between the matrices. Each row is computed alone.

use super::pool;
use super::simd::{Floats, MAX_LANES, simd_dispatch};
use crate::config::RopeStyle;

/// Elements of one task: below, a hand-over costs more than the work.
const TASK_ELEMENTS: usize = 16 * 1024;

/// Runs `body(row, row of out)` for each row of `width` elements, several rows a task.
fn for_rows(out: &mut [f32], width: usize, body: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    struct Out(*mut f32);
    // SAFETY: tasks write disjoint rows.
    unsafe impl Sync for Out {}
    impl Out {
        /// # Safety
        /// The row lies in the buffer and no one else uses it.
        #[allow(clippy::mut_from_ref, reason = "the rows are disjoint")]
        unsafe fn row(&self, row: usize, width: usize) -> &mut [f32] {
            // SAFETY: the caller's promise.
            unsafe { std::slice::from_raw_parts_mut(self.0.add(row * width), width) }
        }
    }
    let rows = out.len() / width.max(1);
    let step = (TASK_ELEMENTS / width.max(1)).max(1);
    let out = Out(out.as_mut_ptr());
    pool::run(rows.div_ceil(step), &|task| {
        for row in task * step..((task + 1) * step).min(rows) {
            // SAFETY: each row is visited once.
            body(row, unsafe { out.row(row, width) });
        }
    });
}

/// `out = x / sqrt(mean(x²) + eps) · weight`, row by row (Zhang & Sennrich 2019, arXiv:1910.07467).
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    let width = weight.len();
    for_rows(out, width, &|row, out| norm_row(&x[row * width..(row + 1) * width], weight, eps, out));
}

/// `sum = x + r`, and [`rms_norm`] of it.
pub fn add_rms_norm((x, r): (&[f32], &[f32]), weight: &[f32], eps: f32, sum: &mut [f32], out: &mut [f32]) {
    assert!(x.len() == sum.len() && r.len() == sum.len());
    let width = weight.len();
    for_rows(sum, width, &|row, sum| {
        let at = row * width..(row + 1) * width;
        sum.iter_mut().zip(&x[at.clone()]).zip(&r[at]).for_each(|((sum, x), r)| *sum = x + r);
    });
    rms_norm(sum, weight, eps, out);
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

/// `out = silu(gate) · up` (Shazeer 2020, arXiv:2002.05202), `silu(v) = v / (1 + e^-v)`.
pub fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == out.len() && up.len() == out.len());
    let width = TASK_ELEMENTS.min(out.len().max(1));
    let whole = out.len() / width * width;
    for_rows(&mut out[..whole], width, &|row, out| {
        let at = row * width..(row + 1) * width;
        swiglu_run(&gate[at.clone()], &up[at], out);
    });
    swiglu_run(&gate[whole..], &up[whole..], &mut out[whole..]);
}

simd_dispatch!(fn swiglu_run(gate: &[f32], up: &[f32], out: &mut [f32]) = swiglu_body);

#[inline(always)]
fn swiglu_body<V: Floats>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let n = out.len();
    assert!(gate.len() == n && up.len() == n);
    let mut j = 0;
    // SAFETY: every vector ends before `n`; the buffers of the rest have room for one; the arm was detected.
    unsafe {
        while j + V::LANES <= n {
            silu_times::<V>(gate.as_ptr().add(j), up.as_ptr().add(j), out.as_mut_ptr().add(j));
            j += V::LANES;
        }
        if j < n {
            let (mut g, mut u, mut o) = ([0.0; MAX_LANES], [0.0; MAX_LANES], [0.0; MAX_LANES]);
            g[..n - j].copy_from_slice(&gate[j..]);
            u[..n - j].copy_from_slice(&up[j..]);
            silu_times::<V>(g.as_ptr(), u.as_ptr(), o.as_mut_ptr());
            out[j..].copy_from_slice(&o[..n - j]);
        }
    }
}

/// `out = silu(gate) · up` for a vector.
///
/// # Safety
/// They are readable and writable; the arm of `V` was detected.
#[inline(always)]
unsafe fn silu_times<V: Floats>(gate: *const f32, up: *const f32, out: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let gate = V::load(gate);
        let e = V::splat(0.0).sub(gate).exp();
        gate.div(V::splat(1.0).add(e)).mul(V::load(up)).store(out);
    }
}

/// Rotates each head of `x: [t, n_heads * head_dim]` by the angles whose `cos` and `sin: [t, head_dim / 2]` are given.
pub fn rope(x: &[f32], cos: &[f32], sin: &[f32], head_dim: usize, style: RopeStyle, out: &mut [f32]) {
    let half = head_dim / 2;
    let tokens = cos.len() / half;
    let width = x.len() / tokens.max(1);
    assert!(cos.len() == sin.len() && x.len() == out.len() && width.is_multiple_of(head_dim));
    for_rows(out, width, &|row, out| {
        let (cos, sin) = (&cos[row * half..(row + 1) * half], &sin[row * half..(row + 1) * half]);
        let x = &x[row * width..(row + 1) * width];
        for (x, out) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
            match style {
                RopeStyle::Interleaved => rotate_pairs(x, cos, sin, out),
                RopeStyle::HalfSplit => rotate_halves(x, cos, sin, out),
            }
        }
    });
}

fn rotate_pairs(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    for (((x, out), c), s) in x.chunks_exact(2).zip(out.chunks_exact_mut(2)).zip(cos).zip(sin) {
        out[0] = x[0] * c - x[1] * s;
        out[1] = x[0] * s + x[1] * c;
    }
}

fn rotate_halves(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let half = cos.len();
    let (x0, x1) = x.split_at(half);
    let (out0, out1) = out.split_at_mut(half);
    for i in 0..half {
        out0[i] = x0[i] * cos[i] - x1[i] * sin[i];
        out1[i] = x1[i] * cos[i] + x0[i] * sin[i];
    }
}
