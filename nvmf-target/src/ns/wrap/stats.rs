//! What a namespace does, in numbers.

use super::{Around, Enter, OpKind};
use crate::Error;
use crate::ns::{
    BlockDevice, Interceptor, Lane, LaneCx, Loan, Namespace, NsError, NsInfo, NsSink, Request,
};
use crate::reactor::now;
use nvmf_proto::wire::Status;
use std::fmt;
use std::iter;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Parts of the counters that reactors share among each other.
const SHARDS: usize = 64;
/// Each power of two of nanoseconds is divided into this many buckets.
const PARTS: u64 = 8;
const PART_BITS: u32 = PARTS.trailing_zeros();
/// Buckets up to 2^40 ns, 18 minutes; the last one is for everything longer as well.
const BUCKETS: usize = 304;

/// Counts what a namespace does: requests, failures, bytes and latencies, by operation.
///
/// Counting costs two readings of the clock and a few atomic additions per request, to memory of
/// the reactor's own, and allocates nothing. A device that works on the reactor's thread is still
/// called in place, and what it [lends](BlockDevice::lend) is still sent from where it lies: the
/// latency of such a read is that of the loan, without what the socket takes.
///
/// ```
/// use nvmf_target::ns::{Inline, OpKind, RamDisk, Stats};
///
/// # fn main() -> Result<(), nvmf_target::Error> {
/// let stats = Stats::new(Inline::new(RamDisk::new(1 << 20, 512)?));
/// let counters = stats.counters();
/// let before = counters.read();
/// // ... a second later, with the namespace in use:
/// let now = counters.read();
/// let reads = now.since(&before).op(OpKind::Read).clone();
/// println!(
///     "{} reads, {} failed, {} in flight, 99 % within {:?}",
///     reads.completed,
///     reads.failed,
///     now.op(OpKind::Read).in_flight,
///     reads.latency.percentile(99.0),
/// );
/// # Ok(())
/// # }
/// ```
pub struct Stats {
    namespace: Arc<dyn Namespace>,
    counters: Arc<Counters>,
}

impl Stats {
    /// Counts what a namespace does.
    #[must_use]
    pub fn new(namespace: impl Namespace) -> Self {
        Self {
            namespace: Arc::new(namespace),
            counters: Arc::default(),
        }
    }

    /// The counters. They stay when the namespace is gone.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

/// The counters of a [`Stats`].
pub struct Counters {
    /// By the number of the reactor.
    shards: [OnceLock<Arc<Shard>>; SHARDS],
}

impl Default for Counters {
    fn default() -> Self {
        let shards = [const { OnceLock::new() }; SHARDS];
        Self { shards }
    }
}

/// What one reactor has done.
#[derive(Default)]
struct Shard([OpCounters; OpKind::ALL.len()]);

#[repr(align(64))]
struct OpCounters {
    begun: AtomicU64,
    withdrawn: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    nanos: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Default for OpCounters {
    fn default() -> Self {
        Self {
            begun: AtomicU64::new(0),
            withdrawn: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Shard {
    fn op(&self, kind: OpKind) -> &OpCounters {
        &self.0[kind.index()]
    }

    /// Calls a device and counts that.
    fn call<T>(
        &self,
        kind: OpKind,
        bytes: u64,
        call: impl FnOnce() -> Result<T, NsError>,
    ) -> Result<T, NsError> {
        let (counters, since) = (self.op(kind), now().0);
        add(&counters.begun, 1);
        // One that panics has failed, too.
        let unwinding = Unwinding(counters, since);
        let result = call();
        std::mem::forget(unwinding);
        counters.end(since, bytes, result.is_ok());
        result
    }
}

struct Unwinding<'a>(&'a OpCounters, u64);

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        self.0.end(self.1, 0, false);
    }
}

impl OpCounters {
    fn end(&self, since: u64, bytes: u64, ok: bool) {
        let nanos = now().0.saturating_sub(since);
        if ok {
            add(&self.bytes, bytes);
        } else {
            add(&self.failed, 1);
        }
        add(&self.nanos, nanos);
        // Last, and read first: a request that has ended has been counted as begun.
        self.buckets[bucket(nanos)].fetch_add(1, Ordering::Release);
    }

