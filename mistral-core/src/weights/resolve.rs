//! From the tensors of the files to those of the model: each one there, of the right shape, and nothing left over.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use super::catalog::{Catalog, RawTensor};
use super::fp8::{self, Fp8Scale};
use super::names::{LayerRole, Naming, Part, Projection, Role, Source, may_be_skipped};
use crate::config::{Evidence, FeedForwardConfig, MAX_VOCAB, ModelConfig, ParsedConfig};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::quant::Format;

/// The rotary divisors of Llama 3.1 in GGUF.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// A tensor of the model: a file tensor or a part of one.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The name in the file.
    pub source: String,
    pub file: usize,
    pub format: Format,
    pub shape: Vec<usize>,
    pub range: Range<usize>,
    pub scale: Option<Fp8Scale>,
}

/// What the tensors say about the shape of the model.
pub(crate) fn evidence(catalog: &Catalog, naming: Naming) -> Result<Evidence> {
    let find =
        |role| naming.sources(role).iter().find_map(|source| catalog.tensors.get_key_value(&source.name));
    let table = find(Role::Embedding);
    let vocab_size = table.and_then(|(_, tensor)| tensor.shape.first().copied());
    if let (Some((name, tensor)), Some(rows)) = (table, vocab_size)
        && !(1..=MAX_VOCAB).contains(&rows)
    {
        let found = format!("shape {:?}", tensor.shape);
        let expected = format!("from 1 to {MAX_VOCAB} rows, one for each token");
        return Err(Error::format(catalog.file_name(tensor), name, found, expected));
    }
    Ok(Evidence { vocab_size, has_output: find(Role::Output).is_some(), rope_style: naming.rope_style() })
}

/// Finds every tensor that the configuration asks for, by its canonical name. `origin` stands in errors about a tensor that no
/// file holds.
pub(crate) fn resolve(
    catalog: &Catalog,
    naming: Naming,
    config: &ParsedConfig,
    origin: &str,
    control: &Control<'_>,
) -> Result<BTreeMap<String, Entry>> {
    let mut entries = BTreeMap::new();
    let mut used: HashSet<String> = HashSet::new();
    if naming == Naming::Gguf {
        used.insert(ROPE_FACTORS.to_owned());
    }
    for (role, shape) in roles(&config.model) {
        control.check()?;
        let sources = naming.sources(role);
        let found = sources.iter().find_map(|source| Some((source, catalog.tensors.get(&source.name)?)));
        let Some((source, tensor)) = found else {
            let name = sources.first().map(|source| source.name.clone()).unwrap_or_default();
            let file = match catalog.files.as_slice() {
                [file] => file.name(),
                _ => origin.to_string(),
            };
            return Err(Error::format(file, name, "no such tensor", format!("one of shape {shape:?}")));
        };
        let mut entry = entry(catalog, source, tensor, shape, &config.model)?;
        if entry.format == Format::F8E4M3 {
            let (scale_name, scale) = fp8::find(catalog, &source.name, tensor, config.fp8_block)?;
            entry.scale = Some(scale);
            used.insert(scale_name);
        }
        used.insert(source.name.clone());
        entries.insert(role.canonical(), entry);
    }
    let left_over = catalog
        .tensors
        .iter()
        .find(|(name, _)| !used.contains(*name) && !may_be_skipped(name, config.has_vision));
    match left_over {
        Some((name, tensor)) => {
            let found = format!("a tensor of shape {:?} that the model has no place for", tensor.shape);
            let expected = format!(
                "the tensors of a `{}` of {} layers",
                config.model.architecture,
                config.model.layers.len()
            );
            Err(Error::format(catalog.file_name(tensor), name, found, expected))
        }
        None => Ok(entries),
    }
}

/// Every tensor of the model with its shape. An iterator, so that a configuration that claims many costs nothing.
fn roles(config: &ModelConfig) -> impl Iterator<Item = (Role, Vec<usize>)> {
    let table = vec![config.vocab_size, config.dim]; // [vocab, dim]
    let ends = [(Role::Embedding, table.clone()), (Role::FinalNorm, vec![config.dim])];
    let output = (!config.tied_embeddings).then_some((Role::Output, table));
    let layers = config.layers.iter().enumerate().flat_map(move |(number, layer)| {
        let in_layer = move |(role, shape)| (Role::Layer(number, role), shape);
        attention_roles(config)
            .into_iter()
            .chain(feed_forward_roles(config, layer.feed_forward))
            .map(in_layer)
    });
    ends.into_iter().chain(output).chain(layers)
}

