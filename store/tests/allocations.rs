//! A charge on callers that are known allocates nothing. Alone in its file: the allocator counts for the whole process.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    net::IpAddr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Instant,
};
use weir_store::limits::{Asked, Clock, How, Meters, Method, Rule, Span};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: `place` is from `System`, see `alloc`.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_charge_on_known_callers_allocates_nothing() {
    let (meters, clock) = (Meters::default(), Clock::default());
    for method in [Method::Fixed, Method::Sliding, Method::Bucket { burst: 1 << 40 }] {
        let rules = [Rule { limit: 1 << 40, span: Span::HOUR, method }, Rule { limit: 1 << 40, span: Span::Year, method }];
        let charge = || {
            let address: IpAddr = [192, 0, 2, 1].into();
            let asked = [Asked::new(meters.key(("scope", "ip", address)), &rules, 1), Asked::new(meters.key(("scope", "consumer", "kim")), &rules, 1)];
            assert!(meters.charge(clock.at(Instant::now()), &asked, How::AllOrNone).allowed);
        };
        charge();
        // The threads of the test's runner may allocate something meanwhile: one round of ten without any is proof.
        let fewest = (0..10).map(|_| {
            let before = ALLOCATIONS.load(Relaxed);
            (0..100).for_each(|_| charge());
            ALLOCATIONS.load(Relaxed) - before
        });
        assert_eq!(fewest.min(), Some(0), "{method:?}");
    }
}
