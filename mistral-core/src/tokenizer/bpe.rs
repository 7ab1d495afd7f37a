//! Byte-pair encoding of one piece of text: the core that every tokenizer here shares.
//!
//! The neighbouring symbols whose merge comes first in the order of the vocabulary become one symbol, the leftmost on
//! ties, until nothing merges (Sennrich et al. 2016, arXiv:1508.07909). Tekken and SentencePiece order merges by the
//! merged text (its rank, its score), GPT-2's format by the pair of tokens.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::vocab::{NONE, Vocab};

/// Up to this many symbols the next merge is found by looking at all; beyond, by a heap (O(n log n)).
const SCAN: usize = 48;
/// Longer pieces are cut, at a character, so that positions in them fit in 32 bits.
const MAX_PIECE: usize = 1 << 31;

/// Where merges come from.
pub(super) enum Merges {
    /// A text that is in the vocabulary's index is a merge; the lower its id, the earlier.
    ById,
    /// A text that is in the vocabulary's index is a merge; the lower its number here (by id), the earlier.
    ByPriority(Vec<u32>),
    /// Listed pairs of tokens → (priority, merged token).
    Pairs(HashMap<(u32, u32), (u32, u32)>),
}

/// The symbols before the first merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Byte,
    Char,
}

/// How pieces of text become tokens.
pub(super) struct Bpe {
    pub(super) merges: Merges,
    pub(super) unit: Unit,
    /// A piece that is a token as it stands is that token, whatever the merges say.
    pub(super) whole_piece_first: bool,
    /// The token of each byte, or [`NONE`]: the first symbols of [`Unit::Byte`], the spelling of characters that are
    /// not in the vocabulary for [`Unit::Char`].
    pub(super) bytes: Box<[u32; 256]>,
    /// What stands for characters that cannot be spelled; without it they vanish.
    pub(super) unk: Option<u32>,
    /// A run of unknown characters is one `unk`.
    pub(super) fuse_unk: bool,
}

/// Buffers that are reused from piece to piece.
pub(super) struct Scratch {
    scan: usize,
    symbols: Vec<Symbol>,
    merges: Vec<Merge>,
    links: Vec<Link>,
    heap: BinaryHeap<Reverse<Candidate>>,
    after_unk: bool,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self::with_scan(SCAN)
    }

    /// With another bound than [`SCAN`]: the tokens are the same.
    pub(super) fn with_scan(scan: usize) -> Self {
        Self {
            scan,
            symbols: Vec::new(),
            merges: Vec::new(),
            links: Vec::new(),
            heap: BinaryHeap::new(),
            after_unk: false,
        }
    }
}

impl Bpe {
    /// Appends the tokens of `piece` to `out`.
    pub(super) fn encode(&self, vocab: &Vocab, mut piece: &str, scratch: &mut Scratch, out: &mut Vec<u32>) {
        while piece.len() > MAX_PIECE {
            let (head, rest) = piece.split_at(piece.floor_char_boundary(MAX_PIECE));
            self.encode_piece(vocab, head.as_bytes(), scratch, out);
            piece = rest;
        }
        self.encode_piece(vocab, piece.as_bytes(), scratch, out);
    }

    fn encode_piece(&self, vocab: &Vocab, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        if self.whole_piece_first
            && let Some(id) = vocab.find(piece)
        {
            out.push(id);
            return;
        }
        scratch.symbols.clear();
        self.first_symbols(vocab, piece, &mut scratch.symbols);
        match &self.merges {
            Merges::ById => merge_all(scratch, |left, right| {
                let id = vocab.find(&piece[left.start as usize..right.end as usize])?;
                Some(Merge { priority: id, id })
            }),
            Merges::ByPriority(priorities) => merge_all(scratch, |left, right| {
                let id = vocab.find(&piece[left.start as usize..right.end as usize])?;
                Some(Merge { priority: priorities[id as usize], id })
            }),
            Merges::Pairs(pairs) => merge_all(scratch, |left, right| {
                let &(priority, id) = pairs.get(&(left.id, right.id))?;
                Some(Merge { priority, id })
            }),
        }
        scratch.after_unk = false;
        for symbol in &scratch.symbols {
            if symbol.id == NONE {
                self.spell(&piece[symbol.start as usize..symbol.end as usize], &mut scratch.after_unk, out);
            } else {
                scratch.after_unk = false;
                out.push(symbol.id);
            }
        }
    }

    fn first_symbols(&self, vocab: &Vocab, piece: &[u8], symbols: &mut Vec<Symbol>) {
        let mut start = 0;
        while start < piece.len() {
            let (end, id) = match self.unit {
                Unit::Byte => (start + 1, self.bytes[piece[start] as usize]),
                Unit::Char => {
                    let end = (start + utf8_len(piece[start])).min(piece.len());
                    (end, vocab.find(&piece[start..end]).unwrap_or(NONE))
                }
            };
            symbols.push(Symbol { start: start as u32, end: end as u32, id });
            start = end;
        }
    }

