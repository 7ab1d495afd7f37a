//! How fast this machine reads memory.

use std::hint::black_box;
use std::time::Instant;

use mistral_core::testing::prefetch;

/// Places that each thread reads at side by side: of one alone a processor does not fetch ahead as much as memory gives.
const STREAMS: usize = 4;
/// Some processors give more where each place is asked for early: as many steps of 128 bytes.
const AHEAD: usize = 6;

/// Memory that no cache holds, for threads that read it.
pub struct Memory(Vec<Vec<u64>>);

/// Words for each thread.
const WORDS: usize = 24 << 20;

impl Memory {
    pub fn new(threads: usize) -> Self {
        Self((0..threads).map(|i| vec![i as u64 + 1; WORDS]).collect())
    }

    /// GB/s at which the threads together read it, the best of six times: each is a few hundredths of a second.
    pub fn bandwidth(&self) -> f64 {
        let times = (0..3).flat_map(|_| [self.once(sum::<false>), self.once(sum::<true>)]);
        times.fold(0.0, f64::max)
    }

    fn once(&self, sum: fn(&[u64]) -> [u64; 16]) -> f64 {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in &self.0 {
                scope.spawn(move || black_box(sum(black_box(part))));
            }
        });
        (8 * WORDS * self.0.len()) as f64 / start.elapsed().as_secs_f64() / 1e9
    }
}

fn sum<const ASK: bool>(part: &[u64]) -> [u64; 16] {
    let mut streams = part.chunks_exact(WORDS / STREAMS);
    let streams: [&[[u64; 16]]; STREAMS] =
        std::array::from_fn(|_| streams.next().expect("as many").as_chunks().0);
    let mut sum = [0u64; 16];
    for i in 0..WORDS / STREAMS / 16 {
        for stream in streams {
            if ASK && let Some(next) = stream.get(i + AHEAD) {
                prefetch(next.as_ptr().cast());
                prefetch(next[8..].as_ptr().cast());
            }
            sum.iter_mut().zip(&stream[i]).for_each(|(s, c)| *s ^= c);
        }
    }
    sum
}
