//! The storefront over real sockets: each kind of answer looks as a Next.js server gives it.

mod support;

use std::time::Duration;

use support::{get, send, stub, stub_with};
use upstream_stubs::{Kind, Options};

const ROUTER: &str =
    "rsc, next-router-state-tree, next-router-prefetch, next-router-segment-prefetch";
const PRIVATE: &str = "private, no-cache, no-store, max-age=0, must-revalidate";

fn vary_page() -> String {
    format!("{ROUTER}, Accept-Encoding")
}

#[tokio::test]
async fn isr_pages_may_be_shared_and_show_each_render() {
    let shop = stub(Kind::Storefront).await;
    for (path, maxage) in [
        ("/", 60),
        ("/categories", 60),
        ("/categories/shoes", 120),
        ("/products/7", 60),
    ] {
        let first = get(&shop, path, &[]).await;
        assert_eq!(first.status, 200, "{path}");
        assert_eq!(
            first.header("cache-control"),
            format!(
                "s-maxage={maxage}, stale-while-revalidate={}",
                31_536_000 - maxage
            )
        );
        assert_eq!(first.header("vary"), vary_page());
        assert_eq!(first.header("x-nextjs-prerender"), "1");
        assert_eq!(first.header("x-nextjs-cache"), "MISS");
        assert_eq!(first.header("x-powered-by"), "Next.js");
        assert_eq!(first.header("content-type"), "text/html; charset=utf-8");
        assert!(first.header("etag").starts_with('"'), "strong ETag");
        assert!(first.text().starts_with("<!DOCTYPE html>") && first.text().ends_with("</html>"));
        assert!(first.text().contains("data-render=\"1\""), "{path}");
        let second = get(&shop, path, &[]).await;
        assert!(second.text().contains("data-render=\"2\""), "{path}");
        assert_ne!(first.header("etag"), second.header("etag"));
        assert_eq!(shop.handle().hits_for(path), 2);
    }
}

