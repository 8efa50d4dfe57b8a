//! The HTML of the storefront.

use std::fmt::Write;
use std::time::SystemTime;

use bytes::Bytes;
use http::StatusCode;
use percent_encoding::percent_decode_str;

use crate::call::Call;
use crate::catalogue::{CATEGORIES, PRODUCTS, Product, euros, product, select};
use crate::clock;

/// The largest page that `/page/{n}?size=` makes: 64 MiB.
const MAX_SIZE: u64 = 64 * 1024 * 1024;
const DEFAULT_SIZE: u64 = 10 * 1024;
const PER_PAGE: usize = 12;

/// Which page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Spec {
    Home,
    Categories,
    Category(String),
    Product(u64),
    NoProduct,
    About,
    Search,
    Nonce,
    /// A page without a place in the shop; `size` in bytes, exactly.
    Page {
        n: u64,
        size: Option<u64>,
    },
    Missing,
}

impl Spec {
    /// The page under a path; `None` if there is none.
    pub fn of(call: &Call) -> Option<Spec> {
        let path = call.path();
        Some(match path {
            "/" => Spec::Home,
            "/categories" => Spec::Categories,
            "/about" => Spec::About,
            "/search" => Spec::Search,
            "/nonce" => Spec::Nonce,
            "/set-cookie" => Spec::Page { n: 0, size: None },
            _ => {
                let (first, rest) = path.strip_prefix('/')?.split_once('/')?;
                if rest.is_empty() || rest.contains('/') {
                    return None;
                }
                match first {
                    // Any slug makes a page, as generateStaticParams with dynamicParams does.
                    "categories" => {
                        Spec::Category(percent_decode_str(rest).decode_utf8_lossy().into_owned())
                    }
                    "products" => rest
                        .parse()
                        .ok()
                        .filter(|id| product(*id).is_some())
                        .map_or(Spec::NoProduct, Spec::Product),
                    "page" => Spec::Page {
                        n: rest.parse().ok()?,
                        size: Some(
                            call.query
                                .number("size")
                                .unwrap_or(DEFAULT_SIZE)
                                .min(MAX_SIZE),
                        ),
                    },
                    _ => return None,
                }
            }
        })
    }

    /// Seconds after which the page is made anew.
    pub fn revalidate(&self) -> u64 {
        match self {
            Spec::Category(_) | Spec::NoProduct => 120,
            _ => 60,
        }
    }

    pub fn is_dynamic(&self) -> bool {
        matches!(self, Spec::Search | Spec::Nonce | Spec::Missing)
    }
}

/// A page that is ready.
#[derive(Debug, Clone)]
pub(super) struct Rendered {
    pub html: Bytes,
    pub etag: String,
    pub status: StatusCode,
    /// Which render of this path it is, from 1.
    pub render: u64,
    nonce: String,
}

impl Rendered {
    /// The nonce that stands in the page's scripts; empty on pages without one.
    pub fn html_nonce(&self) -> &str {
        &self.nonce
    }
}

