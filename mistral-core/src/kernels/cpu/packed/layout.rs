//! How packed weights lie in memory, and how they get there.
//!
//! A matrix is cut into groups of 16 rows, so that one vector holds the same columns of 16 rows and one activation, broadcast,
//! serves them all. A group is a sequence of chunks of 256 columns (the last may be shorter), read once from start to end:
//!
//! ```text
//! chunk = header (scales; rounded up to 64 bytes) · blocks
//! block = 32 columns × 16 rows of codes
//! vector = 64 bytes; bytes 4r .. 4r + 4 belong to row r
//! ```
//!
//! Four-bit codes take 4 vectors: byte `i` of row r in vector j holds column `4j + i` (low bits) and `4j + i + 16`. One more
//! vector has the fifth bits (bit g of byte i: column `4g + i`), two more the fifth and sixth (bits 2g, 2g + 1 of byte i in vector v:
//! column `16v + 4g + i`). Eight-bit codes take 8 vectors, stored as `code + 128`. The bytes are as many as in GGUF, but for
//! the rounding of headers.

use crate::error::{Error, Result};
use crate::quant::{Format, IQ4_CODEBOOK};
use half::f16;

/// Rows of a group: as many as a 64-byte vector has lanes of four columns.
pub const GROUP_ROWS: usize = 16;
/// Columns of a chunk.
pub const CHUNK: usize = 256;
/// Columns of a block.
pub const BLOCK: usize = 32;
/// Bytes of a vector.
pub(super) const VECTOR: usize = 64;

/// Whether a format is packed; the others are multiplied as they stand in the file.
pub const fn has_packed_form(format: Format) -> bool {
    code_bytes(format) > 0
}

/// Bytes of the codes of a block; 0 for formats without a packed form.
pub(super) const fn code_bytes(format: Format) -> usize {
    match format {
        Format::Q4_0 | Format::Q4_1 | Format::Q4_K | Format::IQ4_NL | Format::IQ4_XS => 4 * VECTOR,
        Format::Q5_0 | Format::Q5_1 | Format::Q5_K => 5 * VECTOR,
        Format::Q6_K => 6 * VECTOR,
        Format::Q8_0 => 8 * VECTOR,
        _ => 0,
    }
}

/// Bytes of the header of a chunk of `blocks` blocks.
pub(super) const fn header_bytes(format: Format, blocks: usize) -> usize {
    let used = match format {
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::IQ4_NL => blocks * 32,
        Format::Q4_1 | Format::Q5_1 => blocks * 64,
        // d, dmin, low nibbles of 8 scales and minima, their high bits.
        Format::Q4_K | Format::Q5_K => 32 + 32 + 128 + 64,
        // d, 16 scales.
        Format::Q6_K => 32 + 256,
        // d, low nibbles of 8 scales, their high bits.
        Format::IQ4_XS => 32 + 64 + 32,
        _ => 0,
    };
    used.next_multiple_of(VECTOR)
}

/// Bytes of a chunk of `cols` columns.
pub(super) const fn chunk_bytes(format: Format, cols: usize) -> usize {
    header_bytes(format, cols / BLOCK) + cols / BLOCK * code_bytes(format)
}

/// Bytes of a group of rows of `cols` columns; `cols` is a multiple of the format's block.
pub(super) const fn group_bytes(format: Format, cols: usize) -> usize {
    let whole = cols / CHUNK * chunk_bytes(format, CHUNK);
    match cols % CHUNK {
        0 => whole,
        rest => whole + chunk_bytes(format, rest),
    }
}

/// Bytes of a packed matrix `[rows, cols]`.
///
/// # Errors
/// [`Error::Unsupported`] if the format has no packed form; [`Error::Argument`] if `cols` is not a
/// multiple of the format's block or the size overflows.
pub fn packed_len(format: Format, rows: usize, cols: usize) -> Result<usize> {
    if !has_packed_form(format) {
        return Err(Error::unsupported("packed format", format.name(), "formats of blocks (Q4_0, Q4_K, …)"));
    }
    // A packed group is less than 4 times the GGUF bytes of its 16 rows, even of one block: no overflow below.
    let row = format.row_bytes(cols)?;
    row.checked_mul(4 * GROUP_ROWS)
        .and_then(|_| group_bytes(format, cols).checked_mul(rows.div_ceil(GROUP_ROWS)))
        .ok_or_else(|| Error::argument("rows", format!("{rows} × {cols}"), "a matrix that fits into memory"))
}

