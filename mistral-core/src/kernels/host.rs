//! The kernels on backends whose tensors lie in host memory: their slices go to [`super::cpu`], the results come back as tensors.

use burn::backend::flex::{FlexTensor, Layout as FlexLayout};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Bytes, DType, Flex, TensorMetadata};

use super::cpu::{attention, cache, dense, elementwise, packed};
use super::{AttentionSpec, CacheSpec, Kernels, Layout, LinearSpec};
use crate::config::RopeStyle;

/// Access to the memory of a backend's tensors.
trait Host: Backend {
    /// The tensor with its elements in row-major order, without gaps.
    fn contiguous(x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// The elements of a contiguous f32 tensor.
    fn floats(x: &FloatTensor<Self>) -> &[f32];
    /// The same of any f32 tensor, to change; copied first if someone else holds it too.
    fn floats_mut(x: FloatTensor<Self>, change: impl FnOnce(&mut [f32])) -> FloatTensor<Self>;
    /// The elements of a contiguous `u8` tensor.
    fn bytes(x: &IntTensor<Self>) -> &[u8];
    /// The same, to change; copied first if someone else holds the tensor too.
    fn bytes_mut(x: IntTensor<Self>, change: impl FnOnce(&mut [u8])) -> IntTensor<Self>;
    /// A tensor of `shape`.
    fn tensor(data: Vec<f32>, shape: [usize; 2]) -> FloatTensor<Self>;
}

impl Host for Flex {
    fn contiguous(x: FlexTensor) -> FlexTensor {
        // `to_contiguous` makes another tensor of one that is.
        if x.is_contiguous() { x } else { x.to_contiguous() }
    }
    fn floats(x: &FlexTensor) -> &[f32] {
        x.as_slice().expect("activations are contiguous f32")
    }
    fn floats_mut(x: FlexTensor, change: impl FnOnce(&mut [f32])) -> FlexTensor {
        // A part of a tensor has all of it for its storage.
        let whole = x.is_contiguous() && x.bytes().len() == x.shape().num_elements() * size_of::<f32>();
        let mut x = if whole { x } else { x.to_contiguous() };
        change(x.storage_mut());
        x
    }
    fn bytes(x: &FlexTensor) -> &[u8] {
        x.as_slice().expect("weights and caches are contiguous u8")
    }
    fn bytes_mut(mut x: FlexTensor, change: impl FnOnce(&mut [u8])) -> FlexTensor {
        change(x.storage_mut());
        x
    }
    fn tensor(data: Vec<f32>, shape: [usize; 2]) -> FlexTensor {
        FlexTensor::new(Bytes::from_elems(data), FlexLayout::contiguous(shape.into()), DType::F32)
    }
}

#[cfg(feature = "ndarray")]
mod ndarray {
    use burn::backend::ndarray::NdArrayTensor;
    use burn::backend::{NdArray, TensorData};

    use super::{Host, Kernels};

    impl Host for NdArray {
        fn contiguous(x: NdArrayTensor) -> NdArrayTensor {
            match x {
                NdArrayTensor::F32(x) if x.view().as_slice().is_some() => NdArrayTensor::F32(x),
                NdArrayTensor::F32(x) => {
                    let view = x.view();
                    let shape: Vec<usize> = view.shape().to_vec();
                    NdArrayTensor::from_data(TensorData::new(
                        view.iter().copied().collect::<Vec<f32>>(),
                        shape,
                    ))
                }
                other => panic!("activations are f32, not {other:?}"),
            }
        }
        fn floats(x: &NdArrayTensor) -> &[f32] {
            let NdArrayTensor::F32(x) = x else { panic!("activations are f32") };
            x.view().to_slice().expect("activations are contiguous")
        }
        fn floats_mut(x: NdArrayTensor, change: impl FnOnce(&mut [f32])) -> NdArrayTensor {
            let NdArrayTensor::F32(x) = Self::contiguous(x) else { panic!("activations are f32") };
            let mut array = x.into_owned();
            change(array.as_slice_mut().expect("activations are contiguous"));
            NdArrayTensor::from(array)
        }
        fn bytes(x: &NdArrayTensor) -> &[u8] {
            let NdArrayTensor::U8(x) = x else { panic!("weights and caches are u8") };
            x.view().to_slice().expect("weights and caches are contiguous")
        }
        fn bytes_mut(x: NdArrayTensor, change: impl FnOnce(&mut [u8])) -> NdArrayTensor {
            let NdArrayTensor::U8(x) = x else { panic!("caches are u8") };
            let mut array = x.into_owned();
            change(array.as_slice_mut().expect("caches are contiguous"));
            NdArrayTensor::from(array)
        }
        fn tensor(data: Vec<f32>, shape: [usize; 2]) -> NdArrayTensor {
            NdArrayTensor::from_data(TensorData::new(data, shape))
        }
    }

