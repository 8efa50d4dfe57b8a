//! The storefront, answering as a Next.js 16 server does (`next start`): ISR, static, dynamic and streamed pages,
//! React Server Component payloads, server actions, build assets, images, data of the Pages Router.
//!
//! | path | what it is |
//! |---|---|
//! | `/` `/categories` `/categories/{slug}` `/products/{id}` | ISR pages; an unknown product is an ISR 404 |
//! | `/about` | static: rendered once, at start |
//! | `/search?q=` | dynamic, private |
//! | `/account` | dynamic, streamed, personal: the name comes from the bearer token or the cookie `user` |
//! | `/stream?pieces=10&delay=25` | streamed in many pieces; the delay in milliseconds |
//! | `/page/{n}?size=10240` | an ISR page of exactly that many bytes, for measuring |
//! | `/set-cookie` | an ISR page that also sets a cookie, as a proxy in front of Next.js may make it |
//! | `/nonce` | a page with a CSP nonce |
//! | `/broken` (`?chunked=1`) | breaks off in the middle of its body |
//! | `/redirect` 307, `/legacy-redirect` 308, a trailing slash 308 | redirects |
//! | `/raw.png` `/favicon.ico` `/_next/static/…` `/_next/image` `/_next/data/…` | files |
//! | `/events` | server-sent events; `?count=&every=` (milliseconds) |
//! | `/ws` | WebSocket echo |

mod answers;
mod assets;
mod live;
mod pages;
mod rsc;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, LOCATION, VARY};
use http::{Method, StatusCode};
use parking_lot::Mutex;

use crate::body::{self, Stop};
use crate::call::{Call, Reply, add, bare, set, with_body, wrong_method};
use crate::server::Spawner;
use crate::{Options, catalogue};
use answers::{dynamic, halves, html, moved, plain_missing, prerendered, prerendered_component};
use pages::{Rendered, Spec};

const PRIVATE: &str = "private, no-cache, no-store, max-age=0, must-revalidate";
const ACTION: &str = "no-cache, no-store, max-age=0, must-revalidate";
const ROUTER_VARY: &str =
    "rsc, next-router-state-tree, next-router-prefetch, next-router-segment-prefetch";
const YEAR: u64 = 31_536_000;

/// Entries of the storefront's own page cache, and of its render counters: the oldest way to fill a memory is to
/// ask for many paths.
const MAX_ENTRIES: usize = 10_000;

pub(crate) struct Storefront {
    spawner: Spawner,
    render_time: Duration,
    piece_delay: Duration,
    isr_window: Option<Duration>,
    rsc_redirect: bool,
    draft_secret: String,
    build_id: String,
    renders: Mutex<HashMap<String, Arc<AtomicU64>>>,
    kept: Arc<Mutex<HashMap<String, Kept>>>,
    /// `/about` and the 404 page: made once, like what `next build` leaves behind.
    about: Rendered,
    missing: Rendered,
}

/// A page in the storefront's own ISR cache.
struct Kept {
    page: Rendered,
    at: Instant,
    refreshing: bool,
}

impl Storefront {
    pub fn new(options: &Options, spawner: Spawner) -> Storefront {
        let now = SystemTime::now();
        Storefront {
            spawner,
            render_time: options.render_time,
            piece_delay: options.piece_delay,
            isr_window: options.isr_window,
            rsc_redirect: options.rsc_redirect,
            draft_secret: options.draft_secret.reveal().to_owned(),
            build_id: options.build_id.clone(),
            renders: Mutex::default(),
            kept: Arc::default(),
            about: pages::render(&Spec::About, &[], &options.build_id, 1, now),
            missing: pages::render(&Spec::Missing, &[], &options.build_id, 1, now),
        }
    }