    fn add_to(&self, sum: &mut OpStats) {
        let latency = &mut sum.latency;
        let mut ended = 0;
        for (sum, bucket) in latency.counts.iter_mut().zip(&self.buckets) {
            let count = bucket.load(Ordering::Acquire);
            ended += count;
            *sum += count;
        }
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        latency.nanos += read(&self.nanos);
        sum.completed += ended;
        sum.failed += read(&self.failed);
        sum.bytes += read(&self.bytes);
        let withdrawn = self.withdrawn.load(Ordering::Acquire);
        sum.withdrawn += withdrawn;
        sum.in_flight += read(&self.begun).saturating_sub(ended + withdrawn);
    }
}

/// The bucket of a latency.
fn bucket(nanos: u64) -> usize {
    let index = if nanos < PARTS {
        nanos
    } else {
        let octave = nanos.ilog2();
        let part = nanos >> (octave - PART_BITS) & (PARTS - 1);
        u64::from(octave - PART_BITS + 1) * PARTS + part
    };
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

/// The longest latency of a bucket, in nanoseconds.
const fn longest(bucket: u64) -> u64 {
    if bucket < PARTS {
        return bucket;
    }
    let octave = bucket / PARTS - 1;
    ((PARTS + bucket % PARTS + 1) << octave) - 1
}

impl Counters {
    /// What has been counted up to now. Takes no lock; the figures are read one after the other,
    /// not all at once.
    #[must_use]
    pub fn read(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for shard in self.shards.iter().filter_map(OnceLock::get) {
            for (sum, counters) in snapshot.ops.iter_mut().zip(&shard.0) {
                counters.add_to(sum);
            }
        }
        snapshot
    }

    fn shard(&self, reactor: usize) -> Arc<Shard> {
        Arc::clone(self.shards[reactor % SHARDS].get_or_init(Arc::default))
    }
}

/// What a namespace has done, from its beginning or [since](Snapshot::since) another moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    ops: [OpStats; OpKind::ALL.len()],
}

impl Snapshot {
    /// That part which is of one operation.
    #[must_use]
    pub const fn op(&self, kind: OpKind) -> &OpStats {
        &self.ops[kind.index()]
    }

    /// Of all operations together.
    #[must_use]
    pub fn total(&self) -> OpStats {
        let mut total = OpStats::default();
        for op in &self.ops {
            total.completed += op.completed;
            total.failed += op.failed;
            total.withdrawn += op.withdrawn;
            total.in_flight += op.in_flight;
            total.bytes += op.bytes;
            total.latency.nanos += op.latency.nanos;
            for (sum, n) in iter::zip(&mut total.latency.counts, &op.latency.counts) {
                *sum += n;
            }
        }
        total
    }

    /// What came between an earlier moment and this one. Requests in flight are those of now.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut between = self.clone();
        for (op, earlier) in between.ops.iter_mut().zip(&earlier.ops) {
            op.completed -= earlier.completed.min(op.completed);
            op.failed -= earlier.failed.min(op.failed);
            op.withdrawn -= earlier.withdrawn.min(op.withdrawn);
            op.bytes -= earlier.bytes.min(op.bytes);
            op.latency.nanos -= earlier.latency.nanos.min(op.latency.nanos);
            for (n, earlier) in iter::zip(&mut op.latency.counts, &earlier.latency.counts) {
                *n -= (*earlier).min(*n);
            }
        }
        between
    }
}

/// What has become of the requests of an operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpStats {
    /// Requests that have ended, in whatever way.
    pub completed: u64,
    /// Those of them that ended with another status than success.
    pub failed: u64,
    /// Requests that were given back for an Abort.
    pub withdrawn: u64,
    /// Requests that have begun and not ended.
    pub in_flight: u64,
    /// Bytes of the ranges of requests that succeeded.
    pub bytes: u64,
    /// From `Lane::submit` to the end, of all that have ended.
    pub latency: Histogram,
}

/// How often something took how long. An eighth of a duration is the least that it tells apart.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<u64>,
    nanos: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        let counts = vec![0; BUCKETS];
        Self { counts, nanos: 0 }
    }
}

impl Histogram {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The arithmetic mean, which is exact; `None` if there are none.
    #[must_use]
    pub fn mean(&self) -> Option<Duration> {
        let mean = self.nanos.checked_div(self.count())?;
        Some(Duration::from_nanos(mean))
    }

    /// The duration within which so many of a hundred were, rounded up to the end of its bucket;
    /// `None` if there are none.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Option<Duration> {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a count, which a float holds well enough; casts saturate"
        )]
        let wanted = (self.count() as f64 * percent / 100.0).ceil() as u64;
        let mut so_far = 0;
        self.buckets().find_map(|(longest, count)| {
            so_far += count;
            (so_far >= wanted.max(1)).then_some(longest)
        })
    }

    /// The buckets that are not empty: the longest duration of each, and how many it has.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let all = (0..).zip(&self.counts);
        all.filter(|&(_, &count)| count > 0)
            .map(|(i, &count)| (Duration::from_nanos(longest(i)), count))
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.buckets()).finish()
    }
}

