//! AMX, the matrix unit of Intel's server processors: products of bytes between tiles of 16 rows of up to 64 bytes.
//!
//! Rust's intrinsics for it are not stable, so its instructions are written in assembly. Linux gives the tiles to a process that asks for them.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::marker::PhantomData;

use super::avx512::Avx512;

/// Rows of a tile.
pub(crate) const TILE: usize = 16;

/// Proof that the CPU has AMX for bytes and that this process may use it, and what [`Avx512`] proves.
#[derive(Clone, Copy)]
pub(crate) struct Amx(Avx512);

impl Amx {
    /// `None` if the CPU or the system lacks it. Asks the system for it: from then on the signal frames of threads that use it are 8 KiB larger.
    pub fn detect() -> Option<Self> {
        let simd = Avx512::detect()?;
        (has_tiles() && may_use_tiles()).then_some(Self(simd))
    }

    /// The vectors beside the tiles.
    #[inline(always)]
    pub fn simd(self) -> Avx512 {
        self.0
    }

    /// Sets this thread's tiles up for products of 16 rows with `depth` columns, 16 or 32, as long as the result lives.
    pub fn tiles(self, depth: usize) -> Tiles {
        assert!(depth == 16 || depth == 32, "columns of a product");
        let mut before = Config::NONE;
        let mut config = Config { palette: 1, ..Config::NONE };
        let shapes =
            [(Tiles::SUMS, TILE, 64), (Tiles::ACTIVATIONS, TILE, depth), (Tiles::CODES, depth / 4, 64)];
        for (tile, rows, bytes) in shapes {
            config.rows[tile] = rows as u8;
            config.row_bytes[tile] = bytes as u16;
        }
        // SAFETY: `self` proves that the instructions are there, and the configuration is a valid one.
        unsafe {
            asm!("sttilecfg [{0}]", in(reg) &raw mut before, options(nostack, preserves_flags));
            asm!("ldtilecfg [{0}]", in(reg) &raw const config, options(nostack, preserves_flags, readonly));
        }
        Tiles { before, thread: PhantomData }
    }
}

/// What the processor is told of the shapes of the tiles.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    const NONE: Self =
        Self { palette: 0, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
}

/// The tiles of a thread while they are set up; cleared when this is dropped.
pub(crate) struct Tiles {
    /// How a host had set them up that uses them, too: some do so once a thread.
    before: Config,
    thread: PhantomData<*const ()>,
}

impl Tiles {
    // What `product` names tmm0, tmm1 and tmm2.
    const SUMS: usize = 0;
    const ACTIVATIONS: usize = 1;
    const CODES: usize = 2;

    /// `to[m][row]`: the dot product of row m of the activations with the codes of `row`, whose columns 4g to 4g + 3 are in vector g.
    ///
    /// # Safety
    /// 16 rows of `depth` bytes, 32 apart, lie at `activations`; `depth / 4` vectors of 64 bytes at `codes`.
    #[inline(always)]
    pub unsafe fn product(&self, activations: *const i8, codes: *const i8, to: &mut [[i32; 16]; TILE]) {
        // SAFETY: the tiles are set up for what lies there, the caller's promise, and for what `to` has.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tileloadd tmm1, [{activations} + {narrow}]",
                "tileloadd tmm2, [{codes} + {wide}]",
                "tdpbssd tmm0, tmm1, tmm2",
                "tilestored [{to} + {wide}], tmm0",
                activations = in(reg) activations,
                codes = in(reg) codes,
                to = in(reg) to.as_mut_ptr(),
                narrow = in(reg) 32usize,
                wide = in(reg) 64usize,
                options(nostack, preserves_flags)
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: they were set up, so the instructions are there. Both clear them; the processor gave that configuration out.
        unsafe {
            match self.before.palette {
                0 => asm!("tilerelease", options(nostack, preserves_flags, nomem)),
                _ => {
                    asm!("ldtilecfg [{0}]", in(reg) &raw const self.before, options(nostack, preserves_flags, readonly));
                }
            }
        }
    }
}

/// Whether the CPU has tiles and products of bytes, and the system keeps them for threads.
fn has_tiles() -> bool {
    const TILE_AND_INT8: u32 = 0b11 << 24;
    const TILE_STATE: u64 = 0b11 << 17;
    #[target_feature(enable = "xsave")]
    fn kept() -> u64 {
        // SAFETY: the system has switched the instruction on: AVX-512 would not be found else.
        unsafe { _xgetbv(0) }
    }
    __cpuid(0).eax >= 7
        && __cpuid_count(7, 0).edx & TILE_AND_INT8 == TILE_AND_INT8
        && is_x86_feature_detected!("xsave")
        // SAFETY: just detected.
        && unsafe { kept() } & TILE_STATE == TILE_STATE
}

/// Asks Linux for the tiles, of which it gives none unasked.
#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: a request that touches no memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Other systems were not tried.
#[cfg(not(target_os = "linux"))]
fn may_use_tiles() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_that_were_set_up_before_are_set_up_so_again() {
        let Some(unit) = Amx::detect() else { return };
        let (activations, codes) = ([[1i8; 32]; TILE], [[2i8; 64]; 8]);
        let product = |tiles: &Tiles| {
            let mut to = [[0; 16]; TILE];
            // SAFETY: 16 rows of 32 bytes and 8 vectors lie there.
            unsafe { tiles.product(activations.as_ptr().cast(), codes.as_ptr().cast(), &mut to) };
            to
        };
        let hosts = unit.tiles(32);
        assert_eq!(product(&unit.tiles(16)), [[32; 16]; TILE]);
        assert_eq!(product(&hosts), [[64; 16]; TILE]);
    }
}