    pub async fn answer(&self, call: Call) -> Reply {
        let path = call.path().to_owned();
        match path.as_str() {
            "/ws" => return live::websocket(call, &self.spawner),
            "/events" => return live::events(&call),
            "/raw.png" | "/favicon.ico" | "/_next/image" => {
                return assets::answer(&call, &self.build_id);
            }
            _ if path.starts_with("/_next/") => return assets::answer(&call, &self.build_id),
            _ => {}
        }
        if let Some(reply) = moved(&call) {
            return reply;
        }
        if call.method() == Method::POST {
            return self.post(call).await;
        }
        if !call.is_read() {
            return wrong_method("GET, HEAD, POST");
        }
        if call.header("rsc").is_some_and(|v| v == "1") {
            if self.rsc_redirect
                && let Some(reply) = rsc::redirect(&call)
            {
                return reply;
            }
            return self.component(&call).await;
        }
        self.page(&call).await
    }

    /// An HTML page.
    async fn page(&self, call: &Call) -> Reply {
        let path = call.path();
        match path {
            "/account" => {
                return self
                    .streamed(
                        pages::account(&visitor(call), &self.build_id, self.count(path)),
                        self.piece_delay,
                    )
                    .await;
            }
            "/stream" => {
                let pieces = call.query.number("pieces").unwrap_or(10).clamp(1, 1_000);
                let delay = call
                    .query
                    .number("delay")
                    .map_or(self.piece_delay, Duration::from_millis);
                return self
                    .streamed(
                        pages::stream(pieces, &self.build_id, self.count(path)),
                        delay,
                    )
                    .await;
            }
            "/broken" => return self.broken(call).await,
            _ => {}
        }
        let Some(spec) = Spec::of(call) else {
            return self.missing(call);
        };
        match spec {
            Spec::About => html(call, &self.about, "HIT", &format!("s-maxage={YEAR}")),
            Spec::Search => {
                let page = self.render(call, &spec).await;
                dynamic(body::pieces(halves(&page.html), self.piece_delay))
            }
            Spec::Nonce => {
                let page = self.render(call, &spec).await;
                let mut reply = dynamic(body::full(page.html.clone()));
                set(
                    &mut reply,
                    CACHE_CONTROL,
                    "s-maxage=60, stale-while-revalidate=31535940",
                );
                let nonce = page.html_nonce();
                set(
                    &mut reply,
                    HeaderName::from_static("content-security-policy"),
                    &format!("script-src 'nonce-{nonce}' 'strict-dynamic'"),
                );
                reply
            }
            Spec::Page { .. } if path == "/set-cookie" => {
                let mut reply = self.isr(call, &spec).await;
                add(
                    &mut reply,
                    http::header::SET_COOKIE,
                    &format!("seen={}; Path=/; HttpOnly", fastrand::u32(..)),
                );
                reply
            }
            _ => self.isr(call, &spec).await,
        }
    }

    /// A page with incremental static regeneration, and what draft mode makes of it.
    async fn isr(&self, call: &Call, spec: &Spec) -> Reply {
        let draft = call
            .cookie("__prerender_bypass")
            .map(|given| given == self.draft_secret);
        if draft == Some(true) {
            let page = self.render(call, spec).await;
            let mut reply = dynamic(body::pieces(halves(&page.html), Duration::ZERO));
            prerendered(&mut reply, "HIT");
            return reply;
        }
        let (page, state) = match self.isr_window {
            None => {
                let page = self.render(call, spec).await;
                let state = if page.render == 1 { "MISS" } else { "HIT" };
                (page, state)
            }
            Some(window) => self.windowed(call, spec, window).await,
        };
        let maxage = spec.revalidate();
        let mut reply = html(
            call,
            &page,
            state,
            &format!(
                "s-maxage={maxage}, stale-while-revalidate={}",
                YEAR - maxage
            ),
        );
        if draft == Some(false) {
            // A wrong value is deleted, on an answer that says it may be shared: a trap for caches, and real.
            for name in ["__prerender_bypass", "__next_preview_data"] {
                add(
                    &mut reply,
                    http::header::SET_COOKIE,
                    &format!(
                        "{name}=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT; HttpOnly; SameSite=None; Secure"
                    ),
                );
            }
        }
        reply
    }

