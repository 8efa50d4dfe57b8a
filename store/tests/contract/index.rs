//! The index, and the locks.

use super::*;

/// Puts a blob and enters it.
pub(super) async fn enter(store: &Store, key: &str, names: &[&str]) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    assert!(store.blobs.put(key, bytes(key), LONG, None).await.unwrap());
    store.index.enter(key, &names, LONG).await.unwrap();
}

/// All that a search finds, in steps of `limit`; sorted by key, each entry once.
pub(super) async fn all(store: &Store, named: Named<'_>, limit: usize) -> Vec<Indexed> {
    let mut entries = Vec::new();
    let mut from = None;
    loop {
        let found = store.index.find(named, from.as_ref(), limit).await.unwrap();
        entries.extend(found.entries);
        from = found.next;
        if from.is_none() {
            break;
        }
    }
    entries.sort_by(|x: &Indexed, y| x.key.cmp(&y.key));
    entries.dedup();
    entries
}

pub(super) async fn keys(store: &Store, named: Named<'_>) -> Vec<String> {
    all(store, named, 1000).await.into_iter().map(|entry| entry.key).collect()
}

pub(super) async fn the_index_finds_by_name_and_by_beginning(a: Store, b: Store) {
    enter(&a, "1", &["/shoes", "#red", "//shop/shoes"]).await;
    enter(&a, "2", &["/shoes/boots", "#red", "#warm"]).await;
    enter(&b, "{3}", &["/shoe", "#reddish"]).await;
    enter(&b, "4\0x", &["/Schuhe/\u{f6}\u{10ffff}", "nul\0name"]).await;
    enter(&b, "5", &[]).await;
    enter(&b, "", &["/empty"]).await;
    assert_eq!(keys(&b, Named::Exactly("#red")).await, ["1", "2"]);
    assert_eq!(keys(&a, Named::Prefix("#red")).await, ["1", "2", "{3}"]);
    assert_eq!(keys(&a, Named::Exactly("/shoes")).await, ["1"]);
    assert_eq!(keys(&a, Named::Prefix("/shoes")).await, ["1", "2"]);
    assert_eq!(keys(&a, Named::Prefix("/shoes/")).await, ["2"]);
    assert_eq!(keys(&a, Named::Prefix("/Schuhe/\u{f6}")).await, ["4\0x"]);
    assert_eq!(keys(&a, Named::Exactly("nul\u{fffd}name")).await, ["4\0x"]);
    assert_eq!(keys(&a, Named::Exactly("nul\0name")).await, ["4\0x"]);
    assert_eq!(keys(&a, Named::Exactly("nul")).await, [""; 0]);
    assert_eq!(keys(&a, Named::Exactly("/empty")).await, [""]);
    assert_eq!(keys(&a, Named::Prefix("")).await, ["", "1", "2", "4\0x", "{3}"], "what has no name can not be found");
    assert_eq!(keys(&a, Named::Exactly("")).await, [""; 0]);
    let one = all(&a, Named::Exactly("#warm"), 10).await;
    assert_eq!(one[0].names, ["/shoes/boots", "#red", "#warm"]);

    // Entered anew: the new names hold, and only they.
    enter(&b, "1", &["/shoes", "#blue"]).await;
    assert_eq!(keys(&a, Named::Exactly("#red")).await, ["2"]);
    assert_eq!(keys(&a, Named::Prefix("//shop")).await, [""; 0]);
    assert_eq!(keys(&a, Named::Exactly("#blue")).await, ["1"]);
}

pub(super) async fn the_index_forgets_what_was_removed_but_not_what_came_since(a: Store, b: Store) {
    enter(&a, "1", &["/a", "#t"]).await;
    enter(&a, "2", &["/b", "#t"]).await;
    let found = all(&b, Named::Exactly("#t"), 10).await;
    assert_eq!(found.len(), 2);
    enter(&a, "2", &["/b", "#t"]).await;
    assert_eq!(b.index.remove(&found).await.unwrap(), 1, "the second was entered anew meanwhile");
    assert_eq!(b.index.remove(&found).await.unwrap(), 0);
    assert_eq!(b.index.remove(&[]).await.unwrap(), 0);
    assert_eq!(keys(&a, Named::Prefix("")).await, ["2"]);
    assert_eq!(keys(&a, Named::Exactly("/a")).await, [""; 0]);
    assert_eq!(value(&a, "1").await, Some(bytes("1")), "the blobs are not touched");
}

