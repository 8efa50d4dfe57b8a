//! Connections for each thread that runs its own tasks: a call then wakes no other thread, neither to be sent nor to be answered. Where
//! several threads share their tasks, and on a Cluster, whose connections are many already, calls go by the shared connection.

use super::connect::{Conn, Connector};
use std::cell::RefCell;
use std::future::Future;
use std::sync::{Arc, Weak};
use std::thread::LocalKey;
use tokio::runtime::{Handle, RuntimeFlavor};

/// A thread's connection of one link.
pub(super) struct Own<T> {
    /// Whose.
    link: Weak<Connector>,
    /// The shared connection beside which it was opened: when that one is given up, so is this.
    number: u64,
    /// `None`: on its way, or there is none to such a target.
    conn: Option<T>,
}

thread_local!(static OWN: RefCell<Vec<Own<Conn>>> = const { RefCell::new(Vec::new()) });

/// This thread's connection for all calls, if it is open; else one is opened for the calls to come.
pub(super) fn connection(connector: &Arc<Connector>, number: u64, shared: &Conn) -> Option<Conn> {
    if matches!(shared, Conn::Cluster(_)) {
        return None;
    }
    find(&OWN, connector, number, |connector| async move { connector.connect().await.map(Some) })
}

/// Forgets what this thread has for the link.
pub(super) fn forget<T>(all: &'static LocalKey<RefCell<Vec<Own<T>>>>, connector: &Arc<Connector>) {
    all.with_borrow_mut(|all| all.retain(|own| Weak::as_ptr(&own.link) != Arc::as_ptr(connector)));
}

/// What this thread has for the link, if it is there; else it is opened, for the calls to come.
pub(super) fn find<T: Clone + 'static, F>(all: &'static LocalKey<RefCell<Vec<Own<T>>>>, connector: &Arc<Connector>, number: u64, open: impl FnOnce(Arc<Connector>) -> F + Send + 'static) -> Option<T>
where
    F: Future<Output = Result<Option<T>, String>> + Send,
    T: Send,
{
    let found = all.with_borrow(|all| all.iter().find(|own| own.number == number && Weak::as_ptr(&own.link) == Arc::as_ptr(connector)).map(|own| own.conn.clone()));
    if let Some(known) = found {
        return known;
    }
    let runtime = Handle::try_current().ok()?;
    if runtime.runtime_flavor() != RuntimeFlavor::CurrentThread {
        return None;
    }
    let link = Arc::downgrade(connector);
    all.with_borrow_mut(|all| {
        all.retain(|own| own.link.strong_count() > 0 && !Weak::ptr_eq(&own.link, &link));
        all.push(Own { link: link.clone(), number, conn: None });
    });
    // It stays on this thread, and so does the task that reads the answers.
    runtime.spawn(async move {
        let Some(connector) = link.upgrade() else { return };
        let opened = open(connector).await;
        all.with_borrow_mut(|all| {
            let Some(place) = all.iter().position(|own| own.number == number && Weak::ptr_eq(&own.link, &link)) else { return };
            match opened {
                Ok(conn) => all[place].conn = conn,
                // The next call tries again.
                Err(reason) => {
                    tracing::debug!(reason, "a thread's own connection to the store");
                    all.remove(place);
                }
            }
        });
    });
    None
}