/// Makes a page. The number and the time of the render stand in it, so that a copy shows its age; what stood in
/// the query stands in it too, so that one sees what reached the origin.
pub(super) fn render(
    spec: &Spec,
    query: &[(String, String)],
    build_id: &str,
    render: u64,
    at: SystemTime,
) -> Rendered {
    let get = |name: &str| {
        query
            .iter()
            .find(|(k, _)| k == name)
            .map(|(_, v)| v.as_str())
    };
    let nonce = if *spec == Spec::Nonce {
        format!("{:032x}", fastrand::u128(..))
    } else {
        String::new()
    };
    let mut main = String::with_capacity(8 * 1024);
    let (title, status) = match spec {
        Spec::Home => {
            main.push_str(
                "<h1>Everything for the way outside</h1><p>New arrivals, picked by hand.</p>",
            );
            cards(&mut main, PRODUCTS.iter().take(PER_PAGE));
            ("Weir Outfitters".to_owned(), StatusCode::OK)
        }
        Spec::Categories => {
            main.push_str("<h1>Categories</h1><ul class=\"categories\">");
            for (slug, name) in CATEGORIES {
                let count = PRODUCTS.iter().filter(|p| p.category == slug).count();
                let _ = write!(
                    main,
                    "<li><a href=\"/categories/{slug}\">{name}</a> <span>{count} products</span></li>"
                );
            }
            main.push_str("</ul>");
            cards(&mut main, PRODUCTS.iter().skip(PER_PAGE).take(PER_PAGE));
            ("Categories".to_owned(), StatusCode::OK)
        }
        Spec::Category(slug) => {
            let name = super::category_name(slug);
            let page = get("page")
                .and_then(|p| p.parse::<usize>().ok())
                .unwrap_or(1)
                .max(1);
            let found = select(Some(slug), get("q"), get("sort"));
            let _ = write!(
                main,
                "<h1>{}</h1><p>{} products, page {page}</p>",
                escape(name),
                found.len()
            );
            cards(
                &mut main,
                found
                    .into_iter()
                    .skip((page - 1).saturating_mul(PER_PAGE))
                    .take(PER_PAGE),
            );
            (escape(name), StatusCode::OK)
        }
        Spec::Product(id) => match product(*id) {
            Some(p) => {
                let _ = write!(
                    main,
                    "<article data-product=\"{}\"><h1>{}</h1><img src=\"/_next/image?url=%2Fphoto.png&amp;w=384&amp;q=75\" alt=\"{}\" width=\"384\" height=\"384\"/><p class=\"price\">{}</p><p>{}</p><p>Rating {}.{} of 5, {} in stock</p><form method=\"post\" action=\"/api/orders\"><button>Buy</button></form></article>",
                    p.id,
                    p.name,
                    p.name,
                    euros(p.price),
                    p.description,
                    p.rating / 10,
                    p.rating % 10,
                    p.stock
                );
                main.push_str("<h2>Goes well with</h2>");
                cards(
                    &mut main,
                    PRODUCTS
                        .iter()
                        .filter(|o| o.category == p.category && o.id != p.id)
                        .take(4),
                );
                (p.name.clone(), StatusCode::OK)
            }
            None => missing(&mut main),
        },
        Spec::NoProduct | Spec::Missing => missing(&mut main),
        Spec::About => {
            main.push_str("<h1>About us</h1><p>A shop that exists to be cached. This page is made once, when the storefront starts, and then never again.</p>");
            ("About us".to_owned(), StatusCode::OK)
        }
        Spec::Search => {
            let q = get("q").unwrap_or("");
            let found = select(None, Some(q), get("sort"));
            let _ = write!(
                main,
                "<h1>Results for “{}”</h1><p>{} products</p>",
                escape(q),
                found.len()
            );
            cards(&mut main, found.into_iter().take(PER_PAGE));
            (format!("Search: {}", escape(q)), StatusCode::OK)
        }
        Spec::Nonce => {
            main.push_str("<h1>A page with a nonce</h1><p>Its scripts run only with the nonce that its own head names.</p>");
            ("Nonce".to_owned(), StatusCode::OK)
        }
        Spec::Page { n, .. } => {
            let _ = write!(main, "<h1>Page {n}</h1>");
            ("Page".to_owned(), StatusCode::OK)
        }
    };
    let mut html = head(&title, build_id);
    html.push_str("<main>");
    html.push_str(&main);
    echo(&mut html, query);
    html.push_str("</main>");
    stamp(&mut html, render, at);
    if let Spec::Page {
        size: Some(size), ..
    } = spec
    {
        pad(&mut html, *size, &tail(build_id, &nonce));
    }
    html.push_str(&tail(build_id, &nonce));
    let etag = super::answers::etag(html.as_bytes());
    Rendered {
        html: html.into(),
        etag,
        status,
        render,
        nonce,
    }
}

/// The account page in the pieces in which React streams it: the shell with a placeholder, then what was waited for.
pub(super) fn account(name: &str, build_id: &str, render: u64) -> Vec<Bytes> {
    let name = escape(name);
    let mut shell = head("Your account", build_id);
    let _ = write!(
        shell,
        "<main><h1>Your account</h1><p id=\"greeting\">Hello, {name}</p><!--$?--><template id=\"B:0\"></template><p>Loading your orders…</p><!--/$--></main>"
    );
    let mut orders = format!("<div hidden id=\"S:0\"><h2>Orders of {name}</h2><ul>");
    for p in PRODUCTS.iter().take(3) {
        let _ = write!(orders, "<li>{} <b>{}</b></li>", p.name, euros(p.price));
    }
    orders.push_str("</ul></div><script>$RC(\"B:0\",\"S:0\")</script>");
    let mut end = String::new();
    stamp(&mut end, render, SystemTime::now());
    end.push_str(&tail(build_id, ""));
    [shell, orders, end].map(Bytes::from).into()
}