/// Packs the matrix `src` (`[rows, cols]`, row-major blocks as in GGUF) into `dst`. Groups of 16 rows lie one after the other, so a
/// caller may pack parts of a matrix on several threads, cut at multiples of [`GROUP_ROWS`]. Rows that fill the last group up
/// are zero.
///
/// # Errors
/// As [`packed_len`]; [`Error::Argument`] if a slice does not fit the shape.
pub fn repack(format: Format, rows: usize, cols: usize, src: &[u8], dst: &mut [u8]) -> Result<()> {
    let packed = packed_len(format, rows, cols)?;
    let row = format.row_bytes(cols)?;
    let fits = |name, found: usize, expected: usize| match found == expected {
        true => Ok(()),
        false => Err(Error::argument(name, format!("{found} bytes"), format!("{expected} bytes"))),
    };
    fits("src", src.len(), row * rows)?;
    fits("dst", dst.len(), packed)?;
    if packed == 0 {
        return Ok(());
    }
    let groups = dst.chunks_exact_mut(group_bytes(format, cols));
    for (dst, src) in groups.zip(src.chunks(row * GROUP_ROWS)) {
        if src.len() < row * GROUP_ROWS {
            dst.fill(0);
        }
        pack_group(format, (row, cols), src, dst);
    }
    Ok(())
}

/// Packs up to 16 rows of `cols` columns in `row_bytes` bytes.
fn pack_group(format: Format, (row_bytes, cols): (usize, usize), src: &[u8], dst: &mut [u8]) {
    let chunk_src = CHUNK / format.block_len() * format.block_bytes();
    for (chunk, dst) in dst.chunks_mut(chunk_bytes(format, CHUNK)).enumerate() {
        let cols = CHUNK.min(cols - chunk * CHUNK);
        let header = header_bytes(format, cols / BLOCK);
        for (lane, row) in src.chunks_exact(row_bytes).enumerate() {
            let row = &row[chunk * chunk_src..];
            let row = &row[..chunk_src.min(row.len())];
            let (header, codes) = dst.split_at_mut(header);
            pack_lane(format, row, lane, header, codes);
        }
    }
}

/// Packs one row's part of a chunk.
fn pack_lane(format: Format, src: &[u8], lane: usize, header: &mut [u8], codes: &mut [u8]) {
    let mut lane = LaneMut { lane, header, codes: codes.as_chunks_mut().0 };
    match format {
        Format::Q4_0 | Format::IQ4_NL => lane.small::<18>(src, false, false),
        Format::Q4_1 => lane.small::<20>(src, true, false),
        Format::Q5_0 => lane.small::<22>(src, false, true),
        Format::Q5_1 => lane.small::<24>(src, true, true),
        Format::Q8_0 => lane.q8_0(src),
        Format::Q4_K => lane.k(src, false),
        Format::Q5_K => lane.k(src, true),
        Format::Q6_K => lane.q6_k(src),
        Format::IQ4_XS => lane.iq4_xs(src),
        _ => {}
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[4 * at], bytes[4 * at + 1], bytes[4 * at + 2], bytes[4 * at + 3]])
}

/// Bits `i`, `i + 4`, …, `i + 28` of `bits` become byte `i`.
fn transpose_bits(bits: u32) -> u32 {
    let mut out = 0;
    for i in 0..4 {
        let mut byte = bits >> i & 0x1111_1111;
        byte = (byte | byte >> 3) & 0x0303_0303;
        byte = (byte | byte >> 6) & 0x000f_000f;
        byte = (byte | byte >> 12) & 0xff;
        out |= byte << (8 * i);
    }
    out
}

const NIBBLES: u32 = 0x0f0f_0f0f;

/// Writes four columns of a row.
fn put(vector: &mut [u8; VECTOR], lane: usize, word: u32) {
    vector.as_chunks_mut().0[lane] = word.to_le_bytes();
}

/// One row of a chunk that is being written.
struct LaneMut<'a> {
    lane: usize,
    header: &'a mut [u8],
    codes: &'a mut [[u8; VECTOR]],
}

