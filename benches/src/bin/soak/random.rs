//! Numbers that a seed decides.

/// SplitMix64: short, and good enough to choose with.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A stream of its own for each purpose under one seed.
    pub(crate) fn new(seed: u64, purpose: u64) -> Self {
        Self(mix(seed) ^ mix(!purpose))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which is not 0 (the upper half of a product is one).
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let product = u128::from(self.next()) * u128::from(bound);
        u64::try_from(product >> 64).unwrap_or(0)
    }

    /// A number of `low..=high`.
    pub(crate) fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// Whether one of 100 cases has come, `percent` of which say yes.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.next().to_le_bytes()[0])
            .take(len)
            .collect()
    }
}

/// A bijection that leaves no trace of its argument.
pub(crate) const fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_within_their_bounds_and_the_same_for_a_seed() {
        let (mut one, mut same, mut other) =
            (Random::new(1, 1), Random::new(1, 1), Random::new(1, 2));
        let mut seen = [0; 4];
        for _ in 0..1000 {
            let number = one.within(3, 6);
            assert_eq!(number, same.within(3, 6));
            seen[usize::try_from(number - 3).unwrap()] += 1;
        }
        assert!(seen.iter().all(|&n| n > 200), "{seen:?}");
        assert_ne!(one.next(), other.next());
        assert!(!one.percent(0) && one.percent(100));
        assert_eq!(one.bytes(5).len(), 5);
    }
}
