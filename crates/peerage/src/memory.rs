//! How the C library treats memory that is used again and again.

use std::hint::black_box;

/// Bytes of the buffer that it is shown. Twice as many may stay with each of its heaps when nothing uses them any more; with fewer a busy
/// tunnel gives memory back and takes it again for each batch.
const SHOWN_BYTES: usize = 4 << 20;

/// Shows the C library that large buffers come and go.
///
/// glibc gives memory back to the system as soon as 128 KiB at the end of a heap are free, and then takes it again page by page, which is a
/// tenth of the processor time of a tunnel. It learns from what is freed: once a buffer of this size was, twice as much stays (mallopt(3),
/// `M_MMAP_THRESHOLD`). This one is never written to, so it takes no memory. Other libraries are not impressed.
pub(crate) fn keep() {
    drop(black_box(Vec::<u8>::with_capacity(SHOWN_BYTES)));
}