    super::override_kernels!(NdArray);
}

/// Implements the kernels of a host backend by those of [`super::cpu`].
macro_rules! override_kernels {
    ($backend:ty) => {
        impl Kernels for $backend {
            fn linear(
                x: burn::backend::tensor::FloatTensor<Self>,
                weights: $crate::kernels::Weights<Self>,
                specs: Vec<$crate::kernels::LinearSpec>,
            ) -> Vec<burn::backend::tensor::FloatTensor<Self>> {
                $crate::kernels::host::linear::<Self>(x, &weights.into_vec(), &specs)
            }
            fn linear_swiglu(
                x: burn::backend::tensor::FloatTensor<Self>,
                weights: $crate::kernels::Weights<Self>,
                specs: Vec<$crate::kernels::LinearSpec>,
            ) -> burn::backend::tensor::FloatTensor<Self> {
                $crate::kernels::host::linear_swiglu::<Self>(x, &weights.into_vec(), &specs)
            }
            fn rms_norm(
                x: burn::backend::tensor::FloatTensor<Self>,
                weight: burn::backend::tensor::FloatTensor<Self>,
                eps: f32,
            ) -> burn::backend::tensor::FloatTensor<Self> {
                $crate::kernels::host::rms_norm::<Self>(x, weight, eps)
            }
            fn add_rms_norm(
                x: burn::backend::tensor::FloatTensor<Self>,
                r: burn::backend::tensor::FloatTensor<Self>,
                weight: burn::backend::tensor::FloatTensor<Self>,
                eps: f32,
            ) -> Vec<burn::backend::tensor::FloatTensor<Self>> {
                $crate::kernels::host::add_rms_norm::<Self>(x, r, weight, eps)
            }
            fn rope(
                x: burn::backend::tensor::FloatTensor<Self>,
                cos: burn::backend::tensor::FloatTensor<Self>,
                sin: burn::backend::tensor::FloatTensor<Self>,
                style: $crate::config::RopeStyle,
            ) -> burn::backend::tensor::FloatTensor<Self> {
                $crate::kernels::host::rope::<Self>(x, &cos, &sin, style)
            }
            fn swiglu(
                gate: burn::backend::tensor::FloatTensor<Self>,
                up: burn::backend::tensor::FloatTensor<Self>,
            ) -> burn::backend::tensor::FloatTensor<Self> {
                $crate::kernels::host::swiglu::<Self>(gate, up)
            }
            fn cache_write(
                cache: burn::backend::tensor::IntTensor<Self>,
                rows: burn::backend::tensor::FloatTensor<Self>,
                spec: $crate::kernels::CacheSpec,
                start: usize,
            ) -> burn::backend::tensor::IntTensor<Self> {
                $crate::kernels::host::cache_write::<Self>(cache, rows, &spec, start)
            }
            fn cache_write_rotated(
                k: burn::backend::tensor::IntTensor<Self>,
                v: burn::backend::tensor::IntTensor<Self>,
                keys: burn::backend::tensor::FloatTensor<Self>,
                values: burn::backend::tensor::FloatTensor<Self>,
                cos: burn::backend::tensor::FloatTensor<Self>,
                sin: burn::backend::tensor::FloatTensor<Self>,
                style: $crate::config::RopeStyle,
                spec: $crate::kernels::CacheSpec,
                start: usize,
            ) -> Vec<burn::backend::tensor::IntTensor<Self>> {
                let keys = $crate::kernels::host::rope::<Self>(keys, &cos, &sin, style);
                vec![
                    $crate::kernels::host::cache_write::<Self>(k, keys, &spec, start),
                    $crate::kernels::host::cache_write::<Self>(v, values, &spec, start),
                ]
            }
            fn attention_rotated(
                q: burn::backend::tensor::FloatTensor<Self>,
                cos: burn::backend::tensor::FloatTensor<Self>,
                sin: burn::backend::tensor::FloatTensor<Self>,
                style: $crate::config::RopeStyle,
                k: burn::backend::tensor::IntTensor<Self>,
                v: burn::backend::tensor::IntTensor<Self>,
                spec: $crate::kernels::AttentionSpec,
            ) -> burn::backend::tensor::FloatTensor<Self> {
                let q = $crate::kernels::host::rope::<Self>(q, &cos, &sin, style);
                $crate::kernels::host::attention::<Self>(q, &k, &v, &spec)
            }
            fn attention(
                q: burn::backend::tensor::FloatTensor<Self>,
                k: burn::backend::tensor::IntTensor<Self>,
                v: burn::backend::tensor::IntTensor<Self>,
                spec: $crate::kernels::AttentionSpec,
            ) -> burn::backend::tensor::FloatTensor<Self> {
                $crate::kernels::host::attention::<Self>(q, &k, &v, &spec)
            }
        }
    };
}
use override_kernels;

override_kernels!(Flex);

fn linear<B: Host>(x: FloatTensor<B>, weights: &[IntTensor<B>], specs: &[LinearSpec]) -> Vec<FloatTensor<B>> {
    let m = x.shape()[0];
    let outs = products::<B>(x, weights, specs);
    outs.into_iter().zip(specs).map(|(out, spec)| B::tensor(out, [m, spec.rows])).collect()
}

fn linear_swiglu<B: Host>(
    x: FloatTensor<B>,
    weights: &[IntTensor<B>],
    specs: &[LinearSpec],
) -> FloatTensor<B> {
    let m = x.shape()[0];
    let mut products = products::<B>(x, weights, specs);
    let [gate, up] = &mut products[..] else { unreachable!("gate and up") };
    elementwise::swiglu(gate, up);
    B::tensor(products.swap_remove(0), [m, specs[0].rows])
}

/// What each matrix makes of `x: [m, cols]`: `[m, rows]`.
fn products<B: Host>(x: FloatTensor<B>, weights: &[IntTensor<B>], specs: &[LinearSpec]) -> Vec<Vec<f32>> {
    let m = x.shape()[0];
    let x = B::contiguous(x);
    let mut outs: Vec<Vec<f32>> = specs.iter().map(|spec| vec![0.0; m * spec.rows]).collect();
    let (mut packed, mut dense) = (Vec::new(), Vec::new());
    for ((weight, spec), out) in weights.iter().zip(specs).zip(&mut outs) {
        let &LinearSpec { format, layout, rows, cols, .. } = spec;
        let (data, scale) = (B::bytes(weight), spec.scale.as_deref());
        if layout == Layout::Packed || packed::multiplies_rows(format) {
            packed.push((packed::BlockMatrix { format, layout, rows, cols, data }, &mut out[..]));
        } else {
            dense.push((dense::DenseMatrix { format, rows, cols, data, scale }, &mut out[..]));
        }
    }
    let activation = specs.first().map(|spec| spec.activation).unwrap_or_default();
    packed::linear(activation, B::floats(&x), m, packed);
    dense::linear(B::floats(&x), m, dense);
    outs
}

fn rms_norm<B: Host>(x: FloatTensor<B>, weight: FloatTensor<B>, eps: f32) -> FloatTensor<B> {
    let shape = dims2::<B>(&x);
    let x = B::contiguous(x);
    let mut out = vec![0.0; shape[0] * shape[1]];
    elementwise::rms_norm(B::floats(&x), B::floats(&weight), eps, &mut out);
    B::tensor(out, shape)
}

fn add_rms_norm<B: Host>(
    x: FloatTensor<B>,
    r: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f32,
) -> Vec<FloatTensor<B>> {
    let mut normed = None;
    let sum = B::floats_mut(x, |x| {
        normed = Some(B::floats_mut(r, |r| elementwise::add_rms_norm(x, r, B::floats(&weight), eps)));
    });
    std::iter::once(sum).chain(normed).collect()
}

/// Turns the heads of `x`, in place where it is not shared.
fn rope<B: Host>(
    x: FloatTensor<B>,
    cos: &FloatTensor<B>,
    sin: &FloatTensor<B>,
    style: RopeStyle,
) -> FloatTensor<B> {
    let head_dim = 2 * cos.shape()[1];
    B::floats_mut(x, |x| elementwise::rope(x, B::floats(cos), B::floats(sin), head_dim, style))
}

fn swiglu<B: Host>(gate: FloatTensor<B>, up: FloatTensor<B>) -> FloatTensor<B> {
    let up = B::contiguous(up);
    B::floats_mut(gate, |gate| elementwise::swiglu(gate, B::floats(&up)))
}

fn cache_write<B: Host>(
    cache: IntTensor<B>,
    rows: FloatTensor<B>,
    spec: &CacheSpec,
    start: usize,
) -> IntTensor<B> {
    let rows = B::contiguous(rows);
    B::bytes_mut(cache, |bytes| cache::cache_write(bytes, B::floats(&rows), spec, start))
}

fn attention<B: Host>(
    q: FloatTensor<B>,
    k: &IntTensor<B>,
    v: &IntTensor<B>,
    spec: &AttentionSpec,
) -> FloatTensor<B> {
    let (q, width) = (B::contiguous(q), spec.n_heads * spec.cache.head_dim);
    let out = attention::attention(B::floats(&q), B::bytes(k), B::bytes(v), spec);
    let tokens = out.len() / width;
    B::tensor(out, [tokens, width])
}

fn dims2<B: Backend>(x: &FloatTensor<B>) -> [usize; 2] {
    let shape = x.shape();
    [shape[0], shape[1]]
}