/// The bytes that a request is about.
fn bytes_of(request: &Request) -> u64 {
    let at = request.byte_range();
    let ranges = request.ranges().iter().map(|range| range.blocks);
    at.end - at.start + (ranges.sum::<u64>() << request.lba_shift())
}

impl Interceptor for Shard {
    fn ended(&self, request: Request, result: Result<(), Status>, since: u64) {
        let counters = self.op(request.op().into());
        counters.end(since, bytes_of(&request), result.is_ok());
        request.complete(result);
    }

    fn withdrawn(&self, request: &mut Request, _: u64) {
        let counters = self.op(request.op().into());
        counters.withdrawn.fetch_add(1, Ordering::Release);
    }
}

struct Counted(Arc<Shard>);

impl Enter for Counted {
    fn enter(&mut self, mut request: Request) -> Option<Request> {
        let shard = &self.0;
        add(&shard.op(request.op().into()).begun, 1);
        request.intercept(Arc::<Shard>::clone(shard), now().0);
        Some(request)
    }

    fn device(&self, device: Arc<dyn BlockDevice>) -> Option<Arc<dyn BlockDevice>> {
        let shard = Arc::clone(&self.0);
        Some(Arc::new(CountedDevice { device, shard }))
    }
}

/// A device that the target calls in place: all of it, whatever of that the target calls today. The
/// trait's own methods would do nothing and succeed.
struct CountedDevice {
    device: Arc<dyn BlockDevice>,
    shard: Arc<Shard>,
}

impl BlockDevice for CountedDevice {
    fn info(&self) -> NsInfo {
        self.device.info()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), NsError> {
        let len = buf.len() as u64;
        let read = || self.device.read_at(offset, buf);
        self.shard.call(OpKind::Read, len, read)
    }

    fn write_at(&self, offset: u64, buf: &[u8], fua: bool) -> Result<(), NsError> {
        let write = || self.device.write_at(offset, buf, fua);
        self.shard.call(OpKind::Write, buf.len() as u64, write)
    }

    fn flush(&self) -> Result<(), NsError> {
        self.shard.call(OpKind::Flush, 0, || self.device.flush())
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        deallocate: bool,
        fua: bool,
    ) -> Result<(), NsError> {
        let write = || self.device.write_zeroes(offset, len, deallocate, fua);
        self.shard.call(OpKind::WriteZeroes, len, write)
    }

    fn deallocate(&self, offset: u64, len: u64) -> Result<(), NsError> {
        let deallocate = || self.device.deallocate(offset, len);
        self.shard.call(OpKind::Deallocate, len, deallocate)
    }

    fn compare(&self, offset: u64, data: &[u8]) -> Result<bool, NsError> {
        let compare = || self.device.compare(offset, data);
        self.shard.call(OpKind::Compare, data.len() as u64, compare)
    }

    fn compare_and_write(
        &self,
        offset: u64,
        expected: &[u8],
        data: &[u8],
        fua: bool,
    ) -> Result<bool, NsError> {
        let write = || self.device.compare_and_write(offset, expected, data, fua);
        self.shard
            .call(OpKind::CompareAndWrite, data.len() as u64, write)
    }

    fn verify(&self, offset: u64, len: u64) -> Result<(), NsError> {
        let verify = || self.device.verify(offset, len);
        self.shard.call(OpKind::Verify, len, verify)
    }

    fn subscribe(&self, sink: NsSink) {
        self.device.subscribe(sink);
    }

    fn lends(&self) -> bool {
        self.device.lends()
    }

    fn lend(&self, offset: u64, len: usize, alone: bool) -> Option<Loan<'_>> {
        let since = now().0;
        let loan = self.device.lend(offset, len, alone)?;
        let counters = self.shard.op(OpKind::Read);
        add(&counters.begun, 1);
        counters.end(since, len as u64, true);
        Some(loan)
    }
}

impl Namespace for Stats {
    fn info(&self) -> NsInfo {
        self.namespace.info()
    }

    fn open_lane(&self, cx: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        Ok(Box::new(Around {
            lane: self.namespace.open_lane(cx)?,
            enter: Counted(self.counters.shard(cx.reactor)),
        }))
    }

    fn subscribe(&self, sink: NsSink) {
        self.namespace.subscribe(sink);
    }
}