    /// The page from the storefront's own cache: MISS, HIT, or STALE with a new render behind it.
    async fn windowed(
        &self,
        call: &Call,
        spec: &Spec,
        window: Duration,
    ) -> (Rendered, &'static str) {
        let key = call
            .request
            .uri()
            .path_and_query()
            .map_or("/", |pq| pq.as_str())
            .to_owned();
        if let Some(kept) = self.kept.lock().get_mut(&key) {
            if kept.at.elapsed() <= window {
                return (kept.page.clone(), "HIT");
            }
            if !kept.refreshing {
                kept.refreshing = true;
                let (all, delay) = (self.kept.clone(), self.render_time);
                let (spec, query, build_id) = (spec.clone(), owned(call), self.build_id.clone());
                let count = self.counter(call.path());
                let key = key.clone();
                let refresh = Box::pin(async move {
                    tokio::time::sleep(delay).await;
                    let page = pages::render(
                        &spec,
                        &query,
                        &build_id,
                        count.fetch_add(1, Ordering::SeqCst) + 1,
                        SystemTime::now(),
                    );
                    all.lock().insert(
                        key,
                        Kept {
                            page,
                            at: Instant::now(),
                            refreshing: false,
                        },
                    );
                });
                // Fails only when the service is stopping, and then nobody waits for the new page.
                let _ = self.spawner.send(refresh);
            }
            return (kept.page.clone(), "STALE");
        }
        let page = self.render(call, spec).await;
        let mut all = self.kept.lock();
        if all.len() >= MAX_ENTRIES {
            all.clear();
        }
        all.insert(
            key,
            Kept {
                page: page.clone(),
                at: Instant::now(),
                refreshing: false,
            },
        );
        (page, "MISS")
    }

    fn missing(&self, call: &Call) -> Reply {
        // What only wants a picture or a script gets no page.
        if matches!(
            call.header("sec-fetch-dest"),
            Some("image" | "script" | "style" | "font")
        ) {
            return plain_missing();
        }
        let mut reply = html(call, &self.missing, "HIT", PRIVATE);
        *reply.status_mut() = StatusCode::NOT_FOUND;
        set(&mut reply, VARY, ROUTER_VARY);
        reply
    }

    async fn streamed(&self, parts: Vec<Bytes>, delay: Duration) -> Reply {
        tokio::time::sleep(self.render_time).await;
        dynamic(body::pieces(parts, delay))
    }

