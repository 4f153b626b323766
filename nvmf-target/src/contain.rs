//! Calls into code of the embedder's, which may panic.
//!
//! A panic ends there: what the call was about fails, and everything else goes on. After one in a
//! [`BlockDevice`](crate::ns::BlockDevice) or a
//! [`ReservationStore`](crate::ReservationStore) the object stays in use, as it does behind a mutex
//! that is poisoned and used all the same; a lane, a stream and a transport, which have a state of
//! their own for what they are doing, are given up.
//!
//! Nothing here helps a program that is built with `panic = "abort"`.

use crate::chatter::error;
use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A panic that was caught, with its message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Panic(String);

/// Calls `call`. Whoever uses this answers for what `call` has left half done.
pub(crate) fn contain<T>(call: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(call)).map_err(Panic::of)
}

/// Drops what is the embedder's. `of` is what the log calls its owner.
pub(crate) fn let_go<T>(of: &str, value: T) {
    if let Err(panic) = contain(|| drop(value)) {
        error!("{of}: it {panic} as it was dropped");
    }
}

impl Panic {
    #[cold]
    fn of(payload: Box<dyn Any + Send>) -> Self {
        let message = match (payload.downcast_ref(), payload.downcast_ref::<String>()) {
            (Some(&message), _) => Some(str::to_owned(message)),
            (_, Some(message)) => Some(message.clone()),
            _ => None,
        };
        // What was thrown may throw again as it is dropped. That it does so for ever is not worth
        // a loop: the second is leaked.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(again);
        }
        Self(message.unwrap_or_else(|| "no message".to_owned()))
    }
}

/// As in "the backend panicked: index out of bounds".
impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked: {}", self.0)
    }
}

/// Something of the embedder's whose drop must not panic into whoever owns it.
pub(crate) struct Guarded<T> {
    /// `None` while it is dropped only.
    value: Option<T>,
    what: &'static str,
}

impl<T> Guarded<T> {
    /// `what` it is, for the log.
    pub(crate) const fn new(what: &'static str, value: T) -> Self {
        let value = Some(value);
        Self { value, what }
    }
}

impl<T> Deref for Guarded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.value {
            Some(value) => value,
            None => unreachable!("only `drop` takes it"),
        }
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.value {
            Some(value) => value,
            None => unreachable!("only `drop` takes it"),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Guarded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            let_go(self.what, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::panic_any;

    /// Panics as it is dropped.
    struct Sore;

    impl Drop for Sore {
        fn drop(&mut self) {
            panic!("sore");
        }
    }

    #[test]
    fn a_panic_is_told_by_its_message() {
        assert_eq!(contain(|| 7), Ok(7));
        let told = |call: fn()| contain(call).unwrap_err().to_string();
        assert_eq!(told(|| panic!("plain")), "panicked: plain");
        assert_eq!(told(|| panic!("number {}", 3)), "panicked: number 3");
        assert_eq!(told(|| panic_any(3)), "panicked: no message");
        assert_eq!(told(|| panic_any(Sore)), "panicked: no message");
    }

    #[test]
    fn a_drop_that_panics_goes_no_further_even_in_the_middle_of_a_panic() {
        let_go("a test", Sore);
        drop(Guarded::new("a test", Sore));
        let first = contain(|| {
            let _sore = Guarded::new("a test", Sore);
            panic!("first");
        });
        assert_eq!(first, Err::<(), _>(Panic("first".to_owned())));
    }
}