pub(super) async fn the_index_is_searched_in_parts(a: Store, b: Store) {
    let mut expected = Vec::new();
    for n in 0..200 {
        let key = format!("k{n:03}");
        enter(&a, &key, &[&format!("/p/{n}"), &format!("//h/p/{n}"), "#all"]).await;
        expected.push(key);
    }
    for limit in [0, 1, 7, 64, 100_000] {
        for named in [Named::Exactly("#all"), Named::Prefix("/"), Named::Prefix("")] {
            let got: Vec<String> = all(&b, named, limit).await.into_iter().map(|entry| entry.key).collect();
            assert_eq!(got, expected, "{named:?} by {limit}");
        }
    }
    // Removing on the way makes a search miss nothing.
    let (mut from, mut removed) = (None, 0);
    loop {
        let found = b.index.find(Named::Exactly("#all"), from.as_ref(), 30).await.unwrap();
        removed += a.index.remove(&found.entries).await.unwrap();
        from = found.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(removed, 200);
    assert_eq!(keys(&a, Named::Prefix("")).await, [""; 0]);
}

pub(super) async fn the_index_forgets_in_time(a: Store, b: Store) {
    enter(&a, "long", &["#t"]).await;
    for n in 0..50 {
        let key = format!("brief{n}");
        assert!(a.blobs.put(&key, bytes("x"), SHORT, None).await.unwrap());
        a.index.enter(&key, &["#t".into()], SHORT).await.unwrap();
    }
    eventually("the brief ones are forgotten", || async { (keys(&b, Named::Exactly("#t")).await == ["long"]).then_some(()) }).await;
    // What is entered again lives on by its new time.
    enter(&a, "brief0", &["#t"]).await;
    assert_eq!(keys(&b, Named::Exactly("#t")).await, ["brief0", "long"]);
}

pub(super) async fn locks_have_one_owner(a: Store, b: Store) {
    let held = a.locks.acquire("lock", LONG).await.unwrap().unwrap();
    assert_eq!(held.key, "lock");
    assert_eq!(a.locks.acquire("lock", LONG).await.unwrap(), None);
    assert_eq!(b.locks.acquire("lock", LONG).await.unwrap(), None);
    let thief = Lease { owner: "someone".into(), ..held.clone() };
    assert!(!b.locks.release(&thief).await.unwrap());
    assert!(!b.locks.renew(&thief, LONG).await.unwrap());
    assert!(b.locks.renew(&held, LONG).await.unwrap(), "the lease itself is the proof, not the store that gave it");
    assert!(a.locks.release(&held).await.unwrap());
    assert!(!a.locks.release(&held).await.unwrap());
    assert!(!a.locks.renew(&held, LONG).await.unwrap());
    let next = b.locks.acquire("lock", LONG).await.unwrap().unwrap();
    assert!(next.fence > held.fence && next.owner != held.owner);
    assert!(!a.locks.release(&held).await.unwrap(), "an old lease does not free a new one");
    assert!(b.locks.release(&next).await.unwrap());
}

pub(super) async fn a_lease_ends_unless_renewed(a: Store, b: Store) {
    let held = a.locks.acquire("lease", SHORT).await.unwrap().unwrap();
    assert!(a.locks.renew(&held, LONG).await.unwrap());
    tokio::time::sleep(SHORT * 2).await;
    assert_eq!(b.locks.acquire("lease", LONG).await.unwrap(), None, "renewed: still held past its first lease");
    assert!(a.locks.renew(&held, SHORT).await.unwrap());
    let next = eventually("the lease ends", || async { b.locks.acquire("lease", LONG).await.unwrap() }).await;
    assert!(next.fence > held.fence);
    assert!(!a.locks.renew(&held, LONG).await.unwrap());
    assert!(!a.locks.release(&held).await.unwrap());
}

pub(super) async fn one_of_many_gets_the_lock(a: Store, b: Store) {
    let mut tasks = JoinSet::new();
    for n in 0..50 {
        let store = if n % 2 == 0 { a.clone() } else { b.clone() };
        tasks.spawn(async move { store.locks.acquire("wanted", LONG).await.unwrap() });
    }
    assert_eq!(tasks.join_all().await.into_iter().flatten().count(), 1);
}
