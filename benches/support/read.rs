//! How fast this machine reads memory.

use std::hint::black_box;
use std::time::Instant;

/// GB/s at which `threads` threads together read memory that no cache holds.
pub fn bandwidth(threads: usize) -> f64 {
    const WORDS: usize = 24 << 20;
    let parts: Vec<Vec<u64>> = (0..threads).map(|i| vec![i as u64 + 1; WORDS]).collect();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for part in &parts {
            scope.spawn(move || {
                for _ in 0..3 {
                    let sum =
                        black_box(part).as_chunks::<16>().0.iter().fold([0u64; 16], |mut sum, chunk| {
                            sum.iter_mut().zip(chunk).for_each(|(s, c)| *s ^= c);
                            sum
                        });
                    black_box(sum);
                }
            });
        }
    });
    (3 * 8 * WORDS * threads) as f64 / start.elapsed().as_secs_f64() / 1e9
}