#[tokio::test]
async fn with_a_window_pages_are_kept_and_go_stale_once() {
    let window = Duration::from_millis(300);
    let shop = stub_with(
        Kind::Storefront,
        Options {
            isr_window: Some(window),
            ..Options::default()
        },
    )
    .await;
    let first = get(&shop, "/categories", &[]).await;
    assert_eq!(first.header("x-nextjs-cache"), "MISS");
    tokio::time::sleep(window + window).await;
    let stale = get(&shop, "/categories", &[]).await;
    assert_eq!(stale.header("x-nextjs-cache"), "STALE");
    assert_eq!(stale.body, first.body);
    assert_eq!(
        stale.header("cache-control"),
        "s-maxage=60, stale-while-revalidate=31535940",
        "the full life, though stale"
    );
    // The new render comes behind the stale answer; asked often enough, it shows.
    let renewed = async {
        loop {
            let now = get(&shop, "/categories", &[]).await;
            if now.text().contains("data-render=\"2\"") {
                break now;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(support::GIVE_UP, renewed)
        .await
        .expect("a new render");
}

#[tokio::test]
async fn a_static_page_stays_and_is_validated() {
    let shop = stub(Kind::Storefront).await;
    let first = get(&shop, "/about", &[]).await;
    assert_eq!(first.header("cache-control"), "s-maxage=31536000");
    assert_eq!(get(&shop, "/about", &[]).await.body, first.body);
    let again = get(&shop, "/about", &[("if-none-match", first.header("etag"))]).await;
    assert_eq!(again.status, 304);
    assert_eq!(again.header("etag"), first.header("etag"));
    assert_eq!(again.header("vary"), ROUTER);
    assert!(again.body.is_empty() && again.headers.get("content-type").is_none());
}

#[tokio::test]
async fn dynamic_pages_are_private_chunked_and_personal() {
    let shop = stub(Kind::Storefront).await;
    let nobody = get(&shop, "/account", &[]).await;
    assert_eq!(nobody.header("cache-control"), PRIVATE);
    assert_eq!(nobody.header("transfer-encoding"), "chunked");
    assert!(nobody.headers.get("etag").is_none() && nobody.headers.get("x-nextjs-cache").is_none());
    assert!(nobody.text().ends_with("</html>"));
    // {"sub":"alice"}
    let alice = get(
        &shop,
        "/account",
        &[("authorization", "Bearer e30.eyJzdWIiOiJhbGljZSJ9.x")],
    )
    .await;
    assert!(alice.text().contains("Hello, alice"));
    let bob = get(&shop, "/account", &[("cookie", "a=b; user=bob")]).await;
    assert!(bob.text().contains("Hello, bob") && !bob.text().contains("alice"));
    let search = get(&shop, "/search?q=%3Cb%3Eboot", &[]).await;
    assert_eq!(search.header("cache-control"), PRIVATE);
    assert!(
        search.text().contains("&lt;b&gt;boot") && !search.text().contains("<b>boot"),
        "what is echoed is escaped"
    );
}

#[tokio::test]
async fn what_stands_in_the_query_stands_in_the_page() {
    let shop = stub(Kind::Storefront).await;
    let page = get(
        &shop,
        "/categories/hats?sort=price&page=2&utm_source=x",
        &[],
    )
    .await;
    for pair in [
        "<dt>sort</dt><dd>price</dd>",
        "<dt>page</dt><dd>2</dd>",
        "<dt>utm_source</dt><dd>x</dd>",
    ] {
        assert!(page.text().contains(pair), "{pair}");
    }
}

#[tokio::test]
async fn missing_pages_and_redirects_are_as_the_router_gives_them() {
    let shop = stub(Kind::Storefront).await;
    let missing = get(&shop, "/missing/page", &[]).await;
    assert_eq!(
        (missing.status.as_u16(), missing.header("cache-control")),
        (404, PRIVATE)
    );
    assert_eq!(
        missing.header("x-nextjs-prerender"),
        "1",
        "even a 404 claims to be prerendered"
    );
    let picture = get(&shop, "/missing.png", &[("sec-fetch-dest", "image")]).await;
    assert_eq!(
        (picture.status.as_u16(), picture.text()),
        (404, "Not Found")
    );
    let gone = get(&shop, "/products/4711", &[]).await;
    assert_eq!(
        (gone.status.as_u16(), gone.header("cache-control")),
        (404, "s-maxage=120, stale-while-revalidate=31535880")
    );
    let moved = get(&shop, "/redirect", &[]).await;
    assert_eq!(
        (
            moved.status.as_u16(),
            moved.header("location"),
            moved.header("cache-control")
        ),
        (307, "/categories", PRIVATE)
    );
    let slash = get(&shop, "/categories/?page=2", &[]).await;
    assert_eq!(
        (slash.status.as_u16(), slash.header("location")),
        (308, "/categories?page=2")
    );
    assert_eq!(slash.header("refresh"), "0;url=/categories?page=2");
    assert!(slash.headers.get("cache-control").is_none() && slash.headers.get("vary").is_none());
}

#[tokio::test]
async fn pages_that_must_not_be_stored_though_they_look_so() {
    let shop = stub(Kind::Storefront).await;
    let cookie = get(&shop, "/set-cookie", &[]).await;
    assert!(
        cookie.header("cache-control").starts_with("s-maxage=60")
            && cookie.header("set-cookie").starts_with("seen=")
    );
    let draft = Options::default().draft_secret;
    let preview = get(
        &shop,
        "/",
        &[("cookie", &format!("__prerender_bypass={}", draft.reveal()))],
    )
    .await;
    assert_eq!(
        (
            preview.header("cache-control"),
            preview.header("x-nextjs-cache")
        ),
        (PRIVATE, "HIT")
    );
    let wrong = get(&shop, "/", &[("cookie", "__prerender_bypass=wrong")]).await;
    assert!(wrong.header("cache-control").starts_with("s-maxage=60"));
    assert_eq!(wrong.headers.get_all("set-cookie").iter().count(), 2);
    let nonce = get(&shop, "/nonce", &[]).await;
    let policy = nonce.header("content-security-policy").to_owned();
    let value = policy
        .split("'nonce-")
        .nth(1)
        .unwrap()
        .split('\'')
        .next()
        .unwrap();
    assert!(nonce.text().contains(&format!("nonce=\"{value}\"")));
    let other = get(&shop, "/nonce", &[]).await;
    assert_ne!(other.header("content-security-policy"), policy);
}

#[tokio::test]
async fn broken_pages_break_off() {
    let shop = stub(Kind::Storefront).await;
    let declared = get(&shop, "/broken", &[]).await;
    let length: usize = declared.header("content-length").parse().unwrap();
    assert!(
        !declared.whole && declared.body.len() == length / 2,
        "{} of {length}",
        declared.body.len()
    );
    let chunked = get(&shop, "/broken?chunked=1", &[]).await;
    assert!(
        !chunked.whole
            && !chunked.body.is_empty()
            && chunked.headers.get("content-length").is_none()
    );
}

#[tokio::test]
async fn server_components_are_told_apart_by_the_routers_headers() {
    let shop = stub(Kind::Storefront).await;
    let navigation = get(
        &shop,
        "/categories?_rsc=abc",
        &[
            ("rsc", "1"),
            ("next-router-state-tree", "%5B%22%22%5D"),
            ("next-url", "/"),
        ],
    )
    .await;
    assert_eq!(navigation.header("content-type"), "text/x-component");
    assert_eq!(navigation.header("vary"), vary_page());
    assert!(
        navigation
            .header("cache-control")
            .starts_with("s-maxage=60")
    );
    assert!(navigation.headers.get("etag").is_none());
    let other = get(
        &shop,
        "/categories?_rsc=abc",
        &[
            ("rsc", "1"),
            ("next-router-state-tree", "%5B%22x%22%5D"),
            ("next-url", "/"),
        ],
    )
    .await;
    assert_ne!(navigation.body, other.body);
    let tree = get(
        &shop,
        "/categories?_rsc=abc",
        &[
            ("rsc", "1"),
            ("next-router-prefetch", "1"),
            ("next-router-segment-prefetch", "/_tree"),
        ],
    )
    .await;
    assert_eq!(tree.header("x-nextjs-postponed"), "2");
    let dynamic = get(&shop, "/account?_rsc=abc", &[("rsc", "1")]).await;
    assert_eq!(dynamic.header("cache-control"), PRIVATE);
    let html = get(&shop, "/categories?_rsc=abc", &[]).await;
    assert_eq!(
        html.header("content-type"),
        "text/html; charset=utf-8",
        "the query alone does not make it a component"
    );
}

#[tokio::test]
async fn on_request_a_wrong_rsc_hash_is_redirected_to_the_right_one() {
    let shop = stub_with(
        Kind::Storefront,
        Options {
            rsc_redirect: true,
            ..Options::default()
        },
    )
    .await;
    let headers = [
        ("rsc", "1"),
        ("next-router-state-tree", "%5B%5D"),
        ("next-url", "/"),
    ];
    let wrong = get(&shop, "/categories?page=2&_rsc=wrong", &headers).await;
    assert_eq!(wrong.status, 307);
    assert!(wrong.headers.get("vary").is_none() && wrong.headers.get("cache-control").is_none());
    let to = wrong.header("location").to_owned();
    assert!(to.starts_with("/categories?page=2&_rsc="), "{to}");
    assert_eq!(get(&shop, &to, &headers).await.status, 200);
    let from_elsewhere = [
        ("rsc", "1"),
        ("next-router-state-tree", "%5B%5D"),
        ("next-url", "/about"),
    ];
    assert_eq!(
        get(&shop, &to, &from_elsewhere).await.status,
        307,
        "the hash stands on the headers"
    );
}

#[tokio::test]
async fn server_actions_are_never_to_be_stored() {
    let shop = stub(Kind::Storefront).await;
    let id = "40c4bd9966635557434de7dd21433ec2beff19b99f";
    let action = send(
        "POST",
        &shop,
        "/account",
        &[("next-action", id), ("accept", "text/x-component")],
        "[\"x\"]",
    )
    .await;
    assert_eq!(action.header("content-type"), "text/x-component");
    assert_eq!(
        action.header("cache-control"),
        "no-cache, no-store, max-age=0, must-revalidate"
    );
    assert_eq!(
        (
            action.header("set-cookie"),
            action.header("x-action-revalidated")
        ),
        ("user=alice; Path=/; HttpOnly", "1")
    );
    let redirect = send(
        "POST",
        &shop,
        "/account",
        &[("next-action", "00913d3cf4dd41bdd7c200a6cd26be3788f2c96b7e")],
        "[]",
    )
    .await;
    assert_eq!(
        redirect.header("x-action-redirect"),
        "/categories/shoes;push"
    );
    assert!(
        redirect.header("cache-control").starts_with("s-maxage=120"),
        "a POST that says it may be shared"
    );
    let unknown = send("POST", &shop, "/account", &[("next-action", "x")], "").await;
    assert_eq!(
        (
            unknown.status.as_u16(),
            unknown.header("x-nextjs-action-not-found")
        ),
        (404, "1")
    );
    let form = [("content-type", "application/x-www-form-urlencoded")];
    assert_eq!(
        send("POST", &shop, "/account", &form, "do=save")
            .await
            .header("content-type"),
        "text/html; charset=utf-8"
    );
    let sent_on = send("POST", &shop, "/account", &form, "do=redirect").await;
    assert_eq!(
        (sent_on.status.as_u16(), sent_on.header("location")),
        (303, "/categories/shoes")
    );
    assert_eq!(send("POST", &shop, "/account", &[], "").await.status, 405);
}

#[tokio::test]
async fn assets_images_and_data() {
    let shop = stub(Kind::Storefront).await;
    let script = get(&shop, "/_next/static/chunks/main-demo-build-1.js", &[]).await;
    assert_eq!(
        script.header("cache-control"),
        "public, max-age=31536000, immutable"
    );
    assert_eq!(script.header("vary"), "Accept-Encoding");
    assert!(script.header("etag").starts_with("W/\""));
    let again = get(
        &shop,
        "/_next/static/chunks/main-demo-build-1.js",
        &[("if-none-match", script.header("etag"))],
    )
    .await;
    assert_eq!((again.status.as_u16(), again.body.len()), (304, 0));
    assert_eq!(
        get(&shop, "/_next/static/chunks/of-another-build.js", &[])
            .await
            .status,
        404
    );
    let page = get(&shop, "/", &[]).await;
    for part in page.text().split('"').filter(|p| p.starts_with("/_next/")) {
        let url = part.replace("&amp;", "&");
        assert_eq!(
            get(&shop, &url, &[]).await.status,
            200,
            "{url}, which the page names"
        );
    }

    let raw = get(&shop, "/raw.png", &[]).await;
    assert!(raw.body.starts_with(b"\x89PNG") && raw.header("cache-control") == "public, max-age=0");
    let part = get(&shop, "/raw.png", &[("range", "bytes=1-3")]).await;
    assert_eq!((part.status.as_u16(), &part.body[..]), (206, &b"PNG"[..]));
    assert_eq!(
        part.header("content-range"),
        format!("bytes 1-3/{}", raw.body.len())
    );
    let since = get(
        &shop,
        "/raw.png",
        &[("if-modified-since", raw.header("last-modified"))],
    )
    .await;
    assert_eq!(since.status, 304);

    let image = "/_next/image?url=%2Fphoto.png&w=256&q=75";
    let webp = get(&shop, image, &[("accept", "image/avif,image/webp,*/*")]).await;
    assert_eq!(
        (webp.header("content-type"), webp.header("vary")),
        ("image/webp", "Accept")
    );
    assert_eq!(&webp.body[8..12], b"WEBP");
    let png = get(&shop, image, &[("accept", "*/*")]).await;
    assert!(png.body.starts_with(b"\x89PNG") && png.header("etag") != webp.header("etag"));
    let refused = get(&shop, "/_next/image?url=%2Fphoto.png&w=257&q=75", &[]).await;
    assert_eq!(refused.status, 400);
    assert!(
        refused.headers.get("cache-control").is_none() && refused.headers.get("vary").is_none()
    );

    let data = get(
        &shop,
        "/_next/data/demo-build-1/legacy-ssg.json",
        &[("x-nextjs-data", "1")],
    )
    .await;
    assert_eq!(data.json()["__N_SSG"], true);
    assert!(data.header("cache-control").starts_with("s-maxage=30"));
    let prefetch = get(
        &shop,
        "/_next/data/demo-build-1/legacy-ssr.json",
        &[("x-nextjs-data", "1"), ("x-middleware-prefetch", "1")],
    )
    .await;
    assert_eq!(
        (prefetch.text(), prefetch.header("x-middleware-skip")),
        ("{}", "1")
    );
}

#[tokio::test]
async fn pages_of_a_chosen_size_have_it_to_the_byte() {
    let shop = stub(Kind::Storefront).await;
    for size in [2_000, 10_240, 100_001, 3_000_000] {
        let page = get(&shop, &format!("/page/1?size={size}"), &[]).await;
        assert_eq!(page.body.len(), size);
        assert!(page.text().ends_with("</html>"));
    }
    assert_eq!(get(&shop, "/page/9", &[]).await.body.len(), 10_240);
}

#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let shop = stub(Kind::Storefront).await;
    let head = send("HEAD", &shop, "/about", &[], "").await;
    let get = get(&shop, "/about", &[]).await;
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-length"), get.body.len().to_string());
    assert_eq!(head.header("etag"), get.header("etag"));
    assert!(head.body.is_empty());
}