/// A page in `pieces` pieces besides its head and its end.
pub(super) fn stream(pieces: u64, build_id: &str, render: u64) -> Vec<Bytes> {
    let mut parts = vec![Bytes::from(
        head("Stream", build_id) + "<main><h1>Piece by piece</h1>",
    )];
    parts.extend((1..=pieces).map(|n| {
        let p = &PRODUCTS[(n as usize - 1) % PRODUCTS.len()];
        Bytes::from(format!(
            "<p data-piece=\"{n}\">{}: {}</p>",
            p.name, p.description
        ))
    }));
    let mut end = "</main>".to_owned();
    stamp(&mut end, render, SystemTime::now());
    end.push_str(&tail(build_id, ""));
    parts.push(end.into());
    parts
}

fn head(title: &str, build_id: &str) -> String {
    let mut html = String::with_capacity(12 * 1024);
    let _ = write!(
        html,
        "<!DOCTYPE html><html lang=\"en\"><head><meta charSet=\"utf-8\"/><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/><link rel=\"stylesheet\" href=\"/_next/static/css/{build_id}.css\" data-precedence=\"next\"/><link rel=\"preload\" as=\"script\" fetchPriority=\"low\" href=\"/_next/static/chunks/main-{build_id}.js\"/><title>{title} · Weir Outfitters</title><meta name=\"description\" content=\"A demo shop\"/><link rel=\"icon\" href=\"/favicon.ico\" sizes=\"16x16\"/></head><body><header><a href=\"/\">Weir Outfitters</a><nav><a href=\"/categories\">Categories</a>"
    );
    for (slug, name) in CATEGORIES {
        let _ = write!(html, "<a href=\"/categories/{slug}\">{name}</a>");
    }
    html.push_str("<a href=\"/search?q=boot\">Search</a><a href=\"/account\">Account</a><a href=\"/about\">About</a></nav></header>");
    html
}

fn stamp(html: &mut String, render: u64, at: SystemTime) {
    let at = clock::iso(at);
    let _ = write!(
        html,
        "<footer><p id=\"render\">Render <b data-render=\"{render}\">{render}</b> at <time dateTime=\"{at}\">{at}</time></p></footer>"
    );
}

fn tail(build_id: &str, nonce: &str) -> String {
    let attribute = if nonce.is_empty() {
        String::new()
    } else {
        format!(" nonce=\"{nonce}\"")
    };
    format!(
        "<script src=\"/_next/static/chunks/main-{build_id}.js\" async=\"\"{attribute}></script><script{attribute}>(self.__next_f=self.__next_f||[]).push([0])</script><script{attribute}>self.__next_f.push([1,\"0:{{\\\"b\\\":\\\"{build_id}\\\",\\\"c\\\":[\\\"\\\"],\\\"i\\\":false}}\\n\"])</script></body></html>"
    )
}

fn cards<'a>(html: &mut String, products: impl Iterator<Item = &'a Product>) {
    html.push_str("<ul class=\"products\">");
    for p in products {
        let _ = write!(
            html,
            "<li><a href=\"/products/{}\"><img src=\"/_next/image?url=%2Fphoto.png&amp;w=256&amp;q=75\" alt=\"\" loading=\"lazy\" width=\"256\" height=\"256\"/><h3>{}</h3></a><p>{}</p><p class=\"price\">{}</p></li>",
            p.id,
            p.name,
            p.description,
            euros(p.price)
        );
    }
    html.push_str("</ul>");
}

fn echo(html: &mut String, query: &[(String, String)]) {
    if query.is_empty() {
        return;
    }
    html.push_str("<dl id=\"query\">");
    for (name, value) in query {
        let _ = write!(html, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
    }
    html.push_str("</dl>");
}

fn missing(main: &mut String) -> (String, StatusCode) {
    main.push_str("<h1>404</h1><p>This page could not be found.</p>");
    ("404".to_owned(), StatusCode::NOT_FOUND)
}

/// Fills the page up so that with its tail it has `size` bytes. A page that is larger already stays as it is.
fn pad(html: &mut String, size: u64, tail: &str) {
    const OPEN: &str = "<p class=\"text\">";
    const CLOSE: &str = "</p>";
    const WORDS: &str = "The stream runs over the weir and the level above it stays where it is. ";
    let free = (size as usize).saturating_sub(html.len() + tail.len());
    let Some(text) = free.checked_sub(OPEN.len() + CLOSE.len()) else {
        html.extend(std::iter::repeat_n(' ', free));
        return;
    };
    html.push_str(OPEN);
    for _ in 0..text / WORDS.len() {
        html.push_str(WORDS);
    }
    html.push_str(&WORDS[..text % WORDS.len()]); // ASCII: every byte is a boundary
    html.push_str(CLOSE);
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#x27;"),
            _ => out.push(c),
        }
    }
    out
}
