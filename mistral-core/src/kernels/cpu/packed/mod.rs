//! temporary stand-in
use crate::error::Result;
use crate::quant::Format;
pub const GROUP_ROWS: usize = 16;
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Activation {
    #[default]
    Int8,
    F32,
}
#[derive(Clone, Copy)]
pub struct PackedMatrix<'a> {
    pub format: Format,
    pub rows: usize,
    pub cols: usize,
    pub data: &'a [u8],
}
impl PackedMatrix<'_> {
    pub fn unpack_row(&self, row: usize, out: &mut [f32]) {
        let rb = self.format.row_bytes(self.cols).unwrap();
        self.format.dequantize(&self.data[row * rb..][..rb], out).unwrap()
    }
}
pub fn packed_len(format: Format, rows: usize, cols: usize) -> Result<usize> {
    Ok(format.row_bytes(cols)? * rows.next_multiple_of(GROUP_ROWS))
}
pub fn repack(_format: Format, _rows: usize, _cols: usize, src: &[u8], dst: &mut [u8]) -> Result<()> {
    dst[..src.len()].copy_from_slice(src);
    Ok(())
}
pub fn linear(_a: Activation, x: &[f32], m: usize, w: PackedMatrix<'_>, out: &mut [f32]) {
    let mut row = vec![0.0; w.cols];
    for j in 0..w.rows {
        w.unpack_row(j, &mut row);
        for i in 0..m {
            out[i * w.rows + j] = x[i * w.cols..][..w.cols].iter().zip(&row).map(|(a, b)| a * b).sum();
        }
    }
}
