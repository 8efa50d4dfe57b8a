//! Memory for stored responses.
//!
//! The program's allocator is made for speed: it rounds sizes up to one of four steps between powers of two, so that a page of 10.5 KB would
//! take 12 KB, and a full cache an eighth more than it holds. Stored responses are few allocations, long-lived and large; they come from the system's
//! allocator, which fits them to 16 bytes (glibc).

use bytes::Bytes;
use std::alloc::{GlobalAlloc, Layout, System, handle_alloc_error};

/// Bytes of a fixed number, allocated by the system.
struct Block {
    start: *mut u8,
    length: usize,
}

// SAFETY: a block is the only owner of its memory and never changes it once it is made.
unsafe impl Send for Block {}

impl Block {
    fn layout(length: usize) -> Option<Layout> {
        Layout::array::<u8>(length).ok().filter(|layout| layout.size() > 0)
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `start` has `length` bytes, all of which were written in `joined`, and lives as long as the block.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(layout) = Block::layout(self.length) {
            // SAFETY: allocated in `joined` by the same allocator with the same layout.
            unsafe { System.dealloc(self.start, layout) };
        }
    }
}

/// All parts, one behind the other.
pub(crate) fn joined(parts: &[&[u8]]) -> Bytes {
    let length = parts.iter().map(|part| part.len()).sum();
    let Some(layout) = Block::layout(length) else { return Bytes::new() };
    // SAFETY: the layout is not of size zero.
    let start = unsafe { System.alloc(layout) };
    if start.is_null() {
        handle_alloc_error(layout);
    }
    let mut at = 0;
    for part in parts {
        // SAFETY: the parts are together `length` bytes long, and fresh memory overlaps with none of them.
        unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), start.add(at), part.len()) };
        at += part.len();
    }
    Bytes::from_owner(Block { start, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_joined_and_outlive_their_owner() {
        assert!(joined(&[]).is_empty() && joined(&[b"", b""]).is_empty());
        let long = vec![7u8; 100_000];
        let all = joined(&[b"a", b"", &long, b"z"]);
        assert_eq!((all.len(), all[0], all[1], all[100_001]), (100_002, b'a', 7, b'z'));
        let part = all.slice(1..3);
        drop(all);
        assert_eq!(std::thread::spawn(move || part.to_vec()).join().expect("thread"), [7, 7]);
    }
}
