//! A log-linear histogram of durations.

/// Buckets per power of two: a value is known to 1/64 of itself.
const SUB_BITS: u32 = 6;
const SUB: usize = 1 << SUB_BITS;
/// Values of 2^36 ns (a minute) and more share the last buckets.
const POWERS: usize = 36 - SUB_BITS as usize + 1;

/// Durations in nanoseconds, each known to 1.6 %. Fixed size; recording is a few instructions.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Box<[u64]>,
    count: u64,
    sum: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: vec![0; POWERS * SUB].into_boxed_slice(),
            count: 0,
            sum: 0,
            max: 0,
        }
    }
}

/// Values below `SUB` have a bucket each; above, the top bits below the leading one choose.
fn bucket_of(nanos: u64) -> usize {
    let nanos = nanos.min((1 << 36) - 1);
    let power = (u64::BITS - nanos.leading_zeros()).saturating_sub(SUB_BITS + 1);
    let top = usize::try_from(nanos >> power).unwrap_or(0);
    (power as usize) * SUB + top
}

/// The middle of a bucket's range.
fn value_of(bucket: usize) -> u64 {
    if bucket < 2 * SUB {
        return bucket as u64;
    }
    let power = bucket / SUB - 1;
    let top = (bucket % SUB + SUB) as u64;
    (top << power) + (1 << power) / 2
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, nanos: u64) {
        if let Some(bucket) = self.buckets.get_mut(bucket_of(nanos)) {
            *bucket += 1;
        }
        self.count += 1;
        self.sum += nanos;
        self.max = self.max.max(nanos);
    }

    /// Adds what another one has counted.
    pub fn merge(&mut self, other: &Self) {
        for (to, from) in self.buckets.iter_mut().zip(&other.buckets) {
            *to += from;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// How many durations were counted.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The longest, exact; 0 if there is none.
    #[must_use]
    pub const fn max(&self) -> u64 {
        self.max
    }

    /// The mean, exact; 0 if there is none.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.sum as f64 / self.count.max(1) as f64
    }

    /// The duration that `per_mille` of 1000 do not exceed; 0 if there is none.
    #[must_use]
    pub fn per_mille(&self, per_mille: u64) -> u64 {
        let rank = (self.count * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (bucket, &n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= rank {
                return value_of(bucket).min(self.max);
            }
        }
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_and_are_narrow() {
        let mut last = 0;
        for nanos in (0..5_000_u64)
            .chain((13..36).map(|p| 1 << p))
            .chain([u64::MAX])
        {
            let bucket = bucket_of(nanos);
            assert!(bucket >= last && bucket < POWERS * SUB, "{nanos}");
            last = bucket;
            if nanos < 1 << 36 {
                let error = value_of(bucket).abs_diff(nanos);
                assert!(
                    error <= nanos / 64,
                    "{nanos} is taken for {}",
                    value_of(bucket)
                );
            }
        }
    }

    #[test]
    fn quantiles_of_a_known_distribution() {
        let (mut low, mut high) = (Histogram::default(), Histogram::default());
        for i in 1..=500 {
            low.record(i * 1000);
            high.record((i + 500) * 1000);
        }
        low.merge(&high);
        assert_eq!((low.count(), low.max()), (1000, 1_000_000));
        assert!((low.mean() - 500_500.0).abs() < 1e-6);
        for (per_mille, want) in [(500, 500_000), (990, 990_000), (999, 999_000)] {
            let got = low.per_mille(per_mille);
            assert!(got.abs_diff(want) <= want / 60, "{per_mille}: {got}");
        }
        assert_eq!(Histogram::default().per_mille(990), 0);
    }
}
