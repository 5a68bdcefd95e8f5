//! Frames of the share pool: whoever has a reference reads the content that the frame was published with, and no
//! other.

use std::sync::Arc;

use memvisor_models::pool::{Hints, Pool, Unref};
use memvisor_models::units::{FrameId, PageBuf, Pages};
use memvisor_models::{explore, join, spawn};

fn pool(frames: u32) -> Arc<Pool> {
    let hints = Arc::new(Hints::new(Pages(1)).expect("memory"));
    Arc::new(Pool::new("model", frames, &hints).expect("a model's memory"))
}

fn tagged(tag: u64) -> PageBuf {
    let mut page = PageBuf::zeroed();
    page.0[..8].copy_from_slice(&tag.to_le_bytes());
    page
}

fn share(pool: &Pool, hash: u64) -> Option<FrameId> {
    let mut frame = pool.allocate_near(None)?;
    frame.fill(&tagged(hash));
    frame.publish(hash).map(|(frame, _)| frame.keep())
}

/// Finds the frame of a content and reads it; whether there was one.
fn find(pool: &Pool, hash: u64) -> bool {
    let Some(frame) = pool.lookup_frame(hash) else {
        return false;
    };
    assert!(
        pool.equals(frame.id(), &tagged(hash)),
        "the frame of {hash} holds another"
    );
    true
}

/// The frame is published while another thread looks for it.
#[test]
fn frame_that_is_found_holds_what_it_was_published_with() {
    explore(|| {
        let pool = pool(1);
        let finder = {
            let pool = Arc::clone(&pool);
            spawn(move || find(&pool, 1))
        };
        let frame = share(&pool, 1).expect("there is a frame");
        join(finder);
        assert_eq!(pool.unref(frame), Unref::Freed);
        assert_eq!(
            (pool.counts().frames, pool.counts().refs),
            (Pages(0), Pages(0))
        );
    });
}

/// Two holders give their references back, and the only frame is used again for another content.
#[test]
fn frame_is_used_again_after_its_last_reader() {
    explore(|| {
        let pool = pool(1);
        let frame = share(&pool, 1).expect("there is a frame");
        assert!(pool.try_ref(frame));
        let reader = {
            let pool = Arc::clone(&pool);
            spawn(move || {
                assert!(
                    pool.equals(frame, &tagged(1)),
                    "it was used again under a reader"
                );
                pool.unref(frame)
            })
        };
        let freed = pool.unref(frame);
        let again = share(&pool, 2);
        if let Some(again) = again {
            assert!(find(&pool, 2), "it was published just now");
            assert_eq!(pool.unref(again), Unref::Freed);
        }
        let freed = [freed, join(reader)];
        let last = freed.iter().filter(|unref| **unref == Unref::Freed);
        assert_eq!(last.count(), 1, "the frame dies once");
        assert_eq!(pool.allocated().expect("a model's memory"), Pages(0));
    });
}

/// One thread looks for a frame and makes a new one if there is none. Meanwhile the others find the old frame, and drop
/// its last reference.
#[test]
fn dying_frame_is_not_found_and_not_hidden() {
    explore(|| {
        let pool = pool(2);
        let frame = share(&pool, 1).expect("there are frames");
        let ender = {
            let pool = Arc::clone(&pool);
            spawn(move || pool.unref(frame))
        };
        let finder = {
            let pool = Arc::clone(&pool);
            spawn(move || find(&pool, 1))
        };
        let mine = match pool.lookup_frame(1) {
            Some(frame) => Some(frame.keep()),
            None => share(&pool, 1),
        };
        join(ender);
        join(finder);
        if let Some(mine) = mine {
            assert!(find(&pool, 1), "a frame that is in use is found");
            assert_eq!(pool.unref(mine), Unref::Freed);
        }
        assert!(!find(&pool, 1));
        assert_eq!(pool.allocated().expect("a model's memory"), Pages(0));
    });
}
