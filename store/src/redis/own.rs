//! A connection for each thread that runs its own tasks: a call then wakes no other thread, neither to be sent nor to be answered. Where
//! several threads share their tasks, and on a Cluster, whose connections are many already, calls go by the shared connection.

use super::connect::{Conn, Connector};
use std::cell::RefCell;
use std::sync::{Arc, Weak};
use tokio::runtime::{Handle, RuntimeFlavor};

/// A thread's connection of one link.
struct Own {
    /// Whose.
    link: Weak<Connector>,
    /// The shared connection beside which it was opened: when that one is given up, so is this.
    number: u64,
    /// `None`: on its way.
    conn: Option<Conn>,
}

thread_local!(static OWN: RefCell<Vec<Own>> = const { RefCell::new(Vec::new()) });

/// This thread's connection, if it is open; else one is opened for the calls to come.
pub(super) fn connection(connector: &Arc<Connector>, number: u64, shared: &Conn) -> Option<Conn> {
    if matches!(shared, Conn::Cluster(_)) {
        return None;
    }
    let found = OWN.with_borrow(|all| all.iter().find(|own| own.number == number && Weak::as_ptr(&own.link) == Arc::as_ptr(connector)).map(|own| own.conn.clone()));
    if let Some(known) = found {
        return known;
    }
    let runtime = Handle::try_current().ok()?;
    if runtime.runtime_flavor() != RuntimeFlavor::CurrentThread {
        return None;
    }
    let link = Arc::downgrade(connector);
    OWN.with_borrow_mut(|all| {
        all.retain(|own| own.link.strong_count() > 0 && !Weak::ptr_eq(&own.link, &link));
        all.push(Own { link: link.clone(), number, conn: None });
    });
    // It stays on this thread, and so does what the library starts to read the answers.
    runtime.spawn(async move {
        let Some(connector) = link.upgrade() else { return };
        let opened = connector.connect().await;
        OWN.with_borrow_mut(|all| {
            let Some(place) = all.iter().position(|own| own.number == number && Weak::ptr_eq(&own.link, &link)) else { return };
            match opened {
                Ok(conn) => all[place].conn = Some(conn),
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
