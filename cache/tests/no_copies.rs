//! A hit in memory neither allocates nor copies.

mod support;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};
use support::*;
use weir_cache::{Accepted, Conditions, Tier, form, status};

thread_local!(static COUNT: Cell<u64> = const { Cell::new(0) });

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting touches no memory that it hands out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[tokio::test(start_paused = true)]
async fn a_hit_in_memory_allocates_nothing() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let origin = Origin::always(Reply::page(&"shoes ".repeat(2000)));
    machine.ask(&plan, &get(&[]), &origin).await;
    while machine.engine.peek("v1", &plan.key).is_none_or(|entry| entry.variants().count() < 4) {
        for coding in ["br", "zstd", "gzip"] {
            machine.ask(&plan, &get(&[("accept-encoding", coding)]), &origin).await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let mut out = Vec::with_capacity(32 * 1024);
    let key = plan.key.as_str();
    let hits = machine.engine.stats().memory_hits;
    let before = COUNT.get();
    for _ in 0..100 {
        out.clear();
        let now = machine.clock.now();
        let entry = machine.engine.peek("v1", key).expect("stored");
        assert!(entry.is_fresh(now) && !entry.wants_early_refresh(now * 1000, 1.0));
        out.extend_from_slice(entry.head());
        out.extend_from_slice(b"cache-status: ");
        status::write_hit(&mut out, entry.ttl(now), Some(key));
        out.extend_from_slice(b"\r\n\r\n");
        out.extend_from_slice(entry.body());
        machine.engine.count_hit(Tier::Memory);
    }
    assert_eq!(COUNT.get() - before, 0);
    assert!(out.ends_with(b"shoes </html>"));
    // Neither does the choice of an encoding, nor the look whether the client has it already, or wants a part of it.
    for (accept, etag) in [("gzip, deflate, br;q=0.9, zstd;q=0.5", "\"x\", \"y\""), ("br", "*")] {
        let before = COUNT.get();
        let entry = machine.engine.peek("v1", key).expect("stored");
        let variant = entry.pick(Some(accept.as_bytes()));
        let (head, body) = (variant.head.clone(), variant.body.clone());
        let accepted = Accepted::of(Some(accept.as_bytes()));
        let held = form(&entry, &Conditions { if_none_match: Some(etag.as_bytes()), ..Conditions::default() }, &accepted);
        let since = form(&entry, &Conditions { if_modified_since: Some(b"Sun, 06 Nov 2044 08:49:37 GMT"), ..Conditions::default() }, &accepted);
        let part = form(&entry, &Conditions { range: Some(b"bytes=2-5"), ..Conditions::default() }, &accepted);
        out.clear();
        part.write_head(&mut out);
        assert_eq!(COUNT.get() - before, 0);
        assert_eq!((since.status(entry.status()).as_u16(), part.range()), (304, 2..6));
        assert!(entry.raw().as_ptr_range().contains(&body.as_ptr()) && body.len() < entry.body().len());
        assert!(head.ends_with(format!("content-length: {}\r\n", body.len()).as_bytes()));
        assert_eq!(held.status(entry.status()).as_u16(), if etag == "*" { 304 } else { 200 });
    }
    assert_eq!(machine.engine.stats().memory_hits - hits, 100);
    // One buffer is shared by memory and the embedded store.
    let entry = machine.engine.peek("v1", key).expect("stored");
    assert!(entry.raw().as_ptr_range().contains(&entry.body().as_ptr()));
}
