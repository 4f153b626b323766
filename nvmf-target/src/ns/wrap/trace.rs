//! A line, or a call, per request.

use super::{Around, Enter};
use crate::Error;
use crate::chatter::debug;
use crate::ns::{Interceptor, Lane, LaneCx, LbaRange, Namespace, NsInfo, NsSink, Op, Request};
use crate::reactor::now;
use log::{Level, log_enabled};
use nvmf_proto::wire::Status;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Tells of every request when it has ended.
///
/// It sees requests: a device that works on the reactor's thread gets all of its I/O as requests
/// for that, by way of buffers, instead of reading and writing in place.
pub struct Trace {
    namespace: Arc<dyn Namespace>,
    tell: Arc<Tell>,
}

/// A request that has ended.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TraceEvent<'a> {
    /// What was asked for.
    pub op: Op,
    /// The blocks concerned; empty for Flush and Deallocate.
    pub range: LbaRange,
    /// The ranges of a Deallocate.
    pub ranges: &'a [LbaRange],
    /// How it ended. `Err(Status::ABORT_REQUESTED)` if the backend has given it back.
    pub result: Result<(), Status>,
    /// From `Lane::submit` to the end.
    pub duration: Duration,
}

/// As in "Write { fua: false } of 8 blocks from 64: ok in 83µs".
impl fmt::Display for TraceEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            op,
            range,
            ranges,
            result,
            duration,
        } = self;
        write!(f, "{op:?}")?;
        if range.blocks > 0 {
            write!(f, " of {} blocks from {}", range.blocks, range.slba)?;
        }
        if !ranges.is_empty() {
            write!(f, " of {} ranges", ranges.len())?;
        }
        match result {
            Ok(()) => write!(f, ": ok in {duration:?}"),
            Err(status) => write!(f, ": {status} in {duration:?}"),
        }
    }
}

struct Tell(Box<dyn Fn(&TraceEvent<'_>) + Send + Sync>);

impl Trace {
    /// Logs each request, at level debug, under a name.
    #[must_use]
    pub fn new(name: impl Into<String>, namespace: impl Namespace) -> Self {
        let name = name.into();
        Self::with(namespace, move |event| {
            if log_enabled!(Level::Debug) {
                debug!("{name}: {event}");
            }
        })
    }

    /// Calls `tell` for each request, on the thread that has completed it, a reactor perhaps: it
    /// must not block. A panic in it is logged and changes nothing.
    #[must_use]
    pub fn with(
        namespace: impl Namespace,
        tell: impl Fn(&TraceEvent<'_>) + Send + Sync + 'static,
    ) -> Self {
        Self {
            namespace: Arc::new(namespace),
            tell: Arc::new(Tell(Box::new(tell))),
        }
    }
}

impl Tell {
    fn tell(&self, request: &Request, result: Result<(), Status>, since: u64) {
        (self.0)(&TraceEvent {
            op: request.op(),
            range: request.lba_range(),
            ranges: request.ranges(),
            result,
            duration: Duration::from_nanos(now().0.saturating_sub(since)),
        });
    }
}

impl Interceptor for Tell {
    fn ended(&self, request: Request, result: Result<(), Status>, since: u64) {
        // If it panics the request must not be taken along.
        let mut ending = Ending(Some((request, result)));
        if let Some((request, result)) = &ending.0 {
            self.tell(request, *result, since);
        }
        ending.end();
    }

    fn withdrawn(&self, request: &mut Request, since: u64) {
        self.tell(request, Err(Status::ABORT_REQUESTED), since);
    }
}

/// Completes the request as it is dropped.
struct Ending(Option<(Request, Result<(), Status>)>);

impl Ending {
    fn end(&mut self) {
        if let Some((request, result)) = self.0.take() {
            request.complete(result);
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.end();
    }
}

struct Traced(Arc<Tell>);

impl Enter for Traced {
    fn enter(&mut self, mut request: Request) -> Option<Request> {
        request.intercept(Arc::<Tell>::clone(&self.0), now().0);
        Some(request)
    }
}

impl Namespace for Trace {
    fn info(&self) -> NsInfo {
        self.namespace.info()
    }

    fn open_lane(&self, cx: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        Ok(Box::new(Around {
            lane: self.namespace.open_lane(cx)?,
            enter: Traced(Arc::clone(&self.tell)),
        }))
    }

    fn subscribe(&self, sink: NsSink) {
        self.namespace.subscribe(sink);
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").finish_non_exhaustive()
    }
}