    /// Tokens for text that is in no token: its bytes if there are tokens for them, else `unk`.
    fn spell(&self, text: &[u8], after_unk: &mut bool, out: &mut Vec<u32>) {
        if text.iter().all(|&byte| self.bytes[byte as usize] != NONE) {
            *after_unk = false;
            out.extend(text.iter().map(|&byte| self.bytes[byte as usize]));
        } else if let Some(unk) = self.unk {
            if !(self.fuse_unk && *after_unk) {
                out.push(unk);
            }
            *after_unk = true;
        }
    }
}

/// A stretch of the piece; `id` is [`NONE`] where no token spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Symbol {
    start: u32,
    end: u32,
    id: u32,
}

/// What two neighbours would become.
#[derive(Clone, Copy)]
struct Merge {
    priority: u32,
    id: u32,
}

const NO_MERGE: Merge = Merge { priority: NONE, id: NONE };

fn merge_all(scratch: &mut Scratch, merge: impl Fn(&Symbol, &Symbol) -> Option<Merge>) {
    if scratch.symbols.len() <= scratch.scan {
        merge_by_scan(scratch, merge)
    } else {
        merge_by_heap(scratch, merge)
    }
}

fn merge_by_scan(scratch: &mut Scratch, merge: impl Fn(&Symbol, &Symbol) -> Option<Merge>) {
    let Scratch { symbols, merges, .. } = scratch;
    // merges[i] joins symbols[i] and symbols[i + 1].
    merges.clear();
    merges.extend(symbols.windows(2).map(|pair| merge(&pair[0], &pair[1]).unwrap_or(NO_MERGE)));
    loop {
        let mut best = NO_MERGE;
        let mut at = 0;
        for (i, candidate) in merges.iter().enumerate() {
            if candidate.priority < best.priority {
                (best, at) = (*candidate, i);
            }
        }
        if best.priority == NONE {
            return;
        }
        symbols[at] = Symbol { start: symbols[at].start, end: symbols[at + 1].end, id: best.id };
        symbols.remove(at + 1);
        merges.remove(at);
        if at > 0 {
            merges[at - 1] = merge(&symbols[at - 1], &symbols[at]).unwrap_or(NO_MERGE);
        }
        if at < merges.len() {
            merges[at] = merge(&symbols[at], &symbols[at + 1]).unwrap_or(NO_MERGE);
        }
    }
}

/// The neighbours of a symbol in the list that merging by heap works on.
#[derive(Clone, Copy)]
struct Link {
    prev: u32,
    next: u32,
}

/// A merge in the heap: the order is that of the fields. Indices of symbols fit in 32 bits: see [`MAX_PIECE`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    priority: u32,
    left: u32,
    right: u32,
    /// Where the right symbol ended when this was pushed: a symbol that has grown since makes it void.
    end: u32,
    id: u32,
}

const END: u32 = u32::MAX;

fn merge_by_heap(scratch: &mut Scratch, merge: impl Fn(&Symbol, &Symbol) -> Option<Merge>) {
    let Scratch { symbols, links, heap, .. } = scratch;
    let candidate = |symbols: &[Symbol], left: u32, right: u32| {
        let Merge { priority, id } = merge(&symbols[left as usize], &symbols[right as usize])?;
        let end = symbols[right as usize].end;
        (priority != NONE).then_some(Reverse(Candidate { priority, left, right, end, id }))
    };
    let count = symbols.len() as u32;
    links.clear();
    links.extend((0..count).map(|i| Link {
        prev: i.checked_sub(1).unwrap_or(END),
        next: if i + 1 == count { END } else { i + 1 },
    }));
    // Built in one go: linear, where pushing one by one is not.
    let mut first = std::mem::take(heap).into_vec();
    first.extend((1..count).filter_map(|i| candidate(symbols, i - 1, i)));
    *heap = BinaryHeap::from(first);
    while let Some(Reverse(Candidate { left, right, end, id, .. })) = heap.pop() {
        let (l, r) = (left as usize, right as usize);
        // A symbol that was merged into its left neighbour has been emptied (start == end).
        if symbols[l].start == symbols[l].end || links[l].next != right || symbols[r].end != end {
            continue;
        }
        symbols[l].end = end;
        symbols[l].id = id;
        symbols[r].start = end;
        let (prev, next) = (links[l].prev, links[r].next);
        links[l].next = next;
        if next != END {
            links[next as usize].prev = left;
            heap.extend(candidate(symbols, left, next));
        }
        if prev != END {
            heap.extend(candidate(symbols, prev, left));
        }
    }
    symbols.retain(|symbol| symbol.start < symbol.end);
}

/// The length of a UTF-8 character by its first byte.
fn utf8_len(first: u8) -> usize {
    match first {
        0xC0..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xFF => 4,
        _ => 1,
    }
}