impl LaneMut<'_> {
    /// f16 number `index` of the row's header.
    fn put_half(&mut self, index: usize, bytes: &[u8]) {
        let at = (index * GROUP_ROWS + self.lane) * 2;
        self.header[at..at + 2].copy_from_slice(&bytes[..2]);
    }

    /// Byte `index` of the row's part of a header of bytes that starts at `base`.
    fn put_byte(&mut self, base: usize, index: usize, byte: u8) {
        self.header[base + index * GROUP_ROWS + self.lane] = byte;
    }

    /// Blocks of 32 with four- or five-bit codes, `BYTES` long.
    fn small<const BYTES: usize>(&mut self, src: &[u8], minimum: bool, fifth: bool) {
        let vectors = if fifth { 5 } else { 4 };
        for (b, src) in src.as_chunks::<BYTES>().0.iter().enumerate() {
            let mut at = 2;
            if minimum {
                self.put_half(2 * b, &src[0..]);
                self.put_half(2 * b + 1, &src[2..]);
                at = 4;
            } else {
                self.put_half(b, &src[0..]);
            }
            let to = &mut self.codes[vectors * b..][..vectors];
            if fifth {
                put(&mut to[4], self.lane, transpose_bits(word(&src[at..], 0)));
                at += 4;
            }
            for (j, to) in to[..4].iter_mut().enumerate() {
                put(to, self.lane, word(&src[at..], j));
            }
        }
    }

    fn q8_0(&mut self, src: &[u8]) {
        for (b, src) in src.as_chunks::<34>().0.iter().enumerate() {
            self.put_half(b, &src[0..]);
            for (g, to) in self.codes[8 * b..][..8].iter_mut().enumerate() {
                put(to, self.lane, word(&src[2..], g) ^ 0x8080_8080);
            }
        }
    }

    /// `Q4_K` and `Q5_K`: two sub-blocks share 32 bytes in GGUF; here each has its own 16.
    fn k(&mut self, src: &[u8], fifth: bool) {
        self.put_half(0, &src[0..]);
        self.put_half(1, &src[2..]);
        let packed = &src[4..16];
        for j in 0..4 {
            let (low, high) = (packed[j], packed[j + 4]);
            let last = packed[j + 8];
            self.put_byte(64, j, low & 15 | high << 4);
            self.put_byte(64, j + 4, last);
            // Bits 4 and 5 of scale j and minimum j stand below those of scale j + 4 and minimum j + 4.
            self.put_byte(192, j, low >> 4 & 3 | low >> 6 << 2 | (high >> 4 & 3) << 4 | high >> 6 << 6);
        }
        let (high, codes) = src[16..].split_at(if fifth { 32 } else { 0 });
        let vectors = if fifth { 5 } else { 4 };
        for (codes, to) in codes.as_chunks::<32>().0.iter().zip(self.codes.chunks_exact_mut(2 * vectors)) {
            for v in 0..4 {
                let (a, b) = (word(codes, v), word(codes, v + 4));
                put(&mut to[v], self.lane, a & NIBBLES | (b & NIBBLES) << 4);
                put(&mut to[vectors + v], self.lane, a >> 4 & NIBBLES | b & !NIBBLES);
            }
        }
        for high in high.as_chunks::<32>().0 {
            for (j, to) in self.codes.chunks_exact_mut(vectors).enumerate() {
                let bits = (0..8).fold(0, |bits, g| bits | (word(high, g) >> j & 0x0101_0101) << g);
                put(&mut to[4], self.lane, bits);
            }
        }
    }

    fn q6_k(&mut self, src: &[u8]) {
        self.put_half(0, &src[208..]);
        for j in 0..16 {
            self.put_byte(32, j, src[192 + j]);
        }
        let halves = src.as_chunks::<64>().0[..2].iter().zip(src[128..].as_chunks::<32>().0);
        for ((low, high), to) in halves.zip(self.codes.chunks_exact_mut(4 * 6)) {
            for (quarter, to) in to.chunks_exact_mut(6).enumerate() {
                let low = &low.as_chunks::<32>().0[quarter % 2];
                let low = |g: usize| word(low, g) >> (4 * (quarter / 2)) & NIBBLES;
                let high = |g: usize| word(high, g) >> (2 * quarter) & 0x0303_0303;
                for (v, to) in to.iter_mut().enumerate() {
                    let code = match v {
                        0..4 => low(v) | low(v + 4) << 4,
                        _ => (0..4).fold(0, |bits, g| bits | high(4 * (v - 4) + g) << (2 * g)),
                    };
                    put(to, self.lane, code);
                }
            }
        }
    }

    fn iq4_xs(&mut self, src: &[u8]) {
        self.put_half(0, &src[0..]);
        let low = |j: usize| src[4 + j / 2] >> (4 * (j % 2)) & 15;
        let high = |j: usize| src[2 + j / 4] >> (2 * (j % 4)) & 3;
        for j in 0..4 {
            self.put_byte(32, j, low(j) | low(j + 4) << 4);
        }
        for j in 0..2 {
            self.put_byte(96, j, high(j) | high(j + 2) << 2 | high(j + 4) << 4 | high(j + 6) << 6);
        }
        for (to, from) in self.codes.iter_mut().zip(src[8..].as_chunks::<4>().0) {
            put(to, self.lane, u32::from_le_bytes(*from));
        }
    }
}

