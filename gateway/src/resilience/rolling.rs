//! Counts over a rolling window, without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts of the last `N` ticks, the running one among them. A tick is as long as its owner likes. Each slot holds its tick in the upper half
/// and the count in the lower, so that both change at once.
pub struct Rolling<const N: usize>([AtomicU64; N]);

impl<const N: usize> Default for Rolling<N> {
    fn default() -> Self {
        Rolling(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl<const N: usize> Rolling<N> {
    /// Counts one more. `tick` counts from 1.
    pub fn add(&self, tick: u32) {
        let slot = &self.0[tick as usize % N];
        let mut seen = slot.load(Relaxed);
        loop {
            let known = (seen >> 32) as u32;
            if known == tick {
                slot.fetch_add(1, Relaxed);
                return;
            }
            if known > tick {
                return; // told so late that its tick is out of the window
            }
            match slot.compare_exchange_weak(seen, u64::from(tick) << 32 | 1, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// The count of one tick.
    pub fn at(&self, tick: u32) -> u64 {
        let seen = self.0[tick as usize % N].load(Relaxed);
        if (seen >> 32) as u32 == tick { seen & u64::from(u32::MAX) } else { 0 }
    }

    /// The count of the window that ends with `tick`.
    pub fn sum(&self, tick: u32) -> u64 {
        let first = tick.saturating_sub(N as u32 - 1);
        (first..=tick).map(|tick| self.at(tick)).sum()
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for slot in &self.0 {
            slot.store(0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_counts_what_a_list_would(steps in proptest::collection::vec((0u32..4, 1usize..5), 1..60)) {
            let rolling = Rolling::<10>::default();
            let (mut tick, mut all) = (1u32, Vec::new());
            for (pause, count) in steps {
                tick += pause;
                for _ in 0..count {
                    rolling.add(tick);
                    all.push(tick);
                }
                let expected = all.iter().filter(|t| **t + 10 > tick).count() as u64;
                prop_assert_eq!(rolling.sum(tick), expected);
            }
            prop_assert_eq!(rolling.sum(tick + 10), 0);
        }
    }

    #[test]
    fn no_count_is_lost_between_threads() {
        let rolling = Rolling::<10>::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|i| rolling.add(1 + i / 1000)));
            }
        });
        assert_eq!(rolling.sum(10), 40_000);
    }
}
