//! Values, and who may overwrite them.

use super::*;

pub(super) async fn blobs_keep_values_for_their_time(a: Store, b: Store) {
    assert_eq!(a.blobs.get("blob").await.unwrap(), None);
    let raw = Bytes::from((0..=255u8).cycle().take(100_000).collect::<Vec<_>>());
    assert!(a.blobs.put("blob", raw.clone(), LONG, None).await.unwrap());
    assert_eq!(value(&b, "blob").await, Some(raw));
    assert!(b.blobs.put("blob", bytes("second"), LONG, None).await.unwrap());
    assert_eq!(value(&a, "blob").await, Some(bytes("second")));
    assert!(a.blobs.put("empty", Bytes::new(), LONG, None).await.unwrap());
    assert_eq!(value(&b, "empty").await, Some(Bytes::new()));
    assert!(a.blobs.put("brief", bytes("x"), SHORT, None).await.unwrap());
    eventually("the brief one expires", || async { value(&b, "brief").await.is_none().then_some(()) }).await;
    let keys = ["blob", "empty", "brief", "never"].map(String::from);
    assert_eq!(a.blobs.delete(&keys).await.unwrap(), 2);
    assert_eq!(a.blobs.delete(&keys).await.unwrap(), 0);
    assert_eq!(a.blobs.delete(&[]).await.unwrap(), 0);
    assert_eq!(value(&b, "blob").await, None);
}

pub(super) async fn blobs_with_odd_keys_do_not_meet(a: Store, b: Store) {
    let keys = ["", "a", "{a}", "{a", "a}", "}a", "}", "{}", "{}a", "{_}a", "_}a", "=a", ":a", "a b\r\nc", "ä/{ö}/ü", "blob:{a}"];
    for key in keys {
        assert!(a.blobs.put(key, bytes(key), LONG, Some(7)).await.unwrap(), "{key:?}");
    }
    for key in keys {
        assert_eq!(value(&b, key).await, Some(bytes(key)), "{key:?}");
        assert!(!b.blobs.put(key, bytes("late"), LONG, Some(6)).await.unwrap(), "{key:?}");
    }
    assert_eq!(a.blobs.delete(&keys.map(String::from)).await.unwrap(), keys.len() as u64);
}

pub(super) async fn a_late_writer_is_refused(a: Store, b: Store) {
    let old = a.locks.acquire("page", SHORT).await.unwrap().unwrap();
    let new = eventually("the lease of the sleeper is over", || async { b.locks.acquire("page", LONG).await.unwrap() }).await;
    assert!(new.fence > old.fence, "{} then {}", old.fence, new.fence);
    assert!(b.blobs.put("page", bytes("new"), LONG, Some(new.fence)).await.unwrap());
    assert!(!a.blobs.put("page", bytes("old"), LONG, Some(old.fence)).await.unwrap());
    assert_eq!(value(&a, "page").await, Some(bytes("new")));
    // The same owner may write again, and who has no fence writes always.
    assert!(b.blobs.put("page", bytes("new2"), LONG, Some(new.fence)).await.unwrap());
    assert!(a.blobs.put("page", bytes("purged"), LONG, None).await.unwrap());
    // The mark stays when the value goes.
    assert!(!a.blobs.put("page", bytes("old"), LONG, Some(old.fence)).await.unwrap());
    assert_eq!(b.blobs.delete(&["page".into()]).await.unwrap(), 1);
    assert!(!a.blobs.put("page", bytes("old"), LONG, Some(old.fence)).await.unwrap());
    assert_eq!(value(&a, "page").await, None);
    // Fences are numbers, not texts, up to the largest.
    assert!(b.blobs.put("digits", bytes("new"), LONG, Some(10)).await.unwrap());
    assert!(!a.blobs.put("digits", bytes("old"), LONG, Some(9)).await.unwrap());
    assert!(b.blobs.put("digits", bytes("new"), LONG, Some(u64::MAX)).await.unwrap());
    assert!(!a.blobs.put("digits", bytes("old"), LONG, Some(u64::MAX - 1)).await.unwrap());
    // And some time after, it is forgotten.
    assert!(b.blobs.put("soon", bytes("new"), SHORT, Some(9)).await.unwrap());
    eventually("the mark goes", || async { a.blobs.put("soon", bytes("old"), LONG, Some(8)).await.unwrap().then_some(()) }).await;
    assert_eq!(value(&b, "soon").await, Some(bytes("old")));
}

pub(super) async fn a_patch_hits_only_what_it_was_made_for(a: Store, b: Store) {
    assert!(a.blobs.put("patched", bytes("head:rest"), LONG, Some(7)).await.unwrap());
    assert!(b.blobs.patch("patched", b"head", b"HEAD").await.unwrap());
    assert_eq!(value(&a, "patched").await, Some(bytes("HEAD:rest")));
    assert!(!b.blobs.patch("patched", b"head", b"tail").await.unwrap(), "it begins otherwise now");
    assert!(!b.blobs.patch("patched", b"HEAD:rest and more", b"HEAD:rest and less").await.unwrap());
    assert!(!b.blobs.patch("patched", b"HEAD", b"longer").await.unwrap());
    assert_eq!(value(&a, "patched").await, Some(bytes("HEAD:rest")));
    assert!(!a.blobs.put("patched", bytes("late"), LONG, Some(6)).await.unwrap(), "the fence mark stays");
    assert!(a.blobs.patch("patched", b"", b"").await.unwrap());
    for (old, new) in [("", ""), ("x", "y")] {
        assert!(!a.blobs.patch("absent", old.as_bytes(), new.as_bytes()).await.unwrap());
    }
    assert_eq!(value(&b, "absent").await, None);
    assert!(a.blobs.put("brief and patched", bytes("head"), SHORT, None).await.unwrap());
    assert!(b.blobs.patch("brief and patched", b"head", b"HEAD").await.unwrap());
    eventually("its time goes on", || async { value(&b, "brief and patched").await.is_none().then_some(()) }).await;
}