/// Expands row `row` of the packed matrix `data`, `[rows, out.len()]`, which is known to fit its shape.
pub(super) fn unpack_row(format: Format, rows: usize, data: &[u8], row: usize, out: &mut [f32]) {
    assert!(row < rows, "row {row} of {rows}");
    let size = group_bytes(format, out.len());
    let group = &data[row / GROUP_ROWS * size..][..size];
    for (chunk, out) in group.chunks(chunk_bytes(format, CHUNK).max(1)).zip(out.chunks_mut(CHUNK)) {
        let (header, codes) = chunk.split_at(header_bytes(format, out.len() / BLOCK));
        let lane = Lane { lane: row % GROUP_ROWS, header, codes };
        lane.unpack(format, out);
    }
}

/// One row of a chunk that is being read.
struct Lane<'a> {
    lane: usize,
    header: &'a [u8],
    codes: &'a [u8],
}

impl Lane<'_> {
    fn half(&self, index: usize) -> f32 {
        let at = (index * GROUP_ROWS + self.lane) * 2;
        f16::from_le_bytes([self.header[at], self.header[at + 1]]).to_f32()
    }

    fn byte(&self, base: usize, index: usize) -> u8 {
        self.header[base + index * GROUP_ROWS + self.lane]
    }

    fn word(&self, vector: usize) -> u32 {
        word(&self.codes[self.lane * 4..], vector * GROUP_ROWS)
    }

    fn unpack(&self, format: Format, out: &mut [f32]) {
        for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                let (scale, offset) = self.scale_offset(format, b, i / 16);
                // One rounding: the product is exact. Without an offset it keeps the sign of its zeros.
                let product = scale * self.code(format, b, i);
                *out = offset.map_or(product, |offset| product + offset);
            }
        }
    }

    /// Code of column `i` of block `b`, its zero point taken off.
    fn code(&self, format: Format, b: usize, i: usize) -> f32 {
        let (g, byte) = (i / 4, i % 4);
        let at = |vector: usize, shift: usize| (self.word(vector) >> (8 * byte + shift)) as u8;
        let nibble = |vectors: usize| at(vectors * b + g % 4, 4 * (g / 4)) & 15;
        match format {
            Format::Q4_0 => f32::from(nibble(4)) - 8.0,
            Format::Q4_1 | Format::Q4_K => f32::from(nibble(4)),
            Format::IQ4_NL | Format::IQ4_XS => f32::from(IQ4_CODEBOOK[usize::from(nibble(4))]),
            Format::Q5_0 => f32::from(nibble(5) | (at(5 * b + 4, g) & 1) << 4) - 16.0,
            Format::Q5_1 | Format::Q5_K => f32::from(nibble(5) | (at(5 * b + 4, g) & 1) << 4),
            Format::Q6_K => f32::from(nibble(6) | (at(6 * b + 4 + g / 4, 2 * (g % 4)) & 3) << 4) - 32.0,
            _ => f32::from(at(8 * b + g, 0)) - 128.0,
        }
    }

    /// Scale and offset of half `half` of block `b`.
    fn scale_offset(&self, format: Format, b: usize, half: usize) -> (f32, Option<f32>) {
        match format {
            Format::Q4_1 | Format::Q5_1 => (self.half(2 * b), Some(self.half(2 * b + 1))),
            Format::Q4_K | Format::Q5_K => {
                let (low, high) = (self.byte(64, b), self.byte(192, b % 4) >> (2 * (b / 4)));
                let (scale, min) = (low & 15 | (high & 3) << 4, low >> 4 | (high >> 4 & 3) << 4);
                (self.half(0) * f32::from(scale), Some(-self.half(1) * f32::from(min)))
            }
            Format::Q6_K => (self.half(0) * f32::from(self.byte(32, 2 * b + half) as i8), None),
            Format::IQ4_XS => {
                let low = self.byte(32, b % 4) >> (4 * (b / 4)) & 15;
                let high = self.byte(96, b % 2) >> (2 * (b / 2)) & 3;
                (self.half(0) * (f32::from(low | high << 4) - 32.0), None)
            }
            _ => (self.half(b), None),
        }
    }
}
