//! The async runtime openraft runs on: tokio, with two differences.
//!
//! Chance comes from a generator per thread that a simulation seeds, so one seed gives one trace
//! with the same type configuration that production uses. And a sleep below the timer's
//! resolution is a yield: openraft batches flush notifications with a sleep of one microsecond,
//! which tokio would round up to a whole millisecond on the path of every acknowledgement.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use openraft::rt::deterministic_rng::DeterministicRng;
use openraft::rt::{AsyncRuntime, OptionalSend};
use openraft::{TokioInstant, TokioRuntime};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

/// Sleeps shorter than this yield to the other tasks once instead.
const TIMER_RESOLUTION: Duration = Duration::from_micros(500);

thread_local! {
    static SEEDS: RefCell<SmallRng> = RefCell::new(SmallRng::from_os_rng());
}

/// Makes every random choice openraft takes on this thread follow from `seed`.
#[cfg(any(test, feature = "sim"))]
pub(crate) fn seed_thread(seed: u64) {
    SEEDS.with(|seeds| *seeds.borrow_mut() = SmallRng::seed_from_u64(seed));
}

#[cfg(any(test, feature = "sim"))]
type RuntimeWatch = crate::testkit::OrderedWatch;
#[cfg(not(any(test, feature = "sim")))]
type RuntimeWatch = <TokioRuntime as AsyncRuntime>::Watch;

type Seeded = DeterministicRng<TokioRuntime>;

/// The runtime of [`crate::types::TypeConfig`].
#[derive(Debug)]
pub(crate) struct Runtime(TokioRuntime);

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = TokioInstant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <Seeded as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = RuntimeWatch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        #[cfg(any(test, feature = "sim"))]
        if let Some(owner) = crate::testkit::Owner::current() {
            return owner.spawn(future);
        }
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        if duration < TIMER_RESOLUTION {
            Sleep::Yield(false)
        } else {
            Sleep::Timer(Box::pin(tokio::time::sleep(duration)))
        }
    }

    /// Never ends early: a loop that waits for points in time would find itself at the same one
    /// again and again.
    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        Sleep::Timer(Box::pin(TokioRuntime::sleep_until(deadline)))
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        let seed = SEEDS.with(|seeds| seeds.borrow_mut().next_u64());
        Seeded::scope(seed, async { Seeded::thread_rng() })
            .now_or_never()
            .expect("a future without await is ready at once")
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

/// A sleep, or a single yield in place of one too short for the timer.
#[derive(Debug)]
pub(crate) enum Sleep {
    /// Whether the yield has happened.
    Yield(bool),
    Timer(Pin<Box<tokio::time::Sleep>>),
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *self {
            Self::Timer(sleep) => sleep.as_mut().poll(cx),
            Self::Yield(true) => Poll::Ready(()),
            Self::Yield(done) => {
                *done = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_sleep_below_the_timer_resolution_passes_no_time() {
        let before = TokioInstant::now();
        Runtime::sleep(Duration::from_micros(1)).await;
        assert_eq!(TokioInstant::now(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_until_a_point_in_time_does_not_end_before_it() {
        for micros in [0, 1, 100, 499, 20_000] {
            let deadline = TokioInstant::now() + Duration::from_micros(micros);
            Runtime::sleep_until(deadline).await;
            assert!(TokioInstant::now() >= deadline, "{micros} us");
        }
    }
}
