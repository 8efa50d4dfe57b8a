//! Members, orders, catalogue and BFF over real sockets.

mod support;

use serde_json::json;
use support::{get, post_json, send, stub};
use upstream_stubs::{AllOptions, FaultRule, Kind, Options, start_all};

#[tokio::test]
async fn members_are_made_read_changed_and_removed() {
    let members = stub(Kind::Members).await;
    assert_eq!(get(&members, "/api/members", &[]).await.json()["total"], 3);
    let made = post_json(
        &members,
        "/api/members",
        &[],
        json!({"name": "Dora", "email": "dora@example.com"}),
    )
    .await;
    assert_eq!(
        (made.status.as_u16(), made.header("location")),
        (201, "/api/members/4")
    );
    let patched = send(
        "PATCH",
        &members,
        "/api/members/4",
        &[],
        r#"{"tier":"gold"}"#,
    )
    .await
    .json();
    assert_eq!(
        (patched["name"].as_str(), patched["tier"].as_str()),
        (Some("Dora"), Some("gold"))
    );
    let put = send(
        "PUT",
        &members,
        "/api/members/4",
        &[],
        r#"{"name":"D","email":"d@example.com"}"#,
    )
    .await
    .json();
    assert_eq!(
        (put["name"].as_str(), put["tier"].as_str()),
        (Some("D"), Some("basic"))
    );
    assert_eq!(
        send("PUT", &members, "/api/members/4", &[], r#"{"name":"D"}"#)
            .await
            .status,
        422
    );
    assert_eq!(get(&members, "/api/members/4", &[]).await.json(), put);
    assert_eq!(
        send("DELETE", &members, "/api/members/4", &[], "")
            .await
            .status,
        204
    );
    assert_eq!(get(&members, "/api/members/4", &[]).await.status, 404);
    assert_eq!(
        post_json(
            &members,
            "/api/members",
            &[],
            json!({"name": "", "email": "x@y"})
        )
        .await
        .status,
        422
    );
    assert_eq!(
        post_json(&members, "/api/members", &[], json!({"nme": "x"}))
            .await
            .status,
        400
    );
}

#[tokio::test]
async fn members_say_what_identity_they_saw() {
    let members = stub(Kind::Members).await;
    assert_eq!(
        get(&members, "/api/members", &[])
            .await
            .header("x-stub-saw-authorization"),
        "no"
    );
    let with = get(
        &members,
        "/api/members/99",
        &[
            ("authorization", "Bearer x"),
            ("x-consumer-username", "alice"),
        ],
    )
    .await;
    assert_eq!(
        (
            with.status.as_u16(),
            with.header("x-stub-saw-authorization"),
            with.header("x-stub-saw-consumer")
        ),
        (404, "yes", "alice")
    );
}

#[tokio::test]
async fn every_order_stands_in_the_ledger() {
    let orders = stub(Kind::Orders).await;
    let wanted = json!({"items": [{"product_id": 1, "quantity": 2}, {"product_id": 2}]});
    let made = post_json(
        &orders,
        "/api/orders",
        &[
            ("idempotency-key", "k-1"),
            ("authorization", "Bearer e30.eyJzdWIiOiJhbGljZSJ9.x"),
        ],
        wanted.clone(),
    )
    .await;
    assert_eq!(
        (made.status.as_u16(), made.header("location")),
        (201, "/api/orders/1")
    );
    post_json(
        &orders,
        "/api/orders",
        &[("x-idempotency-key", "k-2")],
        wanted,
    )
    .await;
    assert_eq!(get(&orders, "/api/orders/1", &[]).await.json(), made.json());
    let ledger = get(&orders, "/_stub/ledger", &[]).await.json();
    assert_eq!(ledger["count"], 2);
    assert_eq!(
        (
            ledger["effects"][0]["idempotency_key"].as_str(),
            ledger["effects"][0]["subject"].as_str()
        ),
        (Some("k-1"), Some("alice"))
    );
    assert_eq!(
        orders.handle().ledger()[1].idempotency_key.as_deref(),
        Some("k-2")
    );
    for bad in [
        json!({"items": []}),
        json!({"items": [{"product_id": 999}]}),
        json!({"items": [{"product_id": 1, "quantity": 0}]}),
    ] {
        assert_eq!(
            post_json(&orders, "/api/orders", &[], bad).await.status,
            422
        );
    }
    assert_eq!(
        orders.handle().ledger().len(),
        2,
        "refused orders leave no trace"
    );
}

#[tokio::test]
async fn a_failure_leaves_no_order_unless_it_comes_after_the_work() {
    let orders = stub(Kind::Orders).await;
    let wanted = json!({"items": [{"product_id": 1}]});
    assert_eq!(
        post_json(
            &orders,
            "/api/orders",
            &[("x-stub-status", "503")],
            wanted.clone()
        )
        .await
        .status,
        503
    );
    assert_eq!(orders.handle().ledger().len(), 0);
    assert_eq!(
        post_json(
            &orders,
            "/api/orders",
            &[("x-stub-status", "503"), ("x-stub-after-work", "1")],
            wanted
        )
        .await
        .status,
        503
    );
    assert_eq!(orders.handle().ledger().len(), 1);
}

#[tokio::test]
async fn the_catalogue_is_paged_filtered_and_sorted() {
    let products = stub(Kind::Products).await;
    let all = get(&products, "/api/products?limit=100", &[]).await.json();
    assert_eq!(
        (
            all["total"].as_u64(),
            all["items"].as_array().unwrap().len()
        ),
        (Some(40), 40)
    );
    let second = get(&products, "/api/products?page=2&limit=15", &[])
        .await
        .json();
    assert_eq!(
        (second["items"][0]["id"].as_u64(), second["pages"].as_u64()),
        (Some(16), Some(3))
    );
    let hats = get(
        &products,
        "/api/products?category=hats&sort=price&limit=100",
        &[],
    )
    .await
    .json();
    let prices: Vec<u64> = hats["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["price"].as_u64().unwrap())
        .collect();
    assert!(prices.len() == 8 && prices.is_sorted(), "{prices:?}");
    assert_eq!(get(&products, "/api/products/7", &[]).await.json()["id"], 7);
    for none in [
        "/api/products/0",
        "/api/products/41",
        "/api/products/x",
        "/api/productsx",
    ] {
        assert_eq!(get(&products, none, &[]).await.status, 404, "{none}");
    }
    assert_eq!(
        get(
            &products,
            &format!("/api/products?page={0}&limit={0}", u64::MAX),
            &[]
        )
        .await
        .status,
        200
    );
    assert_eq!(
        send("DELETE", &products, "/api/products/7", &[], "")
            .await
            .header("allow"),
        "GET, HEAD"
    );
    let deals = stub(Kind::Deals).await;
    assert_eq!(get(&deals, "/api/deals", &[]).await.json()["total"], 8);
}

#[tokio::test]
async fn the_whole_set_is_wired_and_the_bff_keeps_its_connections() {
    let all = start_all(AllOptions {
        ephemeral: true,
        ..AllOptions::default()
    })
    .await
    .unwrap();
    for running in all.iter() {
        let health = get(running, "/health", &[]).await;
        assert_eq!(
            (
                health.status.as_u16(),
                health.json()["service"].as_str().unwrap()
            ),
            (200, running.kind().name())
        );
    }
    let home = get(&all.bff, "/api/home", &[("x-request-id", "r-1")]).await;
    assert!(home.headers.get("cache-control").is_none());
    let home = home.json();
    assert_eq!(
        (
            home["featured"].as_array().unwrap().len(),
            home["deals"].as_array().unwrap().len()
        ),
        (8, 4)
    );
    assert_eq!(
        all.deals
            .handle()
            .requests()
            .last()
            .unwrap()
            .header("x-request-id"),
        Some("r-1")
    );
    let categories = get(&all.bff, "/api/categories", &[]).await.json();
    let counts: u64 = categories["categories"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["count"].as_u64().unwrap())
        .sum();
    let reduced: u64 = categories["categories"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["deals"].as_u64().unwrap())
        .sum();
    assert_eq!((counts, reduced), (40, 8));
    // One connection was the health check above.
    assert_eq!(
        all.products.handle().stats().connections,
        2,
        "the second call came on the connection of the first"
    );
}

#[tokio::test]
async fn the_bff_answers_502_or_504_when_what_it_needs_is_away() {
    let all = start_all(AllOptions {
        ephemeral: true,
        options: Options {
            upstream_timeout: std::time::Duration::from_millis(1_500),
            ..Options::default()
        },
        ..AllOptions::default()
    })
    .await
    .unwrap();
    all.deals
        .handle()
        .add_fault(FaultRule {
            status: Some(500),
            times: Some(1),
            ..FaultRule::default()
        })
        .unwrap();
    let failed = get(&all.bff, "/api/home", &[]).await;
    assert_eq!(
        (
            failed.status.as_u16(),
            failed.json()["error"].as_str().unwrap()
        ),
        (502, "upstream_failed")
    );
    all.deals
        .handle()
        .add_fault(FaultRule {
            fault: Some(upstream_stubs::Fault::Hang),
            times: Some(1),
            ..FaultRule::default()
        })
        .unwrap();
    assert_eq!(get(&all.bff, "/api/home", &[]).await.status, 504);
    assert_eq!(get(&all.bff, "/api/home", &[]).await.status, 200);
    let (bff, deals) = (all.bff, all.deals);
    deals.stop().await;
    let away = get(&bff, "/api/home", &[]).await;
    assert_eq!(
        (away.status.as_u16(), away.json()["error"].as_str().unwrap()),
        (502, "upstream_unreachable")
    );
}