fn attention_roles(config: &ModelConfig) -> [(LayerRole, Vec<usize>); 6] {
    let q = config.n_heads * config.head_dim;
    let kv = config.n_kv_heads * config.head_dim;
    [
        (LayerRole::AttentionNorm, vec![config.dim]),
        (LayerRole::FfnNorm, vec![config.dim]),
        (LayerRole::Wq, vec![q, config.dim]),
        (LayerRole::Wk, vec![kv, config.dim]),
        (LayerRole::Wv, vec![kv, config.dim]),
        (LayerRole::Wo, vec![config.dim, q]),
    ]
}

fn feed_forward_roles(
    config: &ModelConfig,
    kind: FeedForwardConfig,
) -> Box<dyn Iterator<Item = (LayerRole, Vec<usize>)> + '_> {
    let projections = move || {
        let (up, down) = ([config.hidden_dim, config.dim], [config.dim, config.hidden_dim]);
        [(Projection::W1, up), (Projection::W2, down), (Projection::W3, up)].into_iter()
    };
    match kind {
        FeedForwardConfig::Dense => Box::new(
            projections().map(|(projection, shape)| (LayerRole::FeedForward(projection), shape.to_vec())),
        ),
        FeedForwardConfig::Moe { n_experts, .. } => {
            let router = (LayerRole::Router, vec![n_experts, config.dim]);
            let experts = (0..n_experts).flat_map(move |expert| {
                projections()
                    .map(move |(projection, shape)| (LayerRole::Expert(expert, projection), shape.to_vec()))
            });
            Box::new(std::iter::once(router).chain(experts))
        }
    }
}

/// The part of a file tensor that is the wanted tensor, once its whole shape is as it must be.
fn entry(
    catalog: &Catalog,
    source: &Source,
    tensor: &RawTensor,
    shape: Vec<usize>,
    config: &ModelConfig,
) -> Result<Entry> {
    let bad = |found: String, expected: String| {
        Error::format(catalog.file_name(tensor), &source.name, found, expected)
    };
    let format = catalog.format(&source.name, tensor)?;
    let n_experts = match config.layers.first().map(|layer| layer.feed_forward) {
        Some(FeedForwardConfig::Moe { n_experts, .. }) => n_experts,
        _ => 1,
    };
    let rows = shape.first().copied().unwrap_or(1);
    // The shape in the file, and the first row that is ours when the leading dimensions are taken as one.
    let (whole, first_row) = match source.part {
        Part::Whole => (shape.clone(), 0),
        Part::Expert { index } => ([&[n_experts], shape.as_slice()].concat(), index * rows),
        Part::ExpertHalf { index, half } => {
            let mut whole = [&[n_experts], shape.as_slice()].concat();
            whole[1] *= 2;
            (whole, (2 * index + half) * rows)
        }
    };
    if tensor.shape != whole {
        return Err(bad(format!("shape {:?}", tensor.shape), format!("shape {whole:?}")));
    }
    let is_plain = matches!(format, Format::F32 | Format::F16 | Format::BF16);
    if shape.len() == 1 && !is_plain {
        return Err(bad(format!("type {}", format.name()), "F32, F16 or BF16, as it is a norm".to_owned()));
    }
    if format == Format::F8E4M3 && source.part != Part::Whole {
        return Err(Error::unsupported(
            format!("type of tensor {} in {}", source.name, catalog.file_name(tensor)),
            "F8_E4M3 for all experts in one tensor",
            "one FP8 tensor for each expert",
        ));
    }
    let all_rows: usize = whole.iter().take(whole.len().max(2) - 1).product();
    // Rows have equal lengths: the files' parsers refuse rows that are not made of whole blocks. A vector is one row.
    let row_bytes = if shape.len() == 1 { tensor.range.len() } else { tensor.range.len() / all_rows };
    let (start, len) =
        if shape.len() == 1 { (0, row_bytes) } else { (first_row * row_bytes, rows * row_bytes) };
    let start = tensor.range.start + start;
    let range = start..start + len;
    Ok(Entry { source: source.name.clone(), file: tensor.file, format, shape, range, scale: None })
}