    /// Declares its length (or is chunked) and is cut in the middle: a server that was killed while it answered.
    async fn broken(&self, call: &Call) -> Reply {
        let page = self.render(call, &Spec::Page { n: 0, size: None }).await;
        let length = page.html.len() as u64;
        let mut reply = html(
            call,
            &page,
            "MISS",
            "s-maxage=60, stale-while-revalidate=31535940",
        );
        if call.query.get("chunked").is_none() {
            reply.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        *reply.body_mut() = body::cut(body::full(page.html.clone()), length / 2, Stop::Break);
        reply
    }

    /// A React Server Component payload for the page under this path.
    async fn component(&self, call: &Call) -> Reply {
        tokio::time::sleep(self.render_time).await;
        let mut reply = rsc::payload(call, &self.build_id, self.count(call.path()));
        match Spec::of(call) {
            Some(Spec::About) => {
                prerendered_component(&mut reply, call, &format!("s-maxage={YEAR}"))
            }
            Some(spec) if !spec.is_dynamic() => {
                let maxage = spec.revalidate();
                prerendered_component(
                    &mut reply,
                    call,
                    &format!(
                        "s-maxage={maxage}, stale-while-revalidate={}",
                        YEAR - maxage
                    ),
                );
            }
            _ => set(&mut reply, CACHE_CONTROL, PRIVATE),
        }
        reply
    }

    /// A server action (with `Next-Action`), or the same form sent without JavaScript.
    async fn post(&self, call: Call) -> Reply {
        let path = call.path().to_owned();
        let action = call.header("next-action").map(str::to_owned);
        let is_form = call.header("content-type").is_some_and(|t| {
            let t = t.to_ascii_lowercase();
            t.starts_with("multipart/form-data")
                || t.starts_with("application/x-www-form-urlencoded")
        });
        if action.is_none() && !is_form {
            return wrong_method("GET, HEAD");
        }
        let render = self.count(&path);
        let sent = match call.bytes().await {
            Ok(sent) => sent,
            Err(reply) => return reply,
        };
        tokio::time::sleep(self.render_time).await;
        let Some(action) = action else {
            return self.form(&path, &sent, render);
        };
        if !(40..=64).contains(&action.len()) || !action.bytes().all(|b| b.is_ascii_hexdigit()) {
            let mut reply = with_body(
                StatusCode::NOT_FOUND,
                body::full("Server action not found."),
            );
            set(&mut reply, CONTENT_TYPE, "text/plain");
            set(
                &mut reply,
                HeaderName::from_static("x-nextjs-action-not-found"),
                "1",
            );
            return reply;
        }
        let mut reply = rsc::action(&action, &sent, &self.build_id, render);
        if action.starts_with("00") {
            // An action that ends in a redirect to an ISR page carries that page's s-maxage on a POST.
            set(
                &mut reply,
                CACHE_CONTROL,
                &format!("s-maxage=120, stale-while-revalidate={}", YEAR - 120),
            );
            set(
                &mut reply,
                HeaderName::from_static("x-action-redirect"),
                "/categories/shoes;push",
            );
            prerendered(&mut reply, "HIT");
        } else {
            set(&mut reply, CACHE_CONTROL, ACTION);
            add(
                &mut reply,
                http::header::SET_COOKIE,
                "user=alice; Path=/; HttpOnly",
            );
            set(
                &mut reply,
                HeaderName::from_static("x-action-revalidated"),
                "1",
            );
        }
        reply
    }

    fn form(&self, path: &str, sent: &[u8], render: u64) -> Reply {
        let wants_redirect = sent.windows(8).any(|w| w == b"redirect");
        let mut reply = if wants_redirect {
            let mut reply = bare(StatusCode::SEE_OTHER);
            set(&mut reply, LOCATION, "/categories/shoes");
            reply
        } else {
            let mut reply = dynamic(body::pieces(
                pages::account(path, &self.build_id, render),
                Duration::ZERO,
            ));
            add(
                &mut reply,
                http::header::SET_COOKIE,
                "user=alice; Path=/; HttpOnly",
            );
            reply
        };
        set(&mut reply, CACHE_CONTROL, ACTION);
        set(&mut reply, VARY, ROUTER_VARY);
        reply
    }

    async fn render(&self, call: &Call, spec: &Spec) -> Rendered {
        if !self.render_time.is_zero() {
            tokio::time::sleep(self.render_time).await;
        }
        pages::render(
            spec,
            &owned(call),
            &self.build_id,
            self.count(call.path()),
            SystemTime::now(),
        )
    }

    /// Counts one render of a path and gives its number.
    fn count(&self, path: &str) -> u64 {
        self.counter(path).fetch_add(1, Ordering::SeqCst) + 1
    }

    fn counter(&self, path: &str) -> Arc<AtomicU64> {
        let mut renders = self.renders.lock();
        if let Some(counter) = renders.get(path) {
            return counter.clone();
        }
        if renders.len() >= MAX_ENTRIES {
            renders.clear();
        }
        renders.entry(path.to_owned()).or_default().clone()
    }
}

fn owned(call: &Call) -> Vec<(String, String)> {
    call.query
        .pairs()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

/// Who asks: the subject of the bearer token, the cookie `user`, or nobody.
fn visitor(call: &Call) -> String {
    crate::tokens::caller(call)
        .or_else(|| call.cookie("user").map(str::to_owned))
        .or_else(|| call.cookie("guest_token").and_then(crate::tokens::subject))
        .unwrap_or_else(|| "nobody".to_owned())
}

/// The category's display name, or the slug itself for one that the shop does not have.
fn category_name(slug: &str) -> &str {
    catalogue::CATEGORIES
        .iter()
        .find(|(s, _)| *s == slug)
        .map_or(slug, |(_, name)| name)
}
