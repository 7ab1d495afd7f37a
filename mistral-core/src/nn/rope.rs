//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864), its extensions, and Llama-4 query scaling.
//!
//! Frequencies and angles are single precision, as in the reference code (transformers `modeling_rope_utils.py`, mistral-inference
//! `rope.py`): at large positions a more exact angle would be a different model.

use burn::tensor::{Device, Tensor, TensorData};

use crate::config::{ModelConfig, QueryScaling, RopeConfig, RopeScaling, RopeStyle};
use crate::kernels::Angles;

/// The rotary frequencies of a model.
#[derive(Clone, Debug)]
pub struct Rope {
    frequencies: Vec<f32>,
    /// Multiplies cos and sin (YaRN's attention factor).
    magnitude: f32,
    query_scaling: Option<QueryScaling>,
    style: RopeStyle,
}

/// The angles of the tokens of one forward pass.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// Of keys.
    pub keys: Angles,
    /// Of queries: the same, times the query scale.
    pub queries: Angles,
}

impl Rope {
    /// The rotation that `config` describes.
    pub fn new(config: &ModelConfig) -> Self {
        let magnitude = match config.rope.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        };
        Self {
            frequencies: frequencies(&config.rope, config.head_dim),
            magnitude,
            query_scaling: config.query_scaling,
            style: config.rope.style,
        }
    }

    /// The angles of positions `start..start + t`, for layers on `device`.
    pub fn rotation(&self, start: usize, t: usize, device: &Device) -> Rotation {
        let keys = self.angles(start, t, device, |_| self.magnitude);
        let queries = match self.query_scaling {
            None => keys.clone(),
            Some(scaling) => {
                self.angles(start, t, device, |position| self.magnitude * query_scale(scaling, position))
            }
        };
        Rotation { keys, queries }
    }

    fn angles(&self, start: usize, t: usize, device: &Device, scale: impl Fn(usize) -> f32) -> Angles {
        let half = self.frequencies.len();
        let (mut cos, mut sin) = (Vec::with_capacity(t * half), Vec::with_capacity(t * half));
        for position in start..start + t {
            let scale = scale(position);
            for frequency in &self.frequencies {
                let (s, c) = (position as f32 * frequency).sin_cos();
                cos.push(c * scale);
                sin.push(s * scale);
            }
        }
        let tensor = |v| Tensor::from_data(TensorData::new(v, [t, half]), device);
        Angles { cos: tensor(cos), sin: tensor(sin), style: self.style }
    }
}

/// `1 + β·ln(1 + floor(position / original_max_position))` (Llama 4; `Ministral3Attention` in transformers).
fn query_scale(scaling: QueryScaling, position: usize) -> f32 {
    1.0 + scaling.beta * ((position / scaling.original_max_position) as f32).ln_1p()
}

/// `head_dim / 2` frequencies: `theta^(-2i / head_dim)`, stretched as the model says.
fn frequencies(rope: &RopeConfig, head_dim: usize) -> Vec<f32> {
    let plain = (0..head_dim / 2).map(|i| 1.0 / rope.theta.powf(2.0 * i as f32 / head_dim as f32));
    match &rope.scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        RopeScaling::Factors(factors) => plain.zip(factors).map(|(f, factor)| f / factor).collect(),
        &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => plain
            .map(|f| {
                let turns = original_max_position as f32 * f / std::f32::consts::TAU;
                let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                if turns < low_freq_factor {
                    f / factor
                } else if turns > high_freq_factor {
                    f
                } else {
                    (1.0 - smooth) * f / factor + smooth * f
                }
            })
            .collect(),
        &RopeScaling::Yarn { factor, original_max_position, beta_fast, beta_slow, .. } => {
            let (low, high) = yarn_range(rope.theta, head_dim, original_max_position, beta_fast, beta_slow);
            plain
                .enumerate()
                .map(|(i, f)| {
                    let ramp = ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                })
                .collect()
        }
    }
}

/// Between which frequencies YaRN goes from keeping to dividing (equation 23 of arXiv:2309.00071; transformers `find_correction_range`).
fn yarn_range(theta: f32, head_dim: usize, original: usize, beta_fast: f32, beta_slow: f32) -> (f32, f32) {
    let dim = |rotations: f32| {
        let turns = original as f64 / (f64::from(rotations) * std::f64::consts::TAU);
        head_dim as f64 * turns.ln() / (2.0 * f64::from(theta).ln())
    };
    let low = dim(beta_fast).floor().max(0.0);
    let high = dim(beta_slow).ceil().min(head_dim as f64 - 1.0);
    let high = if low == high { high + 0.001 } else { high };
    (low as f32, high as f32)
}