impl fmt::Debug for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stats").finish_non_exhaustive()
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.read().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        for i in 1..BUCKETS as u64 {
            assert!(longest(i) > longest(i - 1), "{i}");
            assert_eq!(bucket(longest(i)) as u64, i);
            assert_eq!(bucket(longest(i - 1) + 1) as u64, i);
        }
        assert_eq!(bucket(0), 0);
        assert_eq!(longest(BUCKETS as u64 - 1), (1 << 40) - 1);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_no_more_than_an_eighth_too_long() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.percentile(50.0), histogram.mean()), (None, None));
        for nanos in 1..=1000 {
            histogram.counts[bucket(nanos)] += 1;
            histogram.nanos += nanos;
        }
        assert_eq!(histogram.count(), 1000);
        assert_eq!(histogram.mean(), Some(Duration::from_nanos(500)));
        for (percent, exact) in [(0.0, 1), (50.0, 500), (99.0, 990), (100.0, 1000)] {
            let nanos = histogram.percentile(percent).unwrap().as_nanos();
            assert!(
                (exact..=exact + exact / 8 + 1).contains(&nanos),
                "{percent} %: {nanos}"
            );
        }
    }

    /// Succeeds at everything, and knows at what.
    #[derive(Default)]
    struct Called(std::sync::Mutex<Vec<OpKind>>);

    impl Called {
        fn note<T>(&self, kind: OpKind, result: T) -> Result<T, NsError> {
            self.0.lock().unwrap().push(kind);
            Ok(result)
        }
    }

    impl BlockDevice for Called {
        fn info(&self) -> NsInfo {
            NsInfo::new(512, 8)
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), NsError> {
            self.note(OpKind::Read, ())
        }

        fn write_at(&self, _: u64, _: &[u8], _: bool) -> Result<(), NsError> {
            self.note(OpKind::Write, ())
        }

        fn flush(&self) -> Result<(), NsError> {
            self.note(OpKind::Flush, ())
        }

        fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Result<(), NsError> {
            self.note(OpKind::WriteZeroes, ())
        }

        fn deallocate(&self, _: u64, _: u64) -> Result<(), NsError> {
            self.note(OpKind::Deallocate, ())
        }

        fn compare(&self, _: u64, _: &[u8]) -> Result<bool, NsError> {
            self.note(OpKind::Compare, true)
        }

        fn compare_and_write(&self, _: u64, _: &[u8], _: &[u8], _: bool) -> Result<bool, NsError> {
            self.note(OpKind::CompareAndWrite, true)
        }

        fn verify(&self, _: u64, _: u64) -> Result<(), NsError> {
            self.note(OpKind::Verify, ())
        }
    }

    #[test]
    fn a_device_in_place_is_called_for_everything() {
        let called = Arc::new(Called::default());
        let counters = Counters::default();
        let device = CountedDevice {
            device: Arc::<Called>::clone(&called),
            shard: counters.shard(0),
        };
        device.read_at(0, &mut [0; 512]).unwrap();
        device.write_at(0, &[0; 512], false).unwrap();
        device.flush().unwrap();
        device.write_zeroes(0, 512, false, false).unwrap();
        device.deallocate(0, 512).unwrap();
        assert!(device.compare(0, &[0; 512]).unwrap());
        let (old, new) = (&[0; 512], &[1; 512]);
        assert!(device.compare_and_write(0, old, new, false).unwrap());
        device.verify(0, 512).unwrap();
        assert_eq!(*called.0.lock().unwrap(), OpKind::ALL);
        let counted = counters.read();
        for kind in OpKind::ALL {
            let bytes = if kind == OpKind::Flush { 0 } else { 512 };
            let op = counted.op(kind);
            assert_eq!((op.completed, op.bytes), (1, bytes), "{kind:?}");
        }
    }

    #[test]
    fn a_call_that_panics_has_failed() {
        let counters = Counters::default();
        let shard = counters.shard(70);
        let ok = shard.call(OpKind::Write, 512, || Ok(()));
        ok.unwrap();
        let before = counters.read();
        let call = || shard.call::<()>(OpKind::Write, 512, || panic!("as it should"));
        crate::contain::contain(call).unwrap_err();
        let between = counters.read().since(&before);
        let write = between.op(OpKind::Write);
        assert_eq!((write.completed, write.failed, write.bytes), (1, 1, 0));
        assert_eq!(write.in_flight, 0);
        assert_eq!(counters.read().total().bytes, 512);
    }
}
