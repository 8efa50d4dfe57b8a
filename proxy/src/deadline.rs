//! One timer for all the deadlines of a connection. Setting a deadline stores a number; the clock is only read when someone really waits,
//! and the timer armed at most every [`TICK`], so that an exchange that is on time never touches the timer wheel.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::{Instant, Sleep};

/// The timer fires at most this often before its deadline: how far a shortened deadline may be missed.
const TICK: Duration = Duration::from_secs(1);

/// A deadline that moves.
pub struct Deadline {
    sleep: Option<Pin<Box<Sleep>>>,
    armed_for: Option<Instant>,
    /// The task that the armed timer wakes.
    wakes: Option<Waker>,
    after: Duration,
    /// `None` until someone waits.
    at: Option<Instant>,
}

impl Deadline {
    /// None yet: far away.
    pub fn new() -> Deadline {
        Deadline { sleep: None, armed_for: None, wakes: None, after: Duration::from_secs(86_400), at: None }
    }

    /// From now on, `after` the next wait begins.
    pub fn set(&mut self, after: Duration) {
        (self.after, self.at) = (after, None);
    }

    /// Whether it is over; else the task is woken in time.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            let now = Instant::now();
            let at = *self.at.get_or_insert_with(|| now + self.after);
            if now >= at {
                return true;
            }
            let next = at.min(now + TICK);
            let armed = self.armed_for.is_some_and(|armed| now < armed && armed <= next);
            if armed && self.wakes.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
                return false;
            }
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next)));
            if !armed {
                self.armed_for = Some(next);
                sleep.as_mut().reset(next);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                self.wakes = Some(cx.waker().clone());
                return false;
            }
            self.armed_for = None;
        }
    }

    /// `poll`'s result, or `TimedOut` when the deadline is over first.
    pub fn guard<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match poll {
            Poll::Pending if self.poll_expired(cx) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn it_expires_when_it_should_and_moves() {
        let mut deadline = Deadline::new();
        deadline.set(Duration::from_secs(30));
        let began = Instant::now();
        let wait = |d: &mut Deadline, cx: &mut Context<'_>| if d.poll_expired(cx) { Poll::Ready(()) } else { Poll::Pending };
        poll_fn(|cx| wait(&mut deadline, cx)).await;
        assert_eq!(began.elapsed().as_secs(), 30);
        deadline.set(Duration::from_secs(5));
        poll_fn(|cx| wait(&mut deadline, cx)).await;
        assert_eq!(began.elapsed().as_secs(), 35);
    }
}
